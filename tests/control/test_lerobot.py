"""LeRobot's robots, against a stand-in for its `Robot` class; the environment with LeRobot tests its own."""

import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from robopolicy.components import ConfigError, build, options_from
from robopolicy.control.profile import read_profile
from robopolicy.control.robot import RobotError
from robopolicy.control.robots.base import RobotContext
from robopolicy.control.robots.lerobot import LerobotOptions, LerobotRobot
from robopolicy.testing.robot import CHECKS
from robopolicy.types import Command

PROFILE = read_profile("so101")


class StandIn:
    """As LeRobot's so101_follower: degrees, and a gripper of 0 .. 100; reaches every goal at once."""

    def __init__(self) -> None:
        self.is_connected = False
        self.values: dict[str, float] = {f"{name}.pos": 0.0 for name in PROFILE.joint_names} | {"gripper.pos": 60.0}
        self.action_features: dict[str, Any] = dict.fromkeys(self.values, float)
        self.actions: list[dict[str, Any]] = []
        self.fails = False

    def connect(self, calibrate: bool = True) -> None:
        """Connect; never calibrate by surprise."""
        assert not calibrate
        self.is_connected = True

    def get_observation(self) -> dict[str, Any]:
        """Joints and one image."""
        if self.fails:
            raise ConnectionError("there is no status packet!")
        return self.values | {"front": np.full((4, 6, 3), 7, np.uint8)}

    def send_action(self, action: dict[str, Any]) -> dict[str, Any]:
        """Reach the goal."""
        self.actions.append(action)
        self.values |= action
        return action

    def disconnect(self) -> None:
        """End."""
        self.is_connected = False


@pytest.fixture
def stand_in() -> StandIn:
    return StandIn()


@pytest.fixture
def robot(stand_in: StandIn) -> Iterator[LerobotRobot]:
    made = LerobotRobot(stand_in, LerobotOptions(command_dt=0.01, timeout_s=2.0), RobotContext(control_dt=0.05))
    yield made
    made.close()
    assert not stand_in.is_connected


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_a_robot_of_lerobots_keeps_the_contract(robot, check):
    """Guards against: an adapter that works in the loop only by accident."""
    check(robot)


def test_units_and_names_are_lerobots(robot, stand_in):
    """Guards against: radians sent as degrees, at which the arm collapses; a gripper that opens the wrong way."""
    robot.command(Command(np.array([0.1, -0.2, 0.3, 0.0, 0.5]), PROFILE.opening_m / 4, 0.0))
    ends_s = time.monotonic() + 5
    while not stand_in.actions and time.monotonic() < ends_s:
        time.sleep(0.01)
    assert stand_in.actions[0]["shoulder_lift.pos"] == pytest.approx(np.rad2deg(-0.2))
    assert stand_in.actions[0]["gripper.pos"] == pytest.approx(25.0)
    seen = robot.observe().obs
    np.testing.assert_allclose(seen["qpos"], [0.1, -0.2, 0.3, 0.0, 0.5], atol=1e-6)
    np.testing.assert_allclose(seen["gripper"], [PROFILE.opening_m / 4])
    assert seen["front"].shape == (4, 6, 3)


@pytest.mark.parametrize("unit", ["radians", "normalized"])
def test_other_units_come_back_as_they_were_sent(stand_in, unit):
    """Guards against: a unit that is converted on the way out and not on the way in."""
    robot = LerobotRobot(stand_in, LerobotOptions(unit=unit, command_dt=0.01, timeout_s=2.0))
    target = np.array([0.1, -0.2, 0.3, 0.0, 0.5])
    robot.command(Command(target, np.nan, 0.0))
    ends_s = time.monotonic() + 5
    while not stand_in.actions and time.monotonic() < ends_s:
        time.sleep(0.01)
    np.testing.assert_allclose(robot.observe().obs["qpos"], target, atol=1e-6)
    assert "gripper.pos" not in stand_in.actions[0]
    robot.close()


def test_the_cause_of_a_failed_bus_is_shown(robot, stand_in):
    """Guards against: a crash in the driver's thread that shows as silence."""
    stand_in.fails = True
    with pytest.raises(RobotError, match="LeRobot's robot failed: ConnectionError: there is no status packet!"):
        robot.observe()
    with pytest.raises(RobotError, match="no status packet"):
        robot.command(Command(np.zeros(5), np.nan, 0.0))


def test_a_robot_with_other_joints_is_refused(stand_in):
    """Guards against: a profile of another arm, whose limits hold for nothing."""
    del stand_in.action_features["elbow_flex.pos"]
    with pytest.raises(
        ConfigError, match=r"has no 'elbow_flex.pos', which profile so101 names; it has: shoulder_pan.pos"
    ):
        LerobotRobot(stand_in, LerobotOptions())
    with pytest.raises(ConfigError, match=r"needs LeRobot in this environment|does not fit"):
        build(options_from("robot", "lerobot", {"type": "nobody"}), RobotContext())
