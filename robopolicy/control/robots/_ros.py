"""Reads and writes ROS 2 messages in rosbridge's JSON, for the robot `rosbridge`."""

import base64
import io
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, UInt8

from robopolicy.control.kinematics import matrix_to_quaternion, rotation_vector, tool_pose
from robopolicy.control.profile import RobotProfile

if TYPE_CHECKING:
    from robopolicy.control.robots.rosbridge import ArmTopics, GripperTopics

GRIPPER_STEP_M = 0.005
GRIPPER_DT = 0.1
"""A gripper is commanded when its opening differs by this much [m] from the last command, or at all after this time [s]:
actions are goals, which controllers don't accept at the rate of joint commands."""
DRIFT = 1e-4
"""Seconds by which two computers' clocks may drift apart in one second."""
KINDS = {
    "joint_trajectory": "trajectory_msgs/JointTrajectory",
    "joint_group_position": "std_msgs/Float64MultiArray",
    "joint_group_velocity": "std_msgs/Float64MultiArray",
    "pose": "geometry_msgs/PoseStamped",
    "twist": "geometry_msgs/TwistStamped",
}
"""Type of command -> its message."""
CHANNELS = {"rgb8": (0, 1, 2), "bgr8": (2, 1, 0), "rgba8": (0, 1, 2), "bgra8": (2, 1, 0), "mono8": (0, 0, 0)}
"""Encoding of sensor_msgs/Image -> where red, green and blue are in a pixel."""
WIDTHS = {"rgba8": 4, "bgra8": 4, "mono8": 1}
"""Bytes of a pixel, where not 3."""

Advertise = Callable[[str, str], Any]
"""Name and type of a topic -> a topic to publish on."""


class StampClock:
    """Converts header stamps from the sender's clock to the loop's clock.

    The offset is the smallest difference seen between a message's arrival and its stamp, so that it includes only the
    shortest delay; it may grow at the rate at which clocks drift.
    """

    def __init__(self) -> None:
        self._offset_s, self._arrived_s = math.inf, 0.0

    def of(self, message: Mapping[str, Any], arrived_s: float) -> float:
        """Time of a message's stamp on the loop's clock [s], at most its arrival; the arrival if it has no stamp."""
        stamp = (message.get("header") or {}).get("stamp") or {}
        stamped_s = stamp.get("sec", stamp.get("secs", 0)) + 1e-9 * stamp.get("nanosec", stamp.get("nsecs", 0))
        if not stamped_s:
            return arrived_s
        drifted_s = self._offset_s + DRIFT * (arrived_s - self._arrived_s)
        self._offset_s, self._arrived_s = min(drifted_s, arrived_s - stamped_s), arrived_s
        return stamped_s + self._offset_s


class ArmPublisher:
    """Publishes the commands of one arm."""

    def __init__(self, advertise: Advertise, profile: RobotProfile, topics: "ArmTopics", command_dt: float) -> None:
        if topics.command in ("pose", "twist") and profile.arm is None:
            raise ValueError(
                f"command {topics.command!r} needs the kinematics of {profile.name}; add them to its profile"
            )
        self._profile, self._topics, self._command_dt = profile, topics, command_dt
        self._topic = advertise(topics.command_topic, KINDS[topics.command])
        self._before: np.ndarray | None = None

    def send(self, position: Float[np.ndarray, " joints"]) -> None:
        """Command joint positions [rad], in the arm's own type of message."""
        before = position if self._before is None else self._before
        self._before = position
        self._topic.publish(plain(self._message(position, before)))

    def hold(self, position: Float[np.ndarray, " joints"]) -> None:
        """Command rest at joint positions [rad]."""
        self._before = None
        self.send(position)

    def _message(self, position: np.ndarray, before: np.ndarray) -> dict[str, Any]:
        kind, names = self._topics.command, self._profile.joint_names
        if kind == "joint_trajectory":
            return joint_trajectory(names, position[None], 1 / self._command_dt)
        if kind == "joint_group_position":
            return float_array(position)
        if kind == "joint_group_velocity":
            return float_array((position - before) / self._command_dt)
        assert self._profile.arm is not None
        where, rotation = tool_pose(self._profile.arm, np.asarray(position, np.float64))
        header = {"stamp": {"sec": 0, "nanosec": 0}, "frame_id": self._topics.frame_id}
        if kind == "pose":
            w, x, y, z = matrix_to_quaternion(rotation).tolist()
            pose = {"position": _xyz(where), "orientation": {"x": x, "y": y, "z": z, "w": w}}
            return {"header": header, "pose": pose}
        start, turned = tool_pose(self._profile.arm, np.asarray(before, np.float64))
        linear, angular = (where - start) / self._command_dt, rotation_vector(rotation @ turned.T) / self._command_dt
        return {"header": header, "twist": {"linear": _xyz(linear), "angular": _xyz(angular)}}


class GripperPublisher:
    """Commands one gripper, no more often than a gripper's controller takes goals."""

    def __init__(self, ros: Any, advertise: Advertise, topics: "GripperTopics") -> None:
        import roslibpy

        self._topics, self._sent_m, self._sent_s = topics, math.nan, -math.inf
        if topics.topic is not None:
            kind = "std_msgs/Float64" if topics.message == "float64" else "control_msgs/GripperCommand"
            self._topic = advertise(topics.topic, kind)
        elif hasattr(roslibpy, "ActionClient"):
            self._action = roslibpy.ActionClient(ros, topics.action, "control_msgs/action/GripperCommand")
        else:
            raise ImportError(
                f"gripper actions need roslibpy >= 2.0, found {roslibpy.__version__}; use a topic, or upgrade"
            )

    def send(self, opening_m: float) -> None:
        """Command an opening [m], unless it is about the one commanded last."""
        now_s, changed_m = time.monotonic(), abs(opening_m - self._sent_m)
        if changed_m == 0 or (changed_m < GRIPPER_STEP_M and now_s - self._sent_s < GRIPPER_DT):
            return
        self._sent_m, self._sent_s = opening_m, now_s
        position = float(self._topics.scale * opening_m)
        goal = {"position": position, "max_effort": float(self._topics.max_effort)}
        if self._topics.topic is None:
            self._action.send_goal(plain({"command": goal}), _ignore, _ignore, _ignore)
        else:
            self._topic.publish(plain({"data": position} if self._topics.message == "float64" else goal))


def _ignore(result: Any) -> None:
    """A gripper that holds an object never reaches its goal; that is not a failure."""


def plain(message: dict[str, Any]) -> Any:
    """A message of roslibpy."""
    import roslibpy

    return roslibpy.Message(message)


def joint_trajectory(
    joint_names: Sequence[str], positions: Float[np.ndarray, "points joints"], rate_hz: float
) -> dict[str, Any]:
    """trajectory_msgs/JointTrajectory: point i [rad] is due (i + 1) / rate_hz after it is received."""
    points = []
    for place, position in enumerate(positions):
        sec, nanosec = divmod(round(1e9 * (place + 1) / rate_hz), 10**9)
        due = {"sec": sec, "nanosec": nanosec}
        points.append({"positions": [float(angle) for angle in position], "time_from_start": due})
    stamp = {"stamp": {"sec": 0, "nanosec": 0}, "frame_id": ""}  # zero: start on arrival
    return {"header": stamp, "joint_names": list(joint_names), "points": points}


def float_array(values: Float[np.ndarray, " n"]) -> dict[str, Any]:
    """std_msgs/Float64MultiArray."""
    return {"layout": {"dim": [], "data_offset": 0}, "data": [float(value) for value in values]}


def base_twist(velocity: Float[np.ndarray, " base"]) -> dict[str, Any]:
    """geometry_msgs/Twist of (forward, turn) or (forward, left, turn) [m/s, rad/s]."""
    if len(velocity) not in (2, 3):
        raise ValueError(f"a base of {len(velocity)} directions has no Twist; expected 2 (forward, turn) or 3")
    forward, *left, turn = (float(value) for value in velocity)
    return {
        "linear": {"x": forward, "y": left[0] if left else 0.0, "z": 0.0},
        "angular": {"x": 0.0, "y": 0.0, "z": turn},
    }


def image(message: Mapping[str, Any]) -> UInt8[np.ndarray, "height width 3"]:
    """The pixels of a sensor_msgs/Image, RGB."""
    encoding = message["encoding"]
    if encoding not in CHANNELS:
        raise ValueError(f"images come as {encoding!r}; expected one of {', '.join(CHANNELS)}")
    height, width, step = message["height"], message["width"], message["step"]
    bytes_each = WIDTHS.get(encoding, 3)
    data = np.frombuffer(base64.b64decode(message["data"]), np.uint8)
    if data.size != height * step or step < bytes_each * width:
        raise ValueError(f"an image of {height} rows of {step} bytes holds {data.size} bytes")
    pixels = data.reshape(height, step)[:, : bytes_each * width].reshape(height, width, bytes_each)
    return np.ascontiguousarray(pixels[..., CHANNELS[encoding]])


def compressed_image(message: Mapping[str, Any]) -> UInt8[np.ndarray, "height width 3"]:
    """The pixels of a sensor_msgs/CompressedImage in JPEG or PNG, RGB."""
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError:
        raise ImportError("compressed images need pillow; pip install pillow") from None
    try:
        picture = Image.open(io.BytesIO(base64.b64decode(message["data"])), formats=("PNG", "JPEG"))
        return np.asarray(picture.convert("RGB"))
    except (UnidentifiedImageError, OSError) as error:
        raise ValueError(f"a compressed image ({message.get('format')!r}) is no whole JPEG or PNG: {error}") from None


def _xyz(vector: np.ndarray) -> dict[str, float]:
    x, y, z = (float(value) for value in vector)
    return {"x": x, "y": y, "z": z}
