"""`robopolicy collect`: which episodes a file ends up with, and what is refused before one is written."""

import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from robopolicy.cli import main
from robopolicy.demos.guarded import parts_folder
from robopolicy.demos.hdf5 import DemoFile, DemoWriter

REACH = ("collect", "--task", "reach", "--num-envs", "2")


def seeds_in(path: Path) -> list[int]:
    """Seeds of the demos of a file, sorted."""
    with DemoFile(path) as demos:
        return sorted(int(str(demo.seed)) for demo in demos)


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_resumed_file_is_that_of_an_uninterrupted_collect(tmp_path, end):
    """Guards against: demos lost, doubled or in another order after an interruption, whichever it was."""
    words = [*REACH, "--episodes", "16", "--out"]
    assert main([*words, str(tmp_path / "whole.hdf5")]) == 0
    out = tmp_path / "reach.hdf5"
    command = [
        sys.executable,
        "-c",
        "import sys; from robopolicy.cli import main; sys.exit(main(sys.argv[1:]))",
        *words,
        str(out),
    ]
    # A shell that runs the tests in the background lets its children ignore SIGINT, and `nohup` SIGHUP.
    heed = partial(signal.signal, end, signal.SIG_DFL)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, **pipes, text=True, preexec_fn=heed if end != signal.SIGKILL else None) as process:
        while len(list(parts_folder(out).glob("*.hdf5"))) < 3:
            assert process.poll() is None
            time.sleep(0.005)
        process.send_signal(end)
        _, said = process.communicate()
    assert process.returncode == (130 if end == signal.SIGINT else -end)
    assert end != signal.SIGINT or "demos are kept in" in said
    assert not out.exists()
    assert main([*words, str(out)]) == 2, "what is there is not overwritten"
    assert main([*words, str(out), "--resume"]) == 0
    assert out.read_bytes() == (tmp_path / "whole.hdf5").read_bytes()
    assert not parts_folder(out).exists()


def test_a_second_collect_into_the_same_file_is_refused(tmp_path, capsys):
    """Guards against: two collections that destroy each other's demos."""
    out = tmp_path / "reach.hdf5"
    with DemoWriter(out):
        assert main([*REACH, "--episodes", "2", "--out", str(out), "--resume"]) == 2
    assert "another process is writing" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_resumed_file_holds_the_seeds_that_an_uninterrupted_one_would(tmp_path):
    """Guards against: a resumed file without the long episodes that a kill loses, because it continues after the last seed."""
    out = str(tmp_path / "reach.hdf5")
    assert main([*REACH, "--seed", "3", "--episodes", "2", "--out", out]) == 0  # 0 .. 2 as if lost
    assert main([*REACH, "--episodes", "6", "--out", out, "--resume"]) == 0
    assert seeds_in(tmp_path / "reach.hdf5") == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--task", "lift"), "env_name robopolicy/reach"),
        (("--task", "reach", "--cameras", "front"), "env_kwargs"),
        (("--task", "reach", "--noise", "false"), "disturbance"),
    ],
)
def test_a_file_is_not_gone_on_with_in_another_way(tmp_path, capsys, options, message):
    """Guards against: demos of two tasks in one file under the name of one of them."""
    out = tmp_path / "reach.hdf5"
    assert main([*REACH, "--episodes", "2", "--out", str(out)]) == 0
    before = out.read_bytes()
    assert main(["collect", *options, "--episodes", "4", "--out", str(out), "--resume"]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert out.read_bytes() == before


def test_the_waiting_time_of_a_task_is_an_option(tmp_path):
    """Guards against: options of a task that `collect` does not pass on, or does not write into the file."""
    lengths = {}
    for delay in (0, 9):
        out = tmp_path / f"{delay}.hdf5"
        chosen = ("--task-options", f"{{delay_steps: {delay}}}", "--noise", "false")
        assert main(["collect", "--task", "recall", "--episodes", "2", *chosen, "--out", str(out)]) == 0
        with DemoFile(out) as demos:
            lengths[delay] = [len(demo) for demo in demos]
            assert demos.attributes["env_args"]["env_kwargs"]["task_options"] == {"delay_steps": delay}
    assert [after - before for before, after in zip(lengths[0], lengths[9], strict=True)] == [9, 9]


def test_a_few_failures_of_a_disturbed_expert_are_no_reason_to_give_up(tmp_path):
    """Guards against: giving up on a disturbed expert after two tries, where four of five tries fail by design."""
    out = tmp_path / "recall.hdf5"
    assert main(["collect", "--task", "recall_long", "--episodes", "2", "--out", str(out)]) == 0
    assert len(seeds_in(out)) == 2


def test_a_hopeless_collection_ends_without_a_file(tmp_path, capsys):
    """Guards against: hundreds of seeds tried without a success, and an empty file in the way of the next attempt."""
    out = tmp_path / "none.hdf5"
    hopeless = ["--disturbance.std", "50", "--disturbance.share", "1"]  # leaves nothing of the expert's own motion
    assert main(["collect", "--task", "recall_long", "--episodes", "500", *hopeless, "--out", str(out)]) == 2
    assert "none of 50 expert episodes of recall_long succeeded; try --noise false" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("option", "value", "expected"),
    [
        ("--episodes", "0", "expected 1 or more"),
        ("--num-envs", "0", "expected 1 or more"),
        ("--seed", "-1", "expected 0 or more"),
        ("--seed", "99999999999999999999999", "expected at most"),
        ("--image-size", "0", "expected 1 or more"),
        ("--disturbance.share", "7", "must be 0 .. 1"),
        ("--disturbance.push_steps", "0", "must be >= 1"),
        ("--device", "tpu", "expected cpu, cuda or cuda:<n>"),
        ("--task", "fly", "task 'fly' is unknown; choose one of"),
        ("--cameras", "top", "it has: front, wrist"),
        ("--task-options", "{delay_steps: 3}", "unknown option --task.delay_steps; the options of task 'reach' are"),
        ("--task-options", "3", "expected a mapping of names to values"),
        ("--out", ".", "is a folder"),
        ("--out", f"{__file__}/a.hdf5", "is a file, where a folder must be"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_no_file(tmp_path, capsys, option, value, expected):
    """Guards against: errors in MuJoCo's words, or a half-made file, for `--num-envs 0`."""
    options = {"--out": str(tmp_path / "a.hdf5"), "--episodes": "2", option: value}
    assert main([*REACH, *(word for pair in options.items() for word in pair)]) == 2
    said = capsys.readouterr().err
    assert expected in said
    assert said.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
