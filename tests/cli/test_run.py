"""`robopolicy run` from its arguments: refusals in one line, and a record replayed on the simulated robot."""

import json
import socket
import time
from pathlib import Path

import numpy as np
import pytest

from robopolicy.cli import main
from robopolicy.cli.run import run
from robopolicy.components import ConfigError
from robopolicy.control.loop import ControlLoop
from robopolicy.control.replay import RecordedStream
from robopolicy.demos.hdf5 import DemoFile
from robopolicy.types import DemoFormatError, Observation


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--robot", "sim"], "give one of: a policy's folder, --server"),
        (["somewhere", "--server", "localhost:8000", "--robot", "sim"], "give one of"),
        (["--replay", "DEMOS", "--demo", "demo_99", "--robot", "sim"], "no demo_99; it has: demo_0, .*demo_4"),
        (["--replay", "DEMOS", "--robot", "sim"], "name no task"),
        (["--replay", "DEMOS", "--robot", "sim", "--speed", "0"], "--speed 0: expected more than 0"),
        (["--replay", "DEMOS", "--robot", "sim", "--task", "reach", "--speed", "auto"], "needs a replay with recorded"),
        (["--replay", "DEMOS", "--robot", "sim", "--speed", "quick"], "quick.*; see robopolicy run --help"),
        (["--replay", "DEMOS", "--robot", "sim", "--follow", "qpos"], "not in demo_0; it has: actions, cube_red"),
        (
            ["--replay", "DEMOS", "--robot", "ur5"],
            "robot 'ur5' is unknown; choose one of fake, lerobot, rosbridge, sim, websocket",
        ),
        (["--replay", "DEMOS", "--robot", "ws://h:1", "--robot-ca", "ca.pem"], "--robot-ca is for wss://HOST:PORT"),
        (["--replay", "DEMOS", "--robot", "sim", "--intervene", "keyboard"], "a recorded demo can't be taken over"),
        (["--server", "h:1", "--robot", "sim", "--server-ca", "ca.pem"], "--server-ca is for wss://HOST:PORT"),
    ],
)
def test_what_cannot_be_run_is_refused_before_anything_moves(tiny_demos, arguments, message):
    """Guards against: a traceback, or a robot that starts without knowing what it shall do."""
    with pytest.raises((ConfigError, DemoFormatError), match=message):
        run([str(tiny_demos) if argument == "DEMOS" else argument for argument in arguments])


def test_a_robot_that_is_not_there_is_one_line_and_exit_code_two(tiny_demos, capsys):
    """Guards against: a traceback for a cable that isn't plugged in."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"ws://127.0.0.1:{free.getsockname()[1]}"
    assert main(["run", "--replay", str(tiny_demos), "--robot", address]) == 2
    assert "robopolicy: run: no robot at 127.0.0.1" in capsys.readouterr().err


@pytest.fixture(scope="module")
def lifts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the expert recorded, undisturbed."""
    path = tmp_path_factory.mktemp("lifts") / "lift.hdf5"
    arguments = ["--task", "lift", "--episodes", "1", "--num-envs", "1", "--noise", "false", "--out", str(path)]
    assert main(["collect", *arguments]) == 0
    return path


@pytest.mark.parametrize("speed", ["1", "auto"])
def test_what_was_collected_solves_its_task_again_within_the_limits(lifts, tmp_path, capsys, speed):
    """Guards against: demos that a robot within its limits replays as another motion, at full speed or at the one it chose."""
    figures = tmp_path / "run.json"
    options = ["--robot", "sim", "--realtime", "false", "--command-hz", "200", "--json", str(figures)]
    assert run(["--replay", str(lifts), "--speed", speed, *options]) == 0
    shown = capsys.readouterr().out
    if speed == "auto":
        assert "within panda's limits" in shown
        assert 0.85 < float(shown.partition("speed     ")[2].split()[0]) <= 1.0
    outcome = json.loads(figures.read_text())
    assert outcome["success"]
    assert outcome["limited_steps"] == 0
    assert outcome["replay"]["done"] == outcome["replay"]["steps"]
    assert outcome["replay"]["end_rad"] < 0.02


def test_a_demo_is_replayed_recorded_and_summed_up(tiny_demos, tmp_path, capsys):
    """Guards against: a run that leaves nothing behind to look at, or a record that can't be opened."""
    record, figures = tmp_path / "run.hdf5", tmp_path / "run.json"
    arguments = ["--replay", str(tiny_demos), "--robot", "sim", "--task", "reach", "--realtime", "false"]
    options = ["--command-hz", "200", "--deadline", "20.0", "--record", str(record), "--json", str(figures)]
    assert run([*arguments, *options]) == 0
    with DemoFile(record) as file:
        demo = file.read(file.names[0])
    assert 12 <= len(demo) <= 12 + 12
    assert demo.actions.shape[1] == 7
    results = json.loads(figures.read_text())
    assert results["steps"] >= len(demo)
    assert results["stops"] == []
    assert "success   no" in capsys.readouterr().out


def test_a_dry_run_is_no_failure_of_a_robot_that_stands_still(lifts, capsys):
    """Guards against: 'the robot did not follow', and a slower speed advised, in the first step with a new robot."""
    assert (
        run(["--replay", str(lifts), "--robot", "sim", "--realtime", "false", "--command-hz", "200", "--dry-run"]) == 0
    )
    said = capsys.readouterr().out
    assert "dry run   no command was sent" in said
    assert "failed" not in said
    assert "give --speed" not in said


def test_one_command_per_control_step_moves_the_robot(tiny_demos, tmp_path):
    """Guards against: a robot at 20 Hz with 20 commands a second that is never moved, with exit code 0."""
    record, figures = tmp_path / "run.hdf5", tmp_path / "run.json"
    arguments = ["--replay", str(tiny_demos), "--robot", "sim", "--task", "reach", "--realtime", "false"]
    options = ["--command-hz", "20", "--deadline", "20.0", "--record", str(record), "--json", str(figures)]
    assert run([*arguments, *options]) == 0
    results = json.loads(figures.read_text())
    assert results["idle"] == 0
    assert results["acted"] >= 12
    with DemoFile(record) as file:
        assert len(file.read(file.names[0])) == results["acted"]


def test_a_run_that_acts_on_nothing_fails_and_announces_no_record(tiny_demos, tmp_path, capsys, monkeypatch):
    """Guards against: exit code 0 and the name of a recording that was never written."""
    monkeypatch.setattr(ControlLoop, "_act", lambda loop, grid: setattr(loop, "_to_act", False))
    record = tmp_path / "run.hdf5"
    arguments = ["--replay", str(tiny_demos), "--robot", "sim", "--task", "reach", "--realtime", "false"]
    assert run([*arguments, "--command-hz", "100", "--deadline", "20.0", "--record", str(record)]) == 1
    said = capsys.readouterr().out
    assert "failed    no action in" in said
    assert f"failed    nothing was recorded in {record}" in said
    assert "result" not in said
    assert not record.exists()


def test_on_a_simulated_clock_a_run_repeats_exactly_however_slow_the_machine(tiny_demos, tmp_path, monkeypatch):
    """Guards against: an outcome that depends on the machine's load, and a simulated clock that sleeps."""
    arguments = ["--replay", str(tiny_demos), "--robot", "sim", "--task", "reach", "--realtime", "false"]
    think, rows = RecordedStream.__call__, []
    for pause_s in (0.0, 0.3):  # above the deadline of 0.25 s

        def slow(
            stream: RecordedStream, observation: Observation, prefix: object = None, pause_s: float = pause_s
        ) -> np.ndarray:
            time.sleep(pause_s if len(rows) < 4 else 0.0)
            rows.append(observation.obs["qpos"])
            return think(stream, observation)

        monkeypatch.setattr(RecordedStream, "__call__", slow)
        figures = tmp_path / "run.json"
        assert run([*arguments, "--command-hz", "200", "--json", str(figures)]) == 0
        results = json.loads(figures.read_text())
        assert results["overruns"] == results["missed_frames"] == 0
        monkeypatch.setattr(RecordedStream, "__call__", think)
    first, second = np.array(rows[: len(rows) // 2]), np.array(rows[len(rows) // 2 :])
    assert len(first) >= 12
    assert (first == second).all()
