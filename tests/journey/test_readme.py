"""Every command of the README is run, made small."""

import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import robopolicy
from robopolicy import load_policy

ROOT = Path(__file__).parents[2]
BLOCKS = re.findall(r"```\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
SNIPPETS = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
COMMANDS = [line for block in BLOCKS for line in block.splitlines() if line.startswith("robopolicy ")]
SMALLER = {
    "collect": ["--episodes", "4"],
    "train": ["--max-steps", "4", "--memory.hidden", "8"],
    "eval": ["--episodes", "2"],
    "run": ["--seconds", "1"],
    "serve": ["--port", "0"],
}
"""Options that a later word overrides, so that a command takes seconds."""


def run(command: str, folder: Path) -> subprocess.Popen[str]:
    verb, *words = shlex.split(command.removeprefix("robopolicy "))
    words = [str(ROOT / word) if word.startswith("configs/") else word for word in words]
    program = "import sys; from robopolicy.cli import main; sys.exit(main())"
    return subprocess.Popen(
        [sys.executable, "-c", program, verb, *words, *SMALLER.get(verb, [])],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def served(process: subprocess.Popen[str]) -> bool:
    """Whether the server came up and stopped on SIGTERM with exit code 0."""
    assert process.stdout is not None
    with process.stdout:
        shown = next((line for line in process.stdout if re.search(r"wss?://\d", line)), "")
        process.send_signal(signal.SIGTERM)
        return process.wait(timeout=600) == 0 and bool(shown)


def test_the_commands_of_the_readme_work_one_after_another(tmp_path, monkeypatch):
    """Guards against: a README whose commands fail, which a new user meets first."""
    assert len(COMMANDS) >= 9
    for command in COMMANDS:
        process = run(command, tmp_path)
        if " serve " in command:
            assert served(process), command
            continue
        shown, _ = process.communicate(timeout=600)
        assert process.returncode in ((0, 1) if " run " in command else (0,)), f"{command}\n{shown}"
    assert (tmp_path / "out.json").is_file()
    assert (tmp_path / "exported" / "manifest.json").is_file()
    (snippet,) = [snippet for snippet in SNIPPETS if "load_policy" in snippet]
    policy = load_policy(tmp_path / "runs" / "lift")
    observation = {key: torch.zeros(1, *spec.shape) for key, spec in policy.obs.items()}
    found = {"robopolicy": robopolicy, "observation": observation | {"instruction": "lift the red cube"}}
    monkeypatch.chdir(tmp_path)
    exec(snippet, found)
    assert found["actions"].shape == (1, policy.chunk, 7)


def test_the_head_of_the_readme_steps_as_it_trains():
    """Guards against: an error in the first lines of Python that a researcher copies."""
    (snippet,) = [snippet for snippet in SNIPPETS if "PolicyHead" in snippet]
    snippet = snippet.replace("1024", "32")
    valid = torch.ones(2, 16, 10, dtype=torch.bool)
    tokens, target = torch.randn(2, 16, 3, 32), torch.rand(2, 16, 10, 7)
    found = {"robopolicy": robopolicy, "tokens": tokens, "target": target, "action_valid": valid}
    exec(snippet, found)
    torch.testing.assert_close(found["chunk"].arm, found["head"](tokens).arm[:, 0])
    assert found["loss"] > 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["collect", "--task", "fly", "--out", "a.hdf5"], "task 'fly' is unknown; choose one of"),
        (["collect", "--task", "lift", "--out", "a.hdf5", "--cameras", "side"], "no camera 'side'"),
        (["train", "--run-dir", "r", "--data.files", "none.hdf5"], "none.hdf5"),
        (["train", "--run-dir", "r", "--memory.windw", "3", "--data.files", "none.hdf5"], "windw"),
        (["eval", "nowhere"], "nowhere"),
        (["check", "none.hdf5"], "none.hdf5"),
        (["fly"], "unknown verb 'fly'"),
    ],
)
def test_a_users_mistake_is_one_line_and_exit_code_2(words, message, tmp_path, capsys, monkeypatch):
    """Guards against: a traceback, or a half-written file, where the command line is wrong."""
    from robopolicy.cli import main

    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    captured = capsys.readouterr()
    assert message in captured.err + captured.out
    assert "Traceback" not in captured.err
    assert not list(tmp_path.iterdir())
