"""ROS arms through rosbridge's JSON, described by a `robot.yaml`; needs no ROS on this machine.

kind: rosbridge
address: 10.0.0.7:9090
profile: viperx_pair
command_dt: 0.02
arms:
  left: {joint_topic: /left/joint_states, command_topic: /left/controller/joint_trajectory}
  right: {joint_topic: /right/joint_states, command_topic: /right/controller/joint_trajectory}
grippers:
  left: {action: /left/gripper/gripper_cmd, fingers: [left_finger_1, left_finger_2]}
  right: {action: /right/gripper/gripper_cmd, fingers: [right_finger_1, right_finger_2]}
cameras: {top: /cam_high/image_raw/compressed}
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from robopolicy.arrays import Float
from robopolicy.components import ConfigError, Options, option, register
from robopolicy.control.profile import read_profile
from robopolicy.control.robot import RobotError
from robopolicy.control.robots import _ros
from robopolicy.control.robots._bridge import Bridge
from robopolicy.control.robots.base import RobotContext, host_and_port, proprioception
from robopolicy.types import Command, Observation

CONNECT_S = 5.0
"""Timeout for the server and for the first message of each topic [s]."""

CommandType = Literal["joint_trajectory", "joint_group_position", "joint_group_velocity", "pose", "twist"]


@dataclass(frozen=True)
class ArmTopics:
    """Topics of one arm."""

    joint_topic: str = "/joint_states"
    """Source of sensor_msgs/JointState; several arms and grippers may share one."""
    command_topic: str = "/joint_trajectory_controller/joint_trajectory"
    """Destination of the commands."""
    command: CommandType = "joint_trajectory"
    """trajectory_msgs/JointTrajectory of one point, std_msgs/Float64MultiArray of positions or velocities,
    geometry_msgs/PoseStamped or geometry_msgs/TwistStamped of the tool in the base frame."""
    frame_id: str = "base_link"
    """Name of the base frame in stamped poses and twists."""


@dataclass(frozen=True)
class GripperTopics:
    """Topics of one gripper; `topic` or `action`."""

    topic: str | None = None
    """Destination of its opening as std_msgs/Float64, or control_msgs/GripperCommand."""
    message: Literal["float64", "gripper_command"] = "float64"
    """What the topic carries."""
    action: str | None = None
    """Name of a control_msgs/action/GripperCommand server (ROS 2)."""
    scale: float = 1.0
    """Commanded position per meter of opening; 0.5 if the command is the position of one finger."""
    max_effort: float = 20.0
    """Largest effort in a GripperCommand [N]."""
    fingers: tuple[str, ...] = ()
    """Joints of the JointState whose sum is the opening [m]; empty: the last commanded opening is assumed."""

    def __post_init__(self) -> None:
        if (self.topic is None) == (self.action is None):
            raise ConfigError("a gripper of the robot needs either `topic` or `action`")


@dataclass(frozen=True)
class RosbridgeOptions(Options):
    """Options of `rosbridge`."""

    address: str = "127.0.0.1:9090"
    """HOST:PORT of the rosbridge server."""
    tls: bool = False
    """Whether the connection is encrypted (wss)."""
    profile: str = "panda"
    """Limits and kinematics: a shipped profile's name, or a YAML file; its `joint_names` are those of the JointState."""
    command_dt: float = option(0.01, "> 0")
    """Time between two commands [s]; JSON carries about 100 of them a second."""
    arms: Mapping[str, ArmTopics] = field(default_factory=dict)
    """Topics by the profile's arm names; any name for a robot with one arm; empty: the default topics."""
    grippers: Mapping[str, GripperTopics] = field(default_factory=dict)
    """Topics by the names of the arms with the grippers; any name for a robot of one arm; one that is missing is not used."""
    cameras: Mapping[str, str] = field(default_factory=dict)
    """Observation key -> topic of sensor_msgs/Image, or of sensor_msgs/CompressedImage where it ends in /compressed."""
    base_topic: str | None = None
    """Destination of geometry_msgs/Twist for a mobile base of 2 (forward, turn) or 3 (forward, left, turn) directions, whose
    limits are the profile's `base_velocity` and `base_acceleration`."""
    timeout_s: float = option(0.25, "> 0")
    """Longest silence of the joints or a camera [s]."""


@register("robot", "rosbridge", RosbridgeOptions)
class RosbridgeRobot:
    """ROS 2 (or ROS 1) arms and grippers behind rosbridge.

    Args:
        options: address of the server, and the topics.
        context: facts about the run; None: the defaults.
    """

    def __init__(self, options: RosbridgeOptions, context: RobotContext | None = None) -> None:
        self._server = (*host_and_port(options.address, "--robot rosbridge://"), options.tls)
        self.profile, self.control_dt = read_profile(options.profile), (context or RobotContext()).control_dt
        self.command_dt, self.timeout_s = options.command_dt, options.timeout_s
        known = self.profile.arms
        arms = _by_arm(known, options.arms, "arms") or dict.fromkeys(known or [""], ArmTopics())
        grippers = _by_arm(known, options.grippers, "grippers")
        self._fingers = self._by_place({name: each.fingers for name, each in grippers.items() if each.fingers})
        self._cameras = dict(options.cameras)
        self._joint_topics = dict.fromkeys(topics.joint_topic for topics in arms.values())
        self._positions: dict[str, float] = {}  # of every joint that a message named
        self._commanded_m = self.profile.openings_m.copy()
        self._stopped = False
        self._bridges = [Bridge(*self._server, CONNECT_S)]
        self._bridge = self._bridges[0]
        try:
            self._listen()
            self._arms = [
                (joints, _ros.ArmPublisher(self._bridge, arm, arms[name], options.command_dt))
                for name, arm, joints, _ in self.profile.parts
            ]
            self._grippers = self._by_place(
                {name: _ros.GripperPublisher(self._bridge_for(each), each) for name, each in grippers.items()}
            )
            self._base = None if options.base_topic is None else self._base_publisher(options.base_topic)
        except (RobotError, ValueError, ImportError):
            self._close()
            raise

    def observe(self) -> Observation:
        """The newest value of each sensor; the time stamp is that of the oldest of these values."""
        since_s, topics = time.monotonic() - self.timeout_s, [*self._joint_topics, *self._cameras.values()]
        seen = {topic: self._bridge.newest(topic, since_s, self.timeout_s) for topic in topics}
        obs = proprioception(self.profile, self.qpos(), self._openings_m())
        obs |= {camera: seen[topic][1] for camera, topic in self._cameras.items()}
        return Observation(obs, None, min(stamp_s for stamp_s, _ in seen.values()))

    def qpos(self) -> Float[np.ndarray, " joints"]:
        """Joint positions received last [rad]."""
        positions = self._positions
        return np.array([positions[name] for name in self.profile.joint_names])

    def command(self, command: Command) -> None:
        """Send each arm's joint positions, due one command period from now, and the openings that have changed."""
        if self._stopped:
            raise RobotError("the robot was stopped; it accepts no further commands")
        heard_s = min(self._bridge.newest(topic, 0.0, 0.0)[0] for topic in self._joint_topics)
        silent_s = time.monotonic() - heard_s
        if silent_s > self.timeout_s or not self._bridge.connected:
            raise RobotError(f"no joint state for {silent_s:.2f} s")
        for joints, arm in self._arms:
            arm.send(command.joint_position_rad[joints])
        openings_m = np.broadcast_to(command.gripper_opening_m, self._commanded_m.shape)
        for place in np.flatnonzero(np.isfinite(openings_m)).tolist():
            self._commanded_m[place] = openings_m[place]
            if place in self._grippers:
                self._grippers[place].send(float(openings_m[place]))
        if self._base is not None and command.base_velocity.size:
            self._base.publish(_ros.plain(_ros.base_twist(command.base_velocity)))

    def stop(self) -> None:
        """Command the current position and zero velocity, and disconnect."""
        if self._stopped:
            return
        self._stopped = True
        if self._bridge.connected:
            measured = self.qpos()
            for joints, arm in self._arms:
                arm.hold(measured[joints])
            if self._base is not None:
                self._base.publish(_ros.plain(_ros.base_twist(np.zeros(len(self.profile.base_velocity)))))
        self._close()

    def _close(self) -> None:
        for bridge in self._bridges:
            bridge.close()

    def _bridge_for(self, topics: GripperTopics) -> Bridge:
        """The connection of a gripper: a separate one for an action.

        Unless `send_action_goals_in_new_thread` is set, a server reads no message of a connection while a goal of it is
        pursued, so the arm's commands would wait for the gripper.
        """
        if topics.action is None:
            return self._bridge
        if self._bridge.ros1:
            raise RobotError(f"gripper action {topics.action}: rosbridge of ROS 1 has no actions; give its `topic`")
        self._bridges.append(Bridge(*self._server, CONNECT_S))
        return self._bridges[-1]

    def _by_place(self, named: Mapping[str, Any]) -> dict[int, Any]:
        """The entries of the arms that have a gripper, by its place in `gripper_opening_m`."""
        parts = self.profile.parts
        return {place.start: named[name] for name, _, _, place in parts if name in named and place.start < place.stop}

    def _base_publisher(self, topic: str) -> Any:
        directions = len(self.profile.base_velocity)
        if not directions:
            raise ConfigError(f"robot: base_topic {topic}: the profile {self.profile.name} has no `base_velocity`")
        _ros.base_twist(np.zeros(directions))  # raises if a Twist can't have this number of directions
        return self._bridge.publisher(topic, "geometry_msgs/Twist")

    def _openings_m(self) -> Float[np.ndarray, " grippers"]:
        """Openings by the fingers' joints, or as commanded last if no fingers are named [m]."""
        positions, openings_m = self._positions, self._commanded_m.copy()
        for place, fingers in self._fingers.items():
            openings_m[place] = sum(positions[name] for name in fingers)
        return openings_m

    def _listen(self) -> None:
        """Subscribe, and wait until every camera has sent an image, and every joint and finger is known."""
        for topic in self._joint_topics:
            self._bridge.listen(topic, "sensor_msgs/JointState", self._receive_joints)
        for topic in dict.fromkeys(self._cameras.values()):
            compressed = topic.endswith("/compressed")
            kind = "sensor_msgs/CompressedImage" if compressed else "sensor_msgs/Image"
            self._bridge.listen(topic, kind, _ros.compressed_image if compressed else _ros.image)
        needed = [*self.profile.joint_names, *(name for fingers in self._fingers.values() for name in fingers)]
        if not self._bridge.wait_for(lambda: self._positions.keys() >= {*needed}, CONNECT_S):
            if not self._positions:
                raise RobotError(f"no message on topic {', '.join(self._joint_topics)} for {CONNECT_S:g} s")
            raise RobotError(
                f"the JointState never reports {', '.join(name for name in needed if name not in self._positions)}, which "
                f"the profile and the grippers' fingers name; it has: {', '.join(self._positions)}"
            )
        for topic in (*self._joint_topics, *self._cameras.values()):
            self._bridge.newest(topic, 0.0, CONNECT_S)

    def _receive_joints(self, message: Mapping[str, Any]) -> bool | None:
        """Store the joint and finger positions in a message; None if it has no joint of this robot's arms.

        Raises:
            ValueError: a message has only some joints of an arm, so the driver is broken.
        """
        positions = dict(zip(message["name"], message["position"], strict=True))
        found = None
        for _, arm, _, _ in self.profile.parts:
            missing = [name for name in arm.joint_names if name not in positions]
            if len(missing) == arm.joints:
                continue  # a gripper, or another arm, may publish on the same topic
            if missing:
                raise ValueError(f"JointState lacks {missing[0]!r}; it has: {', '.join(positions)}")
            found = True
        self._positions = self._positions | positions
        return found


def _by_arm(arms: Mapping[str, Any], given: Mapping[str, Any], what: str) -> dict[str, Any]:
    """The entries in the order of the profile's arms; the entry of a robot of one arm under the name ''."""
    if not given:
        return {}
    if not arms:
        if len(given) > 1:
            raise ConfigError(f"robot: {what} names {', '.join(given)}; the profile has one arm: give one entry")
        return {"": next(iter(given.values()))}
    if unknown := sorted(set(given) - set(arms)):
        raise ConfigError(f"robot: {what} names {unknown[0]!r}; the profile's arms are {', '.join(arms)}")
    if what == "arms" and (missing := [name for name in arms if name not in given]):
        raise ConfigError(f"robot: arms lacks {missing[0]!r}; give the topics of each of {', '.join(arms)}")
    return {name: given[name] for name in arms if name in given}
