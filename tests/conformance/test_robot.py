"""What every robot owes the control loop, whatever it is made of."""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing

import numpy as np
import pytest

from robopolicy.control.profile import read_profile
from robopolicy.control.robot import Robot, RobotError
from robopolicy.control.robot_server import RobotServer
from robopolicy.control.robots import FakeRobot, WebsocketRobot
from robopolicy.control.rosbridge import RosbridgeRobot
from robopolicy.types import Command
from tests.rosbridge import StubRosbridge

PROFILE = read_profile("panda")


def make_fake(stack: ExitStack) -> Robot:
    return FakeRobot(PROFILE, opening_m=0.06)


def make_networked(stack: ExitStack) -> Robot:
    server = stack.enter_context(RobotServer(FakeRobot(PROFILE, opening_m=0.06), port=0))
    return stack.enter_context(WebsocketRobot(port=server.port))


def make_rosbridge(stack: ExitStack) -> Robot:
    bridge = stack.enter_context(StubRosbridge(PROFILE))
    fingers = ("finger_1", "finger_2")
    return RosbridgeRobot(PROFILE, port=bridge.port, finger_joints=fingers, gripper_topic="/gripper")


def make_simulated(stack: ExitStack) -> Robot:
    from robopolicy.sim.robot import SimRobot

    return stack.enter_context(closing(SimRobot("reach", command_dt=0.005, timeout_s=5.0)))


@pytest.fixture(params=[make_fake, make_networked, make_rosbridge, make_simulated], ids=lambda make: make.__name__[5:])
def robot(request: pytest.FixtureRequest) -> Iterator[Robot]:
    make: Callable[[ExitStack], Robot] = request.param
    with ExitStack() as stack:
        yield make(stack)


def move(robot: Robot, joint: int, by_rad: float, seconds: float = 0.5, opening_m: float = 0.04) -> None:
    """Stream commands that turn one joint smoothly."""
    start = np.array(robot.qpos(), np.float64)
    steps = round(seconds / robot.command_dt)
    began_s = time.monotonic()
    for step in range(1, steps + 1):
        target = start.copy()
        target[joint] += by_rad * (1 - np.cos(np.pi * step / steps)) / 2
        stamp_s = began_s + step * robot.command_dt
        robot.command(Command(target, opening_m, stamp_s))
        time.sleep(max(stamp_s - time.monotonic(), 0.0))
    for _ in range(3):
        robot.command(Command(target, opening_m, time.monotonic()))
        time.sleep(robot.command_dt)


def test_a_robot_is_observed_commanded_and_stopped(robot: Robot):
    """A robot that works in the loop only by accident: each is held to the same contract."""
    assert isinstance(robot, Robot)
    assert robot.control_dt >= robot.command_dt > 0

    seen = robot.observe()
    assert set(seen.obs) >= {"qpos", "gripper", "ee_pose"}
    assert seen.obs["qpos"].shape == (robot.profile.joints,)
    assert seen.obs["qpos"].dtype == np.float32
    assert abs(time.monotonic() - seen.stamp_s) < 5.0
    np.testing.assert_allclose(robot.qpos(), seen.obs["qpos"], atol=1e-4)

    before = robot.qpos().copy()
    move(robot, joint=6, by_rad=0.1, opening_m=np.nan)
    time.sleep(0.3)
    turned = robot.qpos() - before
    np.testing.assert_allclose(turned, [0, 0, 0, 0, 0, 0, 0.1], atol=5e-3)
    held = robot.observe().obs["gripper"]
    np.testing.assert_allclose(held, seen.obs["gripper"], atol=2e-3)
    assert held > 0.05
    move(robot, joint=6, by_rad=0.05, opening_m=0.04)
    time.sleep(0.3)
    np.testing.assert_allclose(robot.observe().obs["gripper"], [0.04], atol=2e-3)
    assert robot.observe().stamp_s > seen.stamp_s

    robot.stop()
    robot.stop()
    with pytest.raises(RobotError, match="stopped"):
        robot.command(Command(robot.qpos(), 0.04, time.monotonic()))
