"""The simulator's arms on a simulated clock: results do not depend on the machine's load."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float

from robopolicy.control.guard import CommandGuard
from robopolicy.control.profile import RobotProfile
from robopolicy.control.robot import RobotError
from robopolicy.sim.env import RobotVectorEnv
from robopolicy.sim.physics import BatchPhysics
from robopolicy.sim.scene import ROBOTS
from robopolicy.sim.tasks import Task, make_task
from robopolicy.types import Command, Observation


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


class SteppedRobot:
    """One world of a task as a `Robot`, and its own `Clock`: time passes only in `sleep_until`, which steps the physics.

    Commands pass a `CommandGuard`, as those to a real robot behind a `RobotServer` do.

    Args:
        options: its task, observations and rates.
        deadline_s: longest time without a command during a motion [s].
    """

    def __init__(self, options: WorldOptions, deadline_s: float = 0.05) -> None:
        self.profile, self.command_dt, self.deadline_s = options.profile, options.command_dt, deadline_s
        self.env_args: dict[str, Any] | None = None
        self.env = RobotVectorEnv(
            options.task,
            1,
            num_threads=1,
            physics_dt=options.command_dt,
            cameras=options.cameras,
            image_size=options.image_size,
            task_options=options.task_options,
        )
        self.control_dt = self.env.control_dt
        assert isinstance(self.env.physics, BatchPhysics)
        self._batch = self.env.physics.batch
        self._ctrl = self._batch.bind("ctrl")
        self.reset(options.seed)

    @property
    def simulated_clock(self) -> "SteppedRobot":
        """The clock that the control loop must run on."""
        return self

    def reset(self, seed: int) -> None:
        """Start an episode, at time 0."""
        self.env.reset(seed=seed)
        self.guard = CommandGuard(self.profile, self.command_dt, self.qpos(), self.deadline_s)
        self._openings_m = self.env.scene.openings_of(self.env.physics.qpos)[0].copy()
        self._ctrl[0, : self.profile.joints] = self.qpos()
        self._now_s, self._ticks = 0.0, 0
        self.success = self.failed = self._stopped = False

    def now(self) -> float:
        """Simulated time [s]."""
        return self._now_s

    def sleep_until(self, t_s: float) -> None:
        """Step the physics up to t_s."""
        while (due_s := (self._ticks + 1) * self.command_dt) <= t_s + 1e-9:
            self.step(due_s)
        self._now_s = max(self._now_s, t_s)

    def step(self, due_s: float, ticks: int = 1) -> None:
        """Advance the physics by `ticks` steps with the command due at `due_s`; the task is judged once every control step."""
        joints, n_substeps = self.profile.joints, self.env.scene.n_substeps
        position, held = self.guard.position(due_s), self.env.task.held(self.env.state)
        if held is None or not held[0]:
            self._ctrl[0, :joints] = position
        self._ctrl[0, joints:] = np.repeat(self._openings_m / 2, 2)
        self._batch.step(nstep=ticks)
        judged, self._ticks = self._ticks // n_substeps, self._ticks + ticks
        if self._ticks // n_substeps > judged:
            decided = bool(self.env.judge()[0])
            self.success = bool(self.env.succeeded[0])
            self.failed = decided and not self.success

    def observe(self) -> Observation:
        """The task's observation at this moment."""
        obs = {key: np.array(rows[0]) for key, rows in self.env.observe().items()}
        return Observation(obs, self.env.instructions[0], self._now_s)

    def qpos(self) -> Float[np.ndarray, " joints"]:
        """Joint positions [rad]."""
        return self.env.scene.joints_of(self.env.physics.qpos)[0].copy()

    def command(self, command: Command) -> None:
        """Take one command."""
        if self._stopped:
            raise RobotError("the robot was stopped; it accepts no further commands")
        self.receive(command, self._now_s)

    def receive(self, command: Command, now_s: float) -> None:
        """Pass a command to the guard at time `now_s` [s], measured on the same clock as the command's stamp.

        Raises:
            RobotError: the guard refuses it.
        """
        self.guard.receive(command.joint_position_rad, command.stamp_s, now_s)
        opening_m = command.gripper_opening_m
        self._openings_m = np.where(np.isfinite(opening_m), opening_m, self._openings_m)

    def stop(self) -> None:
        """Hold the position, and accept no further commands."""
        self._stopped = True
        self.guard.stop("stop was called")

    def close(self) -> None:
        """Stop, and close the environment."""
        self.stop()
        self.env.close()
