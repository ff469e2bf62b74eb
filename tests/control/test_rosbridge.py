"""Arms behind rosbridge, against a stub of it."""

import json
import time
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from robopolicy.components import ConfigError
from robopolicy.control.kinematics import tool_pose
from robopolicy.control.profile import RobotProfile, read_profile
from robopolicy.control.robot import RobotError
from robopolicy.control.robots._bridge import StampClock
from robopolicy.control.robots._ros import base_twist, image, joint_trajectory
from robopolicy.control.robots.rosbridge import ArmTopics, GripperTopics, RosbridgeOptions, RosbridgeRobot
from robopolicy.types import Command
from tests.rosbridge import StubRosbridge
from tests.rosbridge_recording import FrameServer, exchange, read_recording, replayer
from tests.waiting import PATIENCE_S, wait_until

HAND = GripperTopics(topic="/gripper", fingers=("finger_1", "finger_2"))


@pytest.fixture
def bridge(panda: RobotProfile) -> Iterator[StubRosbridge]:
    with StubRosbridge(panda) as made:
        yield made


def options_of(bridge: StubRosbridge, **options: object) -> RosbridgeOptions:
    return RosbridgeOptions(f"127.0.0.1:{bridge.port}", **{"timeout_s": PATIENCE_S} | options)  # type: ignore[arg-type]


def test_joints_come_by_name_and_points_are_due_one_period_apart(bridge, panda):
    """Guards against: joints taken by place; a trajectory whose first point is due at once, at which the controller jumps."""
    robot = RosbridgeRobot(options_of(bridge, grippers={"hand": HAND}, cameras={"front": "/camera"}))
    seen = robot.observe()
    np.testing.assert_allclose(seen.obs["qpos"], panda.home_rad, atol=1e-6)
    np.testing.assert_allclose(seen.obs["gripper"], [0.08], atol=1e-6)
    np.testing.assert_array_equal(seen.obs["front"], np.tile(np.uint8([30, 20, 10]), (4, 8, 1)))
    target = np.add(panda.home_rad, 0.01)
    robot.command(Command(target, 0.02, 0.0))
    wait_until(lambda: np.allclose(robot.qpos(), target))
    sent = bridge.sent(ArmTopics().command_topic)
    assert sent[0]["joint_names"] == list(panda.joint_names)
    due = {"sec": 0, "nanosec": 10_000_000}
    assert sent[0]["points"][0]["time_from_start"] == due | {"secs": 0, "nsecs": 10_000_000}
    wait_until(lambda: {"data": 0.02} in bridge.sent("/gripper"))
    bridge.silent, robot.timeout_s = True, 0.2
    time.sleep(0.4)
    with pytest.raises(RobotError, match="no joint state for"):
        robot.command(Command(target, 0.02, 0.0))
    robot.stop()


def test_arm_and_gripper_may_publish_apart_on_one_topic(panda):
    """Guards against: /joint_states with several publishers, where the gripper's message is taken for a broken arm."""
    with StubRosbridge(panda, split=True) as bridge:
        robot = RosbridgeRobot(options_of(bridge, grippers={"hand": HAND}))
        for _ in range(3):
            seen = robot.observe()
        np.testing.assert_allclose(seen.obs["qpos"], panda.home_rad, atol=1e-6)
        np.testing.assert_allclose(seen.obs["gripper"], [0.08], atol=1e-6)
        bridge.arms[0].remove("panda_joint3")
        wait_until(lambda: robot._bridge.lost)
        with pytest.raises(RobotError, match="JointState lacks 'panda_joint3'"):
            robot.observe()
        robot.stop()


def test_two_arms_have_topics_and_gripper_actions_of_their_own():
    """Guards against: the second arm's joints, or its gripper, that are never commanded."""
    pair = read_profile("viperx_pair")
    with StubRosbridge(pair, split=True) as bridge:
        arms = {name: ArmTopics(command_topic=f"/{name}/controller") for name in ("left", "right")}
        grippers = {
            "left": GripperTopics(action="/left_gripper/cmd", fingers=("finger_1", "finger_2")),
            "right": GripperTopics(action="/right_gripper/cmd", scale=1.0, fingers=("finger_3", "finger_4")),
        }
        robot = RosbridgeRobot(options_of(bridge, profile="viperx_pair", arms=arms, grippers=grippers))
        target = np.add(pair.home_rad, np.arange(12) / 1000)
        robot.command(Command(target, [0.05, 0.01], 0.0))
        wait_until(lambda: np.allclose(robot.observe().obs["gripper"], [0.05, 0.01], atol=1e-6))
        wait_until(lambda: np.allclose(robot.qpos(), target))
        np.testing.assert_allclose(bridge.sent("/right/controller")[0]["points"][0]["positions"], target[6:])
        goals = [each for each in bridge.received if each["op"] == "send_action_goal"]
        assert {goal["action_type"] for goal in goals} == {"control_msgs/action/GripperCommand"}
        openings_m = {goal["action"]: goal["args"]["command"] for goal in goals}
        assert openings_m["/left_gripper/cmd"] == {"position": 0.05, "max_effort": 20.0}
        assert openings_m["/right_gripper/cmd"] == {"position": 0.01, "max_effort": 20.0}
        assert set(robot.observe().obs) == {"qpos", "gripper", "left_ee_pose", "right_ee_pose"}
        robot.command(Command(target, [0.05, 0.01], 0.02))
        time.sleep(0.1)
        assert len([each for each in bridge.received if each["op"] == "send_action_goal"]) == len(goals)
        robot.stop()


def test_a_gripper_goal_does_not_delay_the_arm(bridge, panda):
    """Guards against: arm commands that wait behind a gripper's goal (4 s late on a genuine server); goals that queue up."""
    hand = GripperTopics(action="/gripper/cmd", fingers=("finger_1", "finger_2"))
    robot = RosbridgeRobot(options_of(bridge, grippers={"hand": hand}))
    bridge.goals_end.clear()
    for step in range(1, 4):
        robot.command(Command(np.add(panda.home_rad, 0.01 * step), 0.08 - 0.02 * step, 0.0))
    wait_until(lambda: np.allclose(robot.qpos(), np.add(panda.home_rad, 0.03)))
    goals = [each for each in bridge.received if each["op"] == "send_action_goal"]
    assert [goal["args"]["command"]["position"] for goal in goals] == [pytest.approx(0.06)]
    bridge.goals_end.set()
    wait_until(lambda: np.allclose(robot.observe().obs["gripper"], 0.02))
    robot.stop()


@pytest.mark.parametrize("command", ["joint_group_position", "joint_group_velocity", "pose", "twist"])
def test_commands_of_every_type_mean_the_same_motion(bridge, panda, command):
    """Guards against: a velocity in place of a position, a pose in another frame or quaternion order."""
    robot = RosbridgeRobot(options_of(bridge, arms={"arm": ArmTopics(command_topic="/command", command=command)}))
    home, target = np.asarray(panda.home_rad), np.add(panda.home_rad, 0.002)
    robot.command(Command(home, np.nan, 0.0))
    robot.command(Command(target, np.nan, 0.01))
    wait_until(lambda: len(bridge.sent("/command")) == 2)
    message = bridge.sent("/command")[1]
    (before, _), (after, rotation) = tool_pose(panda.arm, home), tool_pose(panda.arm, target)
    if command == "joint_group_position":
        np.testing.assert_allclose(message["data"], target)
    elif command == "joint_group_velocity":
        np.testing.assert_allclose(message["data"], 0.2 * np.ones(7))
    elif command == "pose":
        np.testing.assert_allclose([message["pose"]["position"][axis] for axis in "xyz"], after)
        quaternion = np.array([message["pose"]["orientation"][axis] for axis in "wxyz"])
        assert quaternion @ quaternion == pytest.approx(1.0)
        assert 1 - 2 * (quaternion[2] ** 2 + quaternion[3] ** 2) == pytest.approx(rotation[0, 0])
    else:
        np.testing.assert_allclose([message["twist"]["linear"][axis] for axis in "xyz"], (after - before) / 0.01)
    robot.stop()
    if command in ("joint_group_velocity", "twist"):
        wait_until(lambda: len(bridge.sent("/command")) == 3)  # the last one is rest
        last = bridge.sent("/command")[2]
        assert not np.any(last["data"] if "data" in last else list(last["twist"]["linear"].values()))


def test_stamps_come_from_the_headers_on_the_loops_clock(panda):
    """Guards against: an observation stamped at its arrival, or on the robot's own clock."""
    with StubRosbridge(panda, stamp_ahead_s=1e6) as bridge:
        robot = RosbridgeRobot(options_of(bridge, cameras={"front": "/camera/compressed"}))
        for _ in range(5):
            stamp_s = robot.observe().stamp_s
            assert -0.2 < stamp_s - time.monotonic() <= 0
        np.testing.assert_array_equal(robot.observe().obs["front"], np.full((4, 8, 3), (30, 20, 10), np.uint8))
        robot.stop()
    clock = StampClock()
    delays = [0.05, 0.01, 0.03]
    stamped = [
        clock.of({"header": {"stamp": {"sec": 7 + n, "nanosec": 0}}}, 100.0 + n + d) for n, d in enumerate(delays)
    ]
    assert stamped[1] == pytest.approx(101.01)
    assert stamped[2] == pytest.approx(102.01, abs=1e-3), "later by its own delay only"
    assert clock.of({"data": ""}, 200.0) == 200.0


def test_a_base_takes_a_twist(bridge, panda, tmp_path):
    """Guards against: a mobile base that keeps driving after the robot was stopped; one without limits."""
    with pytest.raises(ConfigError, match="base_topic /cmd_vel: the profile panda has no `base_velocity`"):
        RosbridgeRobot(options_of(bridge, base_topic="/cmd_vel"))
    mobile = replace(panda, base_velocity=(1.0, 1.0), base_acceleration=(1.0, 1.0)).to_dict()
    (tmp_path / "mobile.yaml").write_text(json.dumps(mobile))
    robot = RosbridgeRobot(options_of(bridge, base_topic="/cmd_vel", profile=str(tmp_path / "mobile.yaml")))
    robot.command(Command(np.asarray(panda.home_rad), np.nan, 0.0, np.array([0.2, 0.1])))
    wait_until(lambda: bool(bridge.sent("/cmd_vel")))
    assert bridge.sent("/cmd_vel")[0]["linear"]["x"] == 0.2
    assert bridge.sent("/cmd_vel")[0]["angular"]["z"] == 0.1
    robot.stop()
    wait_until(lambda: bridge.sent("/cmd_vel")[-1]["linear"]["x"] == 0.0)
    with pytest.raises(ValueError, match="a base of 4 directions has no Twist"):
        base_twist(np.zeros(4))


@pytest.mark.parametrize(
    ("encoding", "pixel"),
    [("rgb8", (1, 2, 3)), ("bgr8", (3, 2, 1)), ("rgba8", (1, 2, 3)), ("bgra8", (3, 2, 1)), ("mono8", (1, 1, 1))],
)
def test_images_of_each_encoding_become_rgb(encoding, pixel):
    """Guards against: red and blue exchanged, a row's padding taken for pixels."""
    import base64

    width = {"rgba8": 4, "bgra8": 4, "mono8": 1}.get(encoding, 3)
    row = bytes([1, 2, 3, 255][:width]) * 2 + b"\0"
    message = {"height": 2, "width": 2, "step": len(row), "encoding": encoding}
    found = image(message | {"data": base64.b64encode(row * 2).decode()})
    np.testing.assert_array_equal(found, np.tile(np.uint8(pixel), (2, 2, 1)))
    with pytest.raises(ValueError, match="images come as 'yuv422'; expected one of rgb8"):
        image(message | {"encoding": "yuv422", "data": ""})
    with pytest.raises(ValueError, match="holds 0 bytes"):
        image(message | {"data": ""})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"arms": {"arm": ArmTopics(joint_topic="/nowhere")}}, "no message on topic /nowhere for 0.3 s"),
        ({"cameras": {"front": "/nowhere"}}, "no message on topic /nowhere for 0.3 s"),
        ({"grippers": {"hand": GripperTopics(topic="/g", fingers=("thumb",))}}, "never reports thumb"),
        ({"profile": "fr3"}, "never reports fr3_joint1"),
        ({"profile": "viperx_pair", "arms": {"left": ArmTopics()}}, "arms lacks 'right'"),
        (
            {"profile": "viperx_pair", "grippers": {"middle": HAND}},
            "grippers names 'middle'; the profile's arms are left",
        ),
        ({"grippers": {"a": HAND, "b": HAND}}, "grippers names a, b; the profile has one arm"),
        ({"profile": "ur5e", "arms": {"arm": ArmTopics(command="pose")}}, "never reports shoulder_pan_joint"),
    ],
)
def test_a_wrong_robot_file_is_refused_in_one_line(panda, monkeypatch, options, message):
    """Guards against: a robot that starts to move on topics, joints or grippers that are not there."""
    from robopolicy.control.robots import rosbridge

    monkeypatch.setattr(rosbridge, "CONNECT_S", 0.3)
    with StubRosbridge(panda) as bridge:
        publish = bridge._publish
        monkeypatch.setattr(bridge, "_publish", lambda *of: None if "nowhere" in of[1] else publish(*of))
        with pytest.raises((RobotError, ConfigError), match=message):
            RosbridgeRobot(options_of(bridge, **options))
        assert not [each for each in bridge.received if each["op"] == "publish"]


def test_a_gripper_needs_a_topic_or_an_action():
    """Guards against: a gripper that is described and never commanded."""
    with pytest.raises(ConfigError, match="needs either `topic` or `action`"):
        GripperTopics()


def test_a_trajectory_is_due_after_its_period():
    """Guards against: nanoseconds beyond one second; ROS 2's field names alone, with which ROS 1 takes it as due at once."""
    (point,) = joint_trajectory(["a"], np.zeros(1), 1.5)["points"]
    assert point["time_from_start"] == dict(sec=1, nanosec=500_000_000, secs=1, nsecs=500_000_000)


@pytest.mark.parametrize("name", ["ros1", "ros2"])
def test_the_exchange_with_a_genuine_server_repeats(name, panda, tmp_path):
    """Guards against: a stub that takes what no rosbridge server takes, and messages as no server sends them.

    A genuine server accepted the recorded frames of the client, and the robot behind it followed.
    """
    note, frames = read_recording(name)
    differences: list[str] = []
    with FrameServer(replayer(frames, differences)) as server:
        before, after = exchange(server.address, tmp_path, action=name == "ros2")
    assert not differences, f"{note}\n{differences[0]}"
    np.testing.assert_allclose(before.obs["qpos"], panda.home_rad, atol=1e-6)
    np.testing.assert_allclose(after.obs["qpos"], np.add(panda.home_rad, 0.05), atol=1e-6)
    np.testing.assert_allclose([before.obs["gripper"][0], after.obs["gripper"][0]], [0.08, 0.02], atol=1e-6)
    for camera in ("front", "wrist"):
        np.testing.assert_array_equal(after.obs[camera], np.tile(np.uint8([30, 20, 10]), (4, 8, 1)))
