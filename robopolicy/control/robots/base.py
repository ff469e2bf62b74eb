"""Parts that robots share: the context of a run, addresses and proprioception."""

from dataclasses import dataclass

import numpy as np

from robopolicy.arrays import Float
from robopolicy.components import ConfigError
from robopolicy.control.kinematics import matrix_to_quaternion, pose_and_jacobian
from robopolicy.control.profile import RobotProfile


@dataclass(frozen=True)
class RobotContext:
    """Facts about the run for building a robot; each kind of robot uses those it needs."""

    control_dt: float = 0.05
    """Time between two actions of the policy [s]."""
    cameras: tuple[str, ...] = ()
    """Cameras that the policy reads."""
    image_size: int = 64
    """Side of their images [pixels]."""
    task: str | None = None
    """Simulator task of the policy's demos, if known."""
    seed: int | None = None
    """Seed of the replayed episode, if known."""
    deadline_s: float = 0.25
    """Age of the newest observation at which the control loop stops the robot [s]."""
    priority: bool = False
    """Whether processes of the robot request real-time priority."""


def host_and_port(address: str, prefix: str) -> tuple[str, int]:
    """The parts of HOST:PORT.

    Raises:
        ConfigError: the address is not HOST:PORT; the message starts with `prefix`.
    """
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise ConfigError(f"{prefix}: expected HOST:PORT, got {address!r}")
    return host, int(port)


def proprioception(
    profile: RobotProfile, qpos: Float[np.ndarray, " joints"], opening_m: Float[np.ndarray, " grippers"] | float
) -> dict[str, np.ndarray]:
    """Observations of every robot, from its joint positions [rad] and gripper openings [m].

    `qpos` (joints,); `gripper` (grippers,) if it has any; and if its kinematics are known `ee_pose` (7,), or one
    `<arm>_ee_pose` for each of several arms: x y z [m] and a quaternion w x y z in the base frame.
    """
    obs = {"qpos": np.asarray(qpos, np.float32)}
    if profile.grippers:
        obs["gripper"] = np.atleast_1d(np.asarray(opening_m, np.float32))
    for name, arm, joints, _ in profile.parts:
        if arm.arm is not None:
            position, rotation, _ = pose_and_jacobian(arm.arm, np.asarray(qpos[joints], np.float64))
            pose = np.concatenate([position, matrix_to_quaternion(rotation)]).astype(np.float32)
            obs[f"{name}_ee_pose" if name else "ee_pose"] = pose
    return obs
