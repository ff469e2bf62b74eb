"""What a run leaves behind, whatever ends it."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from robopolicy.cli.recording import DemoRecorder, Recorders, RerunRecorder
from robopolicy.control.robot import StepRecord
from robopolicy.demos.hdf5 import DemoFile
from robopolicy.types import ActionSpec, Command, Observation

SPEC = ActionSpec(arm=2, gripper=0, rate_hz=20.0)


def tick(number: int, seen: bool = True, side: int = 4) -> StepRecord:
    obs = {"qpos": np.full(3, number, np.float32), "front": np.full((side, side, 3), number, np.uint8)}
    observation = Observation(obs, "lift the red cube", float(number)) if seen else None
    action = np.full(2, number / 10) if seen else None
    return StepRecord(
        float(number), observation, action, Command(np.full(3, number), 0.04, 0.0), ("motion",) * (number % 2)
    )


def test_a_run_becomes_one_demo_of_the_steps_in_which_the_policy_saw_and_acted(tmp_path):
    """Guards against: rows of a step in which nothing was seen, or targets that a policy could read its answer from."""
    path = tmp_path / "run.hdf5"
    recorder = Recorders([DemoRecorder(path, SPEC, {"env_name": "robopolicy/lift", "privileged": ["target_pos"]}, 7)])
    for number in range(5):
        recorder.record(tick(number, seen=number != 2))
    recorder.close()
    with DemoFile(path) as file:
        demo = file.read("demo_0")
        privileged = file.attributes["env_args"]["privileged"]
    assert (demo.seed, demo.instruction, len(demo)) == (7, "lift the red cube", 4)
    assert demo.obs["qpos"][:, 0].tolist() == [0, 1, 3, 4]
    assert demo.obs["front"].dtype == np.uint8
    assert demo.obs["limited"][:, 0].tolist() == [0, 1, 1, 0]
    np.testing.assert_allclose(demo.actions[:, 0], [0, 0.1, 0.3, 0.4], atol=1e-7)
    assert privileged == ["command_qpos", "command_gripper", "limited", "target_pos"]


KILLED = """
import sys, time
from tests.cli.test_recording import SPEC, tick
from robopolicy.cli.recording import DemoRecorder
recorder = DemoRecorder(sys.argv[1], SPEC)
for number in range(6):
    recorder.record(tick(number, side=64))
print("recorded", flush=True)
time.sleep(60)
"""


def test_a_run_that_is_killed_leaves_its_record(tmp_path):
    """Guards against: a killed run without a record, although it is the one that somebody wants to look at."""
    path = tmp_path / "run.hdf5"
    command = [sys.executable, "-c", KILLED, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline().strip() == b"recorded"
        process.send_signal(signal.SIGKILL)
    assert steps_in(path) == 6


def steps_in(path: Path, seconds: float = 20.0) -> int:
    """Steps of the demo that is about to be written."""
    ends_s = time.monotonic() + seconds
    while time.monotonic() < ends_s:
        try:
            with DemoFile(path) as file:
                return len(file.read("demo_0"))
        except (ValueError, OSError):
            time.sleep(0.05)
    return 0


def test_a_second_run_adds_its_demo_and_one_without_a_step_leaves_no_file(tmp_path):
    """Guards against: a record overwritten by the next, or an empty file that no verb opens."""
    path = tmp_path / "run.hdf5"
    for numbers in ([], [0, 1], [], [0, 1, 2]):
        recorder = DemoRecorder(path, SPEC)
        for number in numbers:
            recorder.record(tick(number))
        recorder.close()
        assert path.exists() == bool(numbers) or path.stat().st_size > 0
    with DemoFile(path) as file:
        assert [len(demo) for demo in file] == [2, 3]


def test_a_file_of_other_actions_is_refused_before_anything_moves(tmp_path):
    """Guards against: two robots' actions in one file, under one description."""
    path = tmp_path / "run.hdf5"
    recorder = DemoRecorder(path, SPEC)
    recorder.record(tick(0))
    recorder.close()
    with pytest.raises(ValueError, match="a different action spec; choose another file"):
        DemoRecorder(path, ActionSpec(arm=1, gripper=1))


def test_a_recorder_that_fails_does_not_take_the_robot_or_the_other_recorder_with_it(tmp_path, caplog):
    """Guards against: a full disk that stops the arm, or ends its own record only."""

    class Full:
        def record(self, tick: StepRecord) -> None:
            raise OSError("no space left on device")

        def close(self) -> None:
            """Nothing left."""

    kept = DemoRecorder(tmp_path / "run.hdf5", SPEC)
    recorder = Recorders([Full(), kept])
    for number in range(3):
        recorder.record(tick(number))
    recorder.close()
    assert caplog.text.count("recording stopped: OSError: no space left") == 1
    assert steps_in(tmp_path / "run.hdf5") == 3


def test_the_viewer_is_shown_every_step(monkeypatch):
    """Guards against: an option that fails at the first control step."""
    rerun = pytest.importorskip("rerun", reason="rerun is not installed (extra view)")
    started, opened = [], rerun.init
    monkeypatch.setattr(rerun, "init", lambda name, spawn: (started.append(spawn), opened(name)))
    stream = rerun.memory_recording
    recorder = RerunRecorder()
    memory = stream()
    for number in range(3):
        recorder.record(tick(number, seen=number != 1))
    recorder.close()
    assert started == [True]
    assert memory.num_msgs() > 0


def test_a_missing_viewer_names_the_extra_that_installs_it(monkeypatch):
    """Guards against: `No module named 'rerun'` after the arm has gone home."""
    monkeypatch.setitem(sys.modules, "rerun", None)
    with pytest.raises(ImportError, match=r"install 'robopolicy\[view\]'"):
        RerunRecorder()
