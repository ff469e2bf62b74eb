"""Whatever decides the actions, `robopolicy run` drives a robot by it: a folder, an export, a server."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from robopolicy.cli.drivers import driver_of
from robopolicy.cli.run import _parser, run
from robopolicy.config import ConfigError
from robopolicy.control.profile import read_profile
from robopolicy.control.robot_server import RobotServer
from robopolicy.control.robots import FakeRobot
from robopolicy.control.server import open_policy
from robopolicy.model.checkpoint import save_policy
from tests.exporting import ARM, make_policy
from tests.serving import SPEC, running_server

EXPORTED = Path(__file__).parent / "robot_export"
QUIET = ["--seconds", "0.6", "--deadline", "5", "--realtime", "false"]


@pytest.fixture
def arm() -> Iterator[FakeRobot]:
    """An arm behind a socket; its address is `arm.address`."""
    robot = FakeRobot(read_profile("panda"))
    with RobotServer(robot, port=0, deadline_s=2.0) as server:
        robot.address = f"ws://127.0.0.1:{server.port}"  # type: ignore[attr-defined]
        yield robot


def saved(folder: Path, kind: str = "keys", **head: object) -> str:
    provenance = {"task": "lift", "control_dt": 0.05}
    return str(save_policy(make_policy(kind, action=ARM, chunk=4, **head), folder, provenance) or folder)


def driven(arguments: list[str], robot: FakeRobot, tmp_path: Path) -> dict:
    """The figures of a run in which the arm has moved."""
    figures, home = tmp_path / "run.json", robot.qpos().copy()
    assert run([*arguments, "--robot", robot.address, *QUIET, "--json", str(figures)]) == 0  # type: ignore[attr-defined]
    assert abs(robot.qpos() - home).max() > 1e-3
    told = json.loads(figures.read_text())
    assert told["stops"] == []
    assert told["steps"] >= 10
    return told


def test_a_run_folder_drives_an_arm_over_the_network(arm, tmp_path):
    """The way from `train` to a moving arm, with nothing simulated between the commands and the socket."""
    driven([saved(tmp_path / "run"), "--instruction", "lift the red cube"], arm, tmp_path)


def test_an_exported_folder_drives_it_as_it_was_trained_to(arm, tmp_path):
    """An export executed with settings that its training never saw."""
    driven([str(EXPORTED), "--instruction", "lift the red cube"], arm, tmp_path)
    driver = driver_of(_parser().parse_args([str(EXPORTED), "--robot", "sim"]))
    assert driver.execution.replan_every == 2
    changed = ["--robot", "sim", "--execution.strategy", "ensemble"]
    assert vars(driver_of(_parser().parse_args([str(EXPORTED), *changed])).execution) | {
        "strategy": "receding"
    } == vars(driver.execution)


def test_a_policy_behind_a_server_drives_it(arm, tmp_path):
    """Policy on the machine with the GPU, control loop beside the arm."""
    policy, spec = open_policy(EXPORTED)
    with running_server(policy, spec) as server:
        driven(["--server", f"127.0.0.1:{server.port}", "--instruction", "lift the red cube"], arm, tmp_path)
        assert server.metrics.value("unused_keys_total") == 0  # qpos, which it doesn't look at, stays here


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--server", "localhost"], "--server localhost: expected HOST:PORT"),
        (["--server", "PORT"], "doesn't say at what rate|remembers every 3. frame"),
    ],
)
def test_a_server_that_cannot_drive_a_robot_is_refused(arguments, message):
    """A memory fed with other frames than in training, without a word."""
    from dataclasses import replace

    with running_server(spec=replace(SPEC, frame_stride=3)) as server:
        words = [word.replace("PORT", f"127.0.0.1:{server.port}") for word in arguments]
        with pytest.raises(ConfigError, match=message):
            driver_of(_parser().parse_args([*words, "--robot", "sim"]))


def test_a_robot_that_lacks_what_the_policy_looks_at_is_refused_before_it_moves(arm, tmp_path):
    """A camera that isn't plugged in, found out after the arm has gone home."""
    home = arm.qpos().copy()
    with pytest.raises(ConfigError, match=r"looks at 'front', which robot ws://.* doesn't show; it has: ee_pose"):
        run([saved(tmp_path / "pixels", "pixels"), "--robot", arm.address, *QUIET])
    assert (arm.qpos() == home).all()


@pytest.mark.slow
def test_a_pixel_policy_drives_the_simulated_arm(tmp_path, capsys):
    """Pictures of the simulator's process that are of another size than the policy's, or come too late to drive by."""
    options = ["--robot", "sim", "--task", "reach", "--command-hz", "100", "--seed", "3"]
    record, figures = tmp_path / "run.hdf5", tmp_path / "run.json"
    pixels = saved(tmp_path / "run", "pixels", layers=1, hidden=8)
    assert run([pixels, *options, *QUIET, "--record", str(record), "--json", str(figures)]) == 0
    from robopolicy.demos.hdf5 import DemoFile

    with DemoFile(record) as file:
        assert file.read("demo_0").obs["front"].shape[1:] == (16, 16, 3)
    assert json.loads(figures.read_text())["latency_ms"]["p50"] > 0
    assert "success   no" in capsys.readouterr().out
