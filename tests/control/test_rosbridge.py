"""An arm behind rosbridge, against a stub of it."""

import time

import numpy as np
import pytest

from robopolicy.control.robot import RobotError
from robopolicy.control.robots.rosbridge import RosbridgeOptions, RosbridgeRobot, joint_trajectory
from robopolicy.types import Command
from tests.rosbridge import StubRosbridge
from tests.waiting import PATIENCE_S, wait_until

FINGERS = ("finger_1", "finger_2")


def test_rosbridge_reads_joints_by_name_and_writes_points_due_one_period_apart(panda):
    """JointState comes in any order; a trajectory whose first point is due at once makes the controller jump."""
    with StubRosbridge(panda) as bridge:
        robot = RosbridgeRobot(
            RosbridgeOptions(
                f"127.0.0.1:{bridge.port}",
                finger_joints=FINGERS,
                gripper_topic="/gripper",
                cameras={"front": "/camera"},
                timeout_s=PATIENCE_S,
            )
        )
        seen = robot.observe()
        np.testing.assert_allclose(seen.obs["qpos"], panda.home_rad, atol=1e-6)
        np.testing.assert_allclose(seen.obs["gripper"], [0.08], atol=1e-6)
        np.testing.assert_array_equal(seen.obs["front"], np.tile(np.uint8([30, 20, 10]), (4, 8, 1)))
        target = np.add(panda.home_rad, 0.01)
        robot.command(Command(target, 0.02, 0.0))
        wait_until(lambda: np.allclose(robot.qpos(), target))
        sent = [m for m in bridge.received if m["op"] == "publish" and "points" in m["msg"]]
        assert sent[0]["msg"]["joint_names"] == list(panda.joint_names)
        assert sent[0]["msg"]["points"][0]["time_from_start"] == {"sec": 0, "nanosec": 10_000_000}
        wait_until(lambda: {"data": 0.02} in [m["msg"] for m in bridge.received if m["op"] == "publish"])
        bridge.silent, robot.timeout_s = True, 0.2
        time.sleep(0.4)
        with pytest.raises(RobotError, match="no joint state for"):
            robot.command(Command(target, 0.02, 0.0))
        robot.stop()


def test_arm_and_gripper_may_speak_apart_on_one_topic(panda):
    """On most ROS robots /joint_states has several publishers; the gripper's message is no broken arm."""
    with StubRosbridge(panda, split=True) as bridge:
        robot = RosbridgeRobot(
            RosbridgeOptions(f"127.0.0.1:{bridge.port}", finger_joints=FINGERS, timeout_s=PATIENCE_S)
        )
        for _ in range(3):
            seen = robot.observe()
        np.testing.assert_allclose(seen.obs["qpos"], panda.home_rad, atol=1e-6)
        np.testing.assert_allclose(seen.obs["gripper"], [0.08], atol=1e-6)
        bridge.names.remove("panda_joint3")
        wait_until(lambda: robot._lost)
        with pytest.raises(RobotError, match="JointState lacks 'panda_joint3'"):
            robot.observe()
        robot.stop()


def test_a_joint_trajectory_counts_its_points_from_one():
    """time_from_start of zero for the first point is refused by ROS controllers."""
    message = joint_trajectory(["a", "b"], np.arange(60.0).reshape(30, 2), rate_hz=20.0)
    due = [p["time_from_start"]["sec"] + 1e-9 * p["time_from_start"]["nanosec"] for p in message["points"]]
    np.testing.assert_allclose(due, (np.arange(30) + 1) / 20)
    assert message["points"][1]["positions"] == [2.0, 3.0]
