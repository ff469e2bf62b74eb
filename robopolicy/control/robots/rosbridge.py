"""ROS 2 arms through rosbridge's JSON, described by a `robot.yaml`; needs no ROS on this machine.

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

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

from robopolicy.components import ConfigError, Options, option, register
from robopolicy.control.profile import read_profile
from robopolicy.control.robot import RobotError
from robopolicy.control.robots import _ros
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
    """Name of a control_msgs/action/GripperCommand server."""
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
    """Destination of geometry_msgs/Twist for a mobile base of 2 (forward, turn) or 3 (forward, left, turn) directions."""
    timeout_s: float = option(0.25, "> 0")
    """Longest silence of the joints or a camera [s]."""


@register("robot", "rosbridge", RosbridgeOptions)
class RosbridgeRobot:
    """ROS 2 arms and grippers behind rosbridge.

    Args:
        options: address of the server, and the topics.
        context: facts about the run; None: the defaults.
    """

    def __init__(self, options: RosbridgeOptions, context: RobotContext | None = None) -> None:
        try:
            import roslibpy
        except ImportError:
            raise ImportError("a robot behind rosbridge needs roslibpy; pip install 'robopolicy[robot]'") from None
        host, port = host_and_port(options.address, "--robot rosbridge://")
        self.profile, self.control_dt = read_profile(options.profile), (context or RobotContext()).control_dt
        self.command_dt, self.timeout_s = options.command_dt, options.timeout_s
        arms = _by_arm(self.profile.arms, options.arms, "arms") or dict.fromkeys(self.profile.arms or [""], ArmTopics())
        self._received: dict[str, tuple[float, Any]] = {}
        self._places = {name: place for place, name in enumerate(self.profile.joint_names)}
        self._qpos = np.full(self.profile.joints, np.nan)
        self._openings_m = self.profile.openings_m.copy()
        self._named: dict[str, None] = {}  # every joint that a message named
        self._changed = threading.Condition()
        self._stopped = False
        self._lost: str | None = None
        self._cameras = dict(options.cameras)
        self._ros = roslibpy.Ros(host=host, port=port, is_secure=options.tls)
        try:
            self._ros.run(timeout=int(CONNECT_S) or 1)
        except Exception as error:  # roslibpy raises its own
            raise RobotError(f"no rosbridge at {host}:{port}: {error}") from None
        self._arms = [
            (joints, _ros.ArmPublisher(self._topic, arm, topics, options.command_dt))
            for (name, arm, joints, _), topics in zip(self.profile.parts, arms.values(), strict=True)
        ]
        self._joint_topics = dict.fromkeys(topics.joint_topic for topics in arms.values())
        try:
            self._add_grippers(_by_arm(self.profile.arms, options.grippers, "grippers"))
            base = options.base_topic
            self._base = None if base is None else self._topic(base, "geometry_msgs/Twist")
            for topic in self._joint_topics:
                self._listen(topic, "sensor_msgs/JointState", self._joints)
            for key, topic in options.cameras.items():
                compressed = topic.endswith("/compressed")
                kind = "sensor_msgs/CompressedImage" if compressed else "sensor_msgs/Image"
                self._listen(topic, kind, _ros.compressed_image if compressed else _ros.image, key)
            self._await_first()
        except (RobotError, ValueError, ImportError):
            self._ros.close()
            raise

    def _add_grippers(self, topics: Mapping[str, GripperTopics]) -> None:
        """Prepare the grippers of the arms that have topics, by their places in `gripper_opening_m`."""
        used = {
            place.start: topics[name]
            for name, _, _, place in self.profile.parts
            if name in topics and place.start < place.stop
        }
        self._grippers = {place: _ros.GripperPublisher(self._ros, self._topic, each) for place, each in used.items()}
        self._fingers = {place: each.fingers for place, each in used.items() if each.fingers}
        self._openings_m[list(self._fingers)] = np.nan  # until they are received

    def observe(self) -> Observation:
        """The newest value of each sensor; the time stamp is that of the oldest of these values."""
        sources = [*self._joint_topics, *self._cameras]
        seen = [self._wait_for(source, time.monotonic() - self.timeout_s) for source in sources]
        obs = proprioception(self.profile, self.qpos(), self._openings_m)
        obs |= {source: value for source, (_, value) in zip(sources, seen, strict=True) if source in self._cameras}
        return Observation(obs, None, min(stamp_s for stamp_s, _ in seen))

    def qpos(self) -> Float[np.ndarray, " joints"]:
        """Joint positions received last [rad]."""
        return self._qpos.copy()

    def command(self, command: Command) -> None:
        """Send each arm's joint positions, due one command period from now, and the openings that have changed."""
        if self._stopped:
            raise RobotError("the robot was stopped; it takes no further command")
        heard_s = min(self._received[topic][0] for topic in self._joint_topics)
        silent_s = time.monotonic() - heard_s
        if self._lost or silent_s > self.timeout_s or not self._ros.is_connected:
            raise RobotError(self._lost or f"no joint state for {silent_s:.2f} s")
        for joints, arm in self._arms:
            arm.send(command.joint_position_rad[joints])
        openings_m = np.broadcast_to(command.gripper_opening_m, self._openings_m.shape)
        for place in np.flatnonzero(np.isfinite(openings_m)):
            if place in self._grippers:
                self._grippers[place].send(float(openings_m[place]))
            if place not in self._fingers:
                self._openings_m[place] = openings_m[place]
        if self._base is not None and command.base_velocity.size:
            self._base.publish(_ros.plain(_ros.base_twist(command.base_velocity)))

    def stop(self) -> None:
        """Command the current position and zero velocity, and disconnect."""
        if not self._stopped:
            self._stopped = True
            if self._ros.is_connected:
                for joints, arm in self._arms:
                    arm.hold(self._qpos[joints])
                if self._base is not None:
                    self._base.publish(_ros.plain(_ros.base_twist(np.zeros(len(self.profile.base_velocity)))))
            self._ros.close()

    def _topic(self, name: str, kind: str) -> Any:
        import roslibpy

        return roslibpy.Topic(self._ros, name, kind)

    def _listen(
        self, topic: str, kind: str, decode: Callable[[Mapping[str, Any]], Any], key: str | None = None
    ) -> None:
        """Keep the newest decoded message of a topic, with its time on the loop's clock."""
        clock = _ros.StampClock()

        def receive(message: Mapping[str, Any]) -> None:
            try:
                value = decode(message)
            except (KeyError, ValueError, TypeError, ImportError) as error:
                reason = f"lacks {error}" if isinstance(error, KeyError) else str(error)
                self._lost = f"{topic}: {reason}"
                value = None
            with self._changed:
                if value is not None:
                    self._received[key or topic] = (clock.of(message, time.monotonic()), value)
                self._changed.notify_all()

        self._topic(topic, kind).subscribe(receive)

    def _await_first(self) -> None:
        """Wait until every camera has sent an image, and every joint and finger is known."""
        with self._changed:
            known = self._changed.wait_for(
                lambda: (
                    self._lost is not None or (np.isfinite(self._qpos).all() and np.isfinite(self._openings_m).all())
                ),
                CONNECT_S,
            )
        if self._lost or not (known or self._named):
            topics = ", ".join(self._joint_topics)
            raise RobotError(self._lost or f"no message on topic {topics} for {CONNECT_S:g} s")
        if not known:
            needed = [*self._places, *(name for names in self._fingers.values() for name in names)]
            unknown = [name for name in needed if name not in self._named]
            raise RobotError(
                f"the JointState never reports {', '.join(unknown)}, which the profile and the grippers' fingers name; it "
                f"has: {', '.join(self._named)}"
            )
        for source in (*self._joint_topics, *self._cameras):
            self._wait_for(source, after_s=0.0, timeout_s=CONNECT_S)

    def _wait_for(self, source: str, after_s: float, timeout_s: float | None = None) -> tuple[float, Any]:
        """The newest value of a source and its time, once it is newer than `after_s`."""
        limit_s = self.timeout_s if timeout_s is None else timeout_s
        with self._changed:
            arrived = self._changed.wait_for(
                lambda: self._lost is not None or self._received.get(source, (-1.0, None))[0] >= after_s, limit_s
            )
        if self._lost or not arrived or source not in self._received:
            topic = self._cameras.get(source, source)
            raise RobotError(self._lost or f"no message on topic {topic} for {limit_s:g} s")
        return self._received[source]

    def _joints(self, message: Mapping[str, Any]) -> bool | None:
        """Store the joint and finger positions in a message; None if it has none of this robot's.

        Raises:
            ValueError: a message has only some joints of an arm, so the driver is broken.
        """
        positions = dict(zip(message["name"], message["position"], strict=True))
        self._named |= dict.fromkeys(positions)
        for place, fingers in self._fingers.items():
            if set(fingers) <= set(positions):
                self._openings_m[place] = float(sum(positions[name] for name in fingers))
        found = False
        for _, arm, _, _ in self.profile.parts:
            if not set(arm.joint_names) & set(positions):
                continue  # a gripper, or another arm, may publish on the same topic
            if missing := [name for name in arm.joint_names if name not in positions]:
                raise ValueError(f"JointState lacks {missing[0]!r}; it has: {', '.join(positions)}")
            for name in arm.joint_names:
                self._qpos[self._places[name]] = positions[name]
            found = True
        return found or None


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
