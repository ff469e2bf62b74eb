"""`robopolicy dagger` and `robopolicy improve` from the command line."""

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from robopolicy.cli import main
from robopolicy.cli.simulator import check_actions
from robopolicy.components import ConfigError
from robopolicy.experiment import DemoFacts, ExperimentConfig, build_policy, read_provenance, save_policy
from robopolicy.types import ActionSpec, ArraySpec
from tests.small_runs import SMALL

ROOT = Path(__file__).parents[2]
COMMANDS = [
    line.strip() for line in (ROOT / "docs" / "learn.md").read_text().splitlines() if line.startswith("    robopolicy ")
]
SMALLER = {
    "collect": ["--episodes", "3", "--num-envs", "3"],
    "train": ["--max-steps", "2", "--memory.hidden", "8"],
    "run": shlex.split("--seconds 0.8 --command-hz 200 --deadline 20"),
    "improve": shlex.split("--iterations 2 --num-envs 2 --eval-every 2 --eval-episodes 2 --ppo.rollout_steps 8"),
    "eval": ["--episodes", "2"],
    "dagger": shlex.split("--rounds 1 --episodes 2 --training.max_steps 2 --memory.hidden 8 --eval-episodes 2"),
}


@pytest.fixture
def start(tmp_path: Path) -> Callable[..., str]:
    """Makes run folders of untrained policies for the simulator."""

    def make(name: str = "start", action: ActionSpec | None = None, task: str = "lift") -> str:
        config = ExperimentConfig().change(SMALL)
        facts = DemoFacts(action or ActionSpec(arm=6, gripper=1), {"ee_pose": ArraySpec((7,))})
        return str(save_policy(build_policy(config, facts), tmp_path / name, {"task": task}))

    return make


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """What the one line says."""
    assert main(words) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    return lines[0]


@pytest.mark.slow
def test_the_commands_of_the_document_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against: a document whose commands fail."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    title, code = re.findall(r'```python title="(.*?)"\n(.*?)```', (ROOT / "docs" / "learn.md").read_text(), re.DOTALL)[
        0
    ]
    (tmp_path / title).write_text(code)
    monkeypatch.setattr("robopolicy.training.improve._Run._check_reward", lambda self: None)  # two steps lift nothing
    assert len(COMMANDS) >= 8
    for command in COMMANDS:
        verb, *words = shlex.split(command.removeprefix("robopolicy "))
        words = [str(ROOT / word) if word.startswith("configs/") else word for word in words]
        assert main([verb, *words, *SMALLER[verb]]) == 0, command
    assert read_provenance(tmp_path / "runs" / "lift20_improved")["improved_from"] == "lift20"
    rounds = json.loads((tmp_path / "runs" / "lift_dagger" / "dagger.json").read_text())["rounds"]
    assert [row["round"] for row in rounds] == [0, 1]
    assert rounds[1]["demos"] == 2
    assert 0 <= rounds[1]["success_rate"] <= 1


def test_every_option_of_the_document_exists(capsys: pytest.CaptureFixture[str]) -> None:
    """Guards against: a document that names options of yesterday."""
    text = (ROOT / "docs" / "learn.md").read_text()
    shown = ""
    for verb in ("improve", "dagger", "eval", "run", "train"):
        with pytest.raises(SystemExit):
            main([verb, "--help"])
        shown += capsys.readouterr().out
    for option in set(re.findall(r"`(--[a-z][\w.-]*)", text)):
        assert option in shown, option


def test_a_policy_without_a_gripper_is_refused_for_a_gripper_task(
    start: Callable[..., str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Guards against: training that can never succeed."""
    fixed = ActionSpec(arm=6, gripper=0, constant={6: -1.0})
    out = str(tmp_path / "out")
    said = refused(capsys, "improve", start("fixed", fixed), "--task", "lift", "--run-dir", out, "--num-envs", "1")
    assert "the policy moves no gripper (its action columns: 6 arm, 1 constant), which task lift needs" in said
    said = refused(capsys, "improve", start("short", ActionSpec(arm=6, gripper=0)), "--run-dir", out, "--num-envs", "1")
    assert "the policy gives 6 action columns; task lift takes 7" in said
    config = ExperimentConfig().change(SMALL)
    policy = build_policy(config, DemoFacts(fixed, {"ee_pose": ArraySpec((7,))}))
    for task in ("reach", "recall_long", "swap", "count", "pillar"):
        check_actions(policy, task, 7)
    with pytest.raises(ConfigError, match="task stack needs"):
        check_actions(policy, "stack", 7)


def test_an_expert_of_another_task_is_refused(
    start: Callable[..., str], tiny_demos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Guards against: labels of an expert that does something else, found after hours of training."""
    words = ["dagger", "--task", "lift", "--data.files", str(tiny_demos), "--run-dir", str(tmp_path / "out")]
    teacher = start("teacher", task="stack")
    assert f"--expert {teacher} was trained on stack; --task is lift" in refused(capsys, *words, "--expert", teacher)
    assert "neither a run folder nor MODULE:FACTORY" in refused(capsys, *words, "--expert", "nobody")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--expert-share", "linear:2:0"], "--expert-share is linear:2:0; expected values from 0 to 1"),
        (["--expert-share", "often"], "--expert-share is often; expected a number, constant:V, linear:FROM:TO"),
        (["--rounds", "0"], "--rounds must be >= 1, got 0"),
        (["--keep-rounds", "0"], "--keep-rounds must be >= 1, got 0"),
        (["--data.files", "nowhere.hdf5"], "nowhere.hdf5: no such file or folder"),
    ],
)
def test_a_mistake_in_dagger_is_one_line(
    words: list[str], said: str, tiny_demos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Guards against: a mistake that shows after the first training."""
    given = ["dagger", "--task", "lift", "--data.files", str(tiny_demos), "--run-dir", str(tmp_path / "out")]
    assert said in refused(capsys, *given, *words)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--task", "lift", "--env", "a:B"], "--task lift and --env a:B; give one of them"),
        (["--env-map", "map.yaml"], "--env-map without --env"),
        (["--ppo.anchor", "linear:1"], "--ppo.anchor is linear:1; expected"),
        (["--ppo.decision_steps", "3"], "--ppo.decision_steps must be <= the policy's chunk, got 3 > 2"),
        (["--ppo.gamma", "1.5"], "--ppo.gamma must be 0 .. 1, got 1.5"),
        (["--select", "success"], "give --eval-every"),
        (["--resume"], "nothing to resume"),
        (["--physics", "warp"], "leave --physics out"),
        (["--seed", "301"], "--seed must be 0 .. 300, got 301"),
    ],
)
def test_a_mistake_in_improve_is_one_line(
    words: list[str], said: str, start: Callable[..., str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Guards against: options that are ignored, and tracebacks."""
    assert said in refused(capsys, "improve", start(), "--run-dir", str(tmp_path / "out"), *words)
