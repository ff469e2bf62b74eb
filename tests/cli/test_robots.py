"""`--robot`: from what a user writes to a robot."""

from pathlib import Path

import numpy as np
import pytest
import yaml

from robopolicy.cli.drivers import Driver
from robopolicy.cli.robots import make_robot
from robopolicy.cli.run import _parser
from robopolicy.components import ConfigError
from robopolicy.control.execution import execution_from
from robopolicy.control.profile import PROFILES
from robopolicy.control.robot import Robot
from robopolicy.control.robots.fake import FakeRobot
from robopolicy.types import ActionSpec, Observation, PolicySpec

FACTORY = """
from robopolicy.control.profile import read_profile
from robopolicy.control.robots.fake import FakeRobot


def make(context):
    return FakeRobot(read_profile("fr3"), context.control_dt)


def nothing(context):
    return object()
"""


class StillStream:
    """Never moves."""

    gripper_logit = None

    def __call__(self, observation: Observation, prefix: object = None) -> np.ndarray:
        """Zeros."""
        return np.zeros((4, 7))

    def reset(self) -> None:
        """Nothing is kept."""


def robot_of(*words: str) -> Robot:
    driver = Driver(StillStream(), PolicySpec({}, ActionSpec(arm=6, gripper=1), 4, 1), 0.1, execution_from({}))
    return make_robot(_parser().parse_args(["run", "--robot", *words]), driver)


def test_a_file_says_what_the_robot_is(tmp_path):
    """Guards against: a robot of one's own that needs an edit of the package."""
    profile = yaml.safe_load((PROFILES / "panda.yaml").read_text()) | {"name": "ours"}
    (tmp_path / "ours.yaml").write_text(yaml.safe_dump(profile))
    (tmp_path / "robot.yaml").write_text("kind: fake\nprofile: ours.yaml\ncommand_dt: 0.02\nopening_m: 0.01\n")
    robot = robot_of(str(tmp_path / "robot.yaml"))
    assert isinstance(robot, FakeRobot)
    assert (robot.profile.name, robot.control_dt, robot.command_dt) == ("ours", 0.1, 0.02)
    assert robot.observe().obs["gripper"] == pytest.approx([0.01])


def test_a_factory_that_the_caller_names_makes_the_robot(tmp_path, monkeypatch):
    """Guards against: a factory that doesn't learn at what rate the policy acts."""
    (tmp_path / "our_lab_arm.py").write_text(FACTORY)
    monkeypatch.syspath_prepend(str(tmp_path))
    robot = robot_of("our_lab_arm:make")
    assert (robot.profile.name, robot.control_dt) == ("fr3", 0.1)
    with pytest.raises(
        ConfigError, match="a value of type object, which lacks profile, control_dt, command_dt, observe"
    ):
        robot_of("our_lab_arm:nothing")
    with pytest.raises(ConfigError, match="our_lab_arm:other can't be imported: AttributeError"):
        robot_of("our_lab_arm:other")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["toaster"], "robot 'toaster' is unknown; choose one of fake, lerobot, rosbridge, sim"),
        (["http://1.2.3.4:80"], "unknown scheme 'http'; expected ws, wss, rosbridge"),
        (["ws://nowhere"], "expected HOST:PORT, got 'nowhere'"),
        (["fake", "--robot-ca", "x.pem"], "--robot-ca is not an option of robot 'fake'; it has: profile, command_dt"),
        (["ws://127.0.0.1:9", "--robot-ca", "x.pem"], "--robot-ca is for wss://HOST:PORT, got ws://127.0.0.1:9"),
        (["rosbridge://127.0.0.1:9", "--realtime", "false"], "--realtime is not an option of robot 'rosbridge'"),
        (["sim", "--realtime", "false"], "name no task"),
        (["missing.yaml"], "missing.yaml: no such file"),
        (["no_such_lab:make"], "no_such_lab:make can't be imported: ModuleNotFoundError"),
    ],
)
def test_a_mistake_in_the_robot_is_one_line(words: list[str], message: str):
    """Guards against: a flag that is ignored without a word, and an error that doesn't say what is expected."""
    with pytest.raises(ConfigError) as caught:
        robot_of(*words)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("profile: panda\n", "expected `kind`, one of fake"),
        ("kind: fake\ntopics: {}\n", "unknown option --robot.topics; the options of robot 'fake' are: profile"),
        ("kind: fake\ncommand_dt: fast\n", "--robot.command_dt must be a number, got fast"),
    ],
)
def test_a_mistake_in_the_file_is_one_line(tmp_path: Path, text: str, message: str):
    """Guards against: an unknown key of robot.yaml that is skipped."""
    (tmp_path / "robot.yaml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        robot_of(str(tmp_path / "robot.yaml"))
    assert message in str(caught.value)
