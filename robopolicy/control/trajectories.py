"""Time-optimal trajectories within a robot's velocity, acceleration and jerk limits, by Ruckig (Berscheid and Kröger, 2021)."""

from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from robopolicy.control.profile import RobotProfile

if TYPE_CHECKING:
    from ruckig import Trajectory


class TrajectoryPlanner:
    """Plans trajectories of the joints from a state: position [rad], velocity [rad/s] and acceleration [rad/s2], (3, joints).

    Args:
        profile: the robot's limits.
        period_s: time between two samples of a trajectory [s].
        share: share of the velocity, acceleration and jerk limits to use.

    Raises:
        ImportError: ruckig is not installed; the message names the extra.
    """

    def __init__(self, profile: RobotProfile, period_s: float, share: float = 1.0) -> None:
        try:
            import ruckig
        except ImportError:
            raise ImportError("jerk-limited motion needs ruckig; pip install 'robopolicy[robot]'") from None
        self.velocity, self.acceleration, self.jerk = (
            share * np.asarray(limit)
            for limit in (profile.velocity_rad_s, profile.acceleration_rad_s2, profile.jerk_rad_s3)
        )
        self._module, self._ruckig = ruckig, ruckig.Ruckig(profile.joints, period_s)
        self._input = ruckig.InputParameter(profile.joints)
        self._input.max_velocity = self.velocity.tolist()
        self._input.max_acceleration = self.acceleration.tolist()
        self._input.max_jerk = self.jerk.tolist()

    def to_rest(self, state: Float[np.ndarray, "3 joints"]) -> "Trajectory | None":
        """The fastest braking, each joint by itself; None if Ruckig finds none."""
        put = self._input
        put.control_interface = self._module.ControlInterface.Velocity
        put.synchronization = self._module.Synchronization.No
        put.target_velocity = put.target_acceleration = [0.0] * state.shape[1]
        put.minimum_duration = None
        return self._calculated(state)

    def to_state(
        self,
        state: Float[np.ndarray, "3 joints"],
        target: Float[np.ndarray, "3 joints"],
        duration_s: float,
        synchronized: bool = True,
    ) -> "Trajectory | None":
        """The fastest trajectory to a target state that takes at least `duration_s`; None if Ruckig finds none.

        Args:
            state: where it starts.
            target: position, velocity and acceleration at its end.
            duration_s: least duration [s].
            synchronized: whether all joints arrive at the same time.
        """
        put, synchronization = self._input, self._module.Synchronization
        put.control_interface = self._module.ControlInterface.Position
        put.synchronization = synchronization.Time if synchronized else synchronization.No
        put.target_position, put.target_velocity, put.target_acceleration = target.tolist()
        put.minimum_duration = duration_s
        return self._calculated(state)

    def _calculated(self, state: np.ndarray) -> "Trajectory | None":
        put = self._input
        put.current_position = state[0].tolist()
        put.current_velocity = state[1].clip(-self.velocity, self.velocity).tolist()
        put.current_acceleration = state[2].clip(-self.acceleration, self.acceleration).tolist()
        trajectory = self._module.Trajectory(state.shape[1])
        try:
            result = self._ruckig.calculate(put, trajectory)
        except self._module.RuckigError:
            return None
        return trajectory if result in (self._module.Result.Working, self._module.Result.Finished) else None
