"""Every robot against the contract that is shipped in `robopolicy.testing.robot`."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing

import pytest

from robopolicy.components import build, options_from
from robopolicy.control.profile import read_profile
from robopolicy.control.robot import Robot
from robopolicy.control.robot_server import RobotServer
from robopolicy.control.robots.base import RobotContext
from robopolicy.control.robots.fake import FakeRobot
from robopolicy.control.robots.rosbridge import GripperTopics
from robopolicy.testing.robot import CHECKS
from robopolicy.types import Command
from tests.rosbridge import StubRosbridge
from tests.waiting import PATIENCE_S

PROFILE = read_profile("panda")
CONTEXT = RobotContext(deadline_s=PATIENCE_S)


def made(kind: str, **options: object) -> Robot:
    return build(options_from("robot", kind, options), CONTEXT)


def make_fake(stack: ExitStack) -> Robot:
    return made("fake", opening_m=0.06)


def make_two_arms(stack: ExitStack) -> Robot:
    return made("fake", profile="viperx_pair", opening_m=0.03)


def make_networked_pair(stack: ExitStack) -> Robot:
    robot = FakeRobot(read_profile("viperx_pair"), opening_m=0.03)
    server = stack.enter_context(RobotServer(robot, port=0, deadline_s=PATIENCE_S))
    return stack.enter_context(made("websocket", address=f"127.0.0.1:{server.port}", timeout_s=PATIENCE_S))  # type: ignore[arg-type]


def make_stepped_pair(stack: ExitStack) -> Robot:
    options = {"task": "handover", "task_options": {"open_share": 0.5}, "realtime": False, "command_hz": 500.0}
    return stack.enter_context(closing(made("sim", **options)))  # type: ignore[type-var]


def make_networked(stack: ExitStack) -> Robot:
    robot = FakeRobot(PROFILE, opening_m=0.06)
    server = stack.enter_context(RobotServer(robot, port=0, deadline_s=PATIENCE_S))
    address = f"127.0.0.1:{server.port}"
    return stack.enter_context(made("websocket", address=address, timeout_s=PATIENCE_S))  # type: ignore[arg-type]


def make_rosbridge(stack: ExitStack) -> Robot:
    bridge = stack.enter_context(StubRosbridge(PROFILE))
    gripper = GripperTopics(topic="/gripper", fingers=("finger_1", "finger_2"))
    options = {"grippers": {"hand": gripper}, "timeout_s": PATIENCE_S}
    robot = made("rosbridge", address=f"127.0.0.1:{bridge.port}", **options)
    stack.callback(robot.stop)
    return robot


def make_stepped(stack: ExitStack) -> Robot:
    robot = made("sim", task="reach", realtime=False, command_hz=200.0)
    return stack.enter_context(closing(robot))  # type: ignore[type-var]


def make_simulated(stack: ExitStack) -> Robot:
    return stack.enter_context(closing(made("sim", task="reach", command_hz=200.0)))  # type: ignore[type-var]


MAKERS = [
    make_fake,
    make_two_arms,
    make_networked,
    make_networked_pair,
    make_rosbridge,
    make_stepped,
    make_stepped_pair,
    pytest.param(make_simulated, marks=pytest.mark.slow),
]


@pytest.fixture(params=MAKERS, ids=lambda make: make.__name__[5:])
def robot(request: pytest.FixtureRequest) -> Iterator[Robot]:
    make: Callable[[ExitStack], Robot] = request.param
    with ExitStack() as stack:
        yield make(stack)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_a_robot_keeps_its_promise(robot: Robot, check: Callable[[Robot], None]):
    """Guards against: a robot that works in the loop only by accident."""
    check(robot)


class Sluggish(FakeRobot):
    """Breaks one promise after the other."""

    def command(self, command: Command) -> None:
        """Close the gripper, whatever is commanded."""
        self._opening_m = 0.0


def test_the_contract_finds_a_robot_that_ignores_its_commands():
    """Guards against: checks that can't fail."""
    broken = [check.__name__ for check in CHECKS if fails(check, Sluggish(PROFILE, opening_m=0.06))]
    assert broken == [
        "follows_commands",
        "leaves_the_gripper_at_nan",
        "opens_the_gripper_as_commanded",
        "takes_no_command_after_stop",
    ]


def fails(check: Callable[[Robot], None], robot: Robot) -> bool:
    try:
        check(robot)
    except AssertionError:
        return True
    return False
