"""One world of a task's environment, driven by joint commands instead of actions: the basis of the simulated robots."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float

from robopolicy.control.profile import RobotProfile
from robopolicy.sim.env import RobotVectorEnv
from robopolicy.sim.physics import BatchPhysics
from robopolicy.sim.scene import ROBOTS
from robopolicy.sim.tasks import Task, make_task


@dataclass(frozen=True)
class WorldOptions:
    """Task, observations and rates of a simulated robot, in real time or on a simulated clock."""

    task: str
    """Task of the simulator."""
    seed: int = 0
    """Seed of the episode."""
    cameras: tuple[str, ...] = ()
    """Cameras whose images are part of the observation."""
    image_size: int = 64
    """Side of the images [pixels]."""
    command_dt: float = 0.001
    """Time between two commands, and physics step [s]."""
    task_options: Mapping[str, Any] = field(default_factory=dict)
    """Options of the task."""

    def make_task(self) -> Task:
        """The task; an unknown one is refused."""
        return make_task(self.task, **self.task_options)

    @property
    def profile(self) -> RobotProfile:
        """Limits and kinematics of the task's robot."""
        return ROBOTS[self.make_task().robot].profile


class World:
    """One world, whose robot follows joint commands. `qpos` and `openings_m` are copies."""

    def __init__(self, options: WorldOptions) -> None:
        self.env = RobotVectorEnv(
            options.task,
            1,
            num_threads=1,
            physics_dt=options.command_dt,
            cameras=options.cameras,
            image_size=options.image_size,
            task_options=options.task_options,
        )
        assert isinstance(self.env.physics, BatchPhysics)
        self._batch = self.env.physics.batch
        self._ctrl = self._batch.bind("ctrl")
        self.joints = self.env.profile.joints

    def begin(self, seed: int) -> Float[np.ndarray, " joints"]:
        """Start an episode; returns the joint positions [rad]."""
        self.env.reset(seed=seed)
        self._ticks, self.success, self.failed = 0, False, False
        return self.qpos

    @property
    def qpos(self) -> Float[np.ndarray, " joints"]:
        """Joint positions [rad]."""
        return self.env.scene.joints_of(self.env.physics.qpos)[0].copy()

    @property
    def openings_m(self) -> Float[np.ndarray, " grippers"]:
        """Distance between the fingers of each gripper [m]."""
        return self.env.scene.openings_of(self.env.physics.qpos)[0].copy()

    def advance(self, position_rad: np.ndarray, openings_m: np.ndarray, ticks: int) -> None:
        """Make `ticks` physics steps under one command; success and failure are checked once every control step."""
        self._ctrl[0, : self.joints], self._ctrl[0, self.joints :] = position_rad, np.repeat(openings_m / 2, 2)
        self._batch.step(nstep=ticks)
        judged, self._ticks = self._ticks // self.env.scene.n_substeps, self._ticks + ticks
        if self._ticks // self.env.scene.n_substeps > judged:
            decided = bool(self.env.judge()[0])
            self.success = bool(self.env.succeeded[0])
            self.failed = decided and not self.success

    def look(self) -> dict[str, Any]:
        """The present observation, without batch axis, and the instruction."""
        obs = {key: np.array(rows[0]) for key, rows in self.env.observe().items()}
        return {"obs": obs, "instruction": self.env.instructions[0]}
