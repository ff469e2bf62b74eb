"""Shared by all operators: facts about the run, and the conversion of an operator's motions to the policy's actions."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from robopolicy.arrays import Float
from robopolicy.components import ConfigError
from robopolicy.control.kinematics import rotation_vector, tool_pose
from robopolicy.control.profile import RobotProfile
from robopolicy.control.targets import POSITION_SCALE_M, ROTATION_SCALE_RAD, closed_share, gripper_value, joint_targets
from robopolicy.types import ActionSpec

TOOL = ActionSpec(arm=6, gripper=0, kind="delta", space="ee")
"""Action spec of tool motions: x y z in units of 0.05 m, rotation vector in units of 0.5 rad, in the robot's base frame."""
DEAD_ZONE = 0.05
"""Largest deflection of a device, as a fraction of the full deflection, that counts as rest."""


@dataclass(frozen=True)
class OperatorContext:
    """Facts about a run that its operator needs."""

    profile: RobotProfile
    """Profile of the robot."""
    action_spec: ActionSpec
    """Columns of the policy's actions; the operator's actions have the same."""
    control_dt: float
    """Time between two actions [s]."""

    def tool_action(
        self, motion: Float[np.ndarray, "6"], closed: float, qpos: Float[np.ndarray, " joints"]
    ) -> Float[np.ndarray, " width"]:
        """The action row that moves the tool of a robot at `qpos` [rad].

        Args:
            motion: motion of the tool as in `TOOL`, each number in [-1, 1].
            closed: 0 for an open gripper, 1 for a closed one.
            qpos: joint positions [rad].

        Raises:
            ValueError: the policy moves joints and the profile has no kinematics, or the policy commands several grippers.
        """
        if self.action_spec.space == "ee":
            return self._row(motion, closed)
        target = joint_targets(self.profile, TOOL, motion, qpos, self.control_dt).joint_position_rad
        return self._row(self._joint_columns(target, qpos), closed)

    def joint_action(
        self, target_rad: Float[np.ndarray, " joints"], closed: float, qpos: Float[np.ndarray, " joints"]
    ) -> Float[np.ndarray, " width"]:
        """The action row that moves the joints from `qpos` to `target_rad` [rad], as far as one action can.

        Raises:
            ValueError: the policy commands several grippers.
        """
        if self.action_spec.space != "ee":
            return self._row(self._joint_columns(target_rad, qpos), closed)
        assert self.profile.arm is not None  # `ControlLoop` refuses such a robot
        (position, rotation), (target, turned) = (tool_pose(self.profile.arm, joints) for joints in (qpos, target_rad))
        turn = rotation_vector(turned @ rotation.T)
        motion = np.concatenate([(target - position) / POSITION_SCALE_M, turn / ROTATION_SCALE_RAD])
        return self._row(motion.clip(-1.0, 1.0), closed)

    def closed(self, action: Float[np.ndarray, " width"]) -> float:
        """Gripper command of an action, 0 open .. 1 closed; NaN without a gripper."""
        return float(closed_share(self.profile, self.action_spec, action))

    def _joint_columns(self, target_rad: np.ndarray, qpos: np.ndarray) -> np.ndarray:
        if self.action_spec.space == "joint_velocity":
            return (target_rad - qpos) / self.control_dt
        return target_rad - qpos if self.action_spec.kind == "delta" else target_rad

    def _row(self, arm: np.ndarray, closed: float) -> np.ndarray:
        spec, row = self.action_spec, np.zeros(self.action_spec.width)
        if len(spec.gripper_ends) > 1:
            raise ValueError(
                f"the policy's actions command {len(spec.gripper_ends)} grippers, and this operator's device has "
                "one; give your own operator as MODULE:FACTORY"
            )
        row[list(spec.joint_columns)] = arm
        for column, value in spec.constant.items():
            row[column] = value
        for column, _, _ in spec.gripper_ends:
            row[column] = gripper_value(self.profile, spec, closed)
        return row


@runtime_checkable
class ToolDevice(Protocol):
    """An input device that moves the tool."""

    def read(self, t_s: float) -> tuple[Float[np.ndarray, "6"], int, int]:
        """The tool's motion as in `TOOL`, and how often the take-over and gripper buttons were pressed since the last call.

        Args:
            t_s: current time on the loop's clock [s].

        Raises:
            OSError: the device is lost.
        """
        ...

    def close(self) -> None:
        """Release the device."""
        ...


class ToolOperator:
    """An operator who moves the tool; one button takes over and hands back, another one closes and opens the gripper.

    The gripper starts in the state that the policy commanded.

    Args:
        device: the operator's device.
        context: facts about the run.

    Raises:
        ConfigError: the policy moves joints and the robot's profile has no kinematics, or the policy commands several grippers.
    """

    def __init__(self, device: ToolDevice, context: OperatorContext) -> None:
        self.device, self.context = device, context
        self._engaged, self._closed = False, 0.0
        try:
            context.tool_action(np.zeros(6), 0.0, np.asarray(context.profile.home_rad))
        except ValueError as error:
            device.close()
            raise ConfigError(f"--intervene: {error}") from None

    def act(
        self, t_s: float, qpos: Float[np.ndarray, " joints"], policy_action: np.ndarray | None
    ) -> np.ndarray | None:
        """See `Operator`."""
        motion, taken, gripped = self.device.read(t_s)
        if not self._engaged and policy_action is not None:
            self._closed = self.context.closed(policy_action)
        if taken % 2:
            self._engaged = not self._engaged
        if not self._engaged:
            return None
        if gripped % 2:
            self._closed = 0.0 if self._closed > 0.5 else 1.0
        return self.context.tool_action(motion, self._closed, qpos)

    def close(self) -> None:
        """See `Operator`."""
        self.device.close()
