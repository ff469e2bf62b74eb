"""Our simulated arms on a simulated clock: their outcome does not depend on the machine's load."""

from typing import Any

import numpy as np
from jaxtyping import Float

from robopolicy.control.guard import CommandGuard
from robopolicy.control.robot import RobotError
from robopolicy.sim.world import World, WorldOptions
from robopolicy.types import Command, Observation


class SteppedRobot:
    """One world of a task as a `Robot`, and its own `Clock`: time passes only in `sleep_until`, which steps the physics.

    Commands pass the same guard as in real time.

    Args:
        options: its task, observations and rates.
    """

    def __init__(self, options: WorldOptions) -> None:
        self.profile = options.profile
        self.command_dt = options.command_dt
        self.env_args: dict[str, Any] | None = None
        self._world = World(options)
        self.control_dt = self._world.env.control_dt
        self.reset(options.seed)

    @property
    def simulated_clock(self) -> "SteppedRobot":
        """The clock that the control loop must run on."""
        return self

    def reset(self, seed: int) -> None:
        """Start an episode, at time 0."""
        position = self._world.begin(seed)
        self._guard = CommandGuard(self.profile, self.command_dt, position)
        self._openings_m = self._world.openings_m
        self._now_s, self._ticks = 0.0, 0
        self._stopped = False

    def now(self) -> float:
        """Simulated time [s]."""
        return self._now_s

    def sleep_until(self, t_s: float) -> None:
        """Step the physics up to t_s."""
        while (due_s := (self._ticks + 1) * self.command_dt) <= t_s + 1e-9:
            self._ticks += 1
            self._world.advance(self._guard.position(due_s), self._openings_m, 1)
        self._now_s = max(self._now_s, t_s)

    def observe(self) -> Observation:
        """The task's observation at this moment."""
        seen = self._world.look()
        return Observation(seen["obs"], seen["instruction"], self._now_s)

    def qpos(self) -> Float[np.ndarray, " joints"]:
        """Joint positions [rad]."""
        return self._world.qpos

    @property
    def success(self) -> bool:
        """Whether the task is solved."""
        return self._world.success

    @property
    def failed(self) -> bool:
        """Whether the episode can't succeed any more."""
        return self._world.failed

    def command(self, command: Command) -> None:
        """Take one command."""
        if self._stopped:
            raise RobotError("the robot was stopped; it takes no further command")
        self._guard.receive(command.joint_position_rad, command.stamp_s, self._now_s)
        wanted_m = command.gripper_opening_m
        self._openings_m = np.where(np.isfinite(wanted_m), wanted_m, self._openings_m)

    def stop(self) -> None:
        """Hold, and take no further command."""
        self._stopped = True
        self._guard.stop("stop was called")

    def close(self) -> None:
        """Free the world."""
        self.stop()
        self._world.env.close()
