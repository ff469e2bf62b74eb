"""`robopolicy eval`: which policies it opens, where it runs, and what it writes."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from jsonargparse import Namespace
from torch.distributed import TCPStore

from robopolicy.cli import main
from robopolicy.cli.evaluate import _result_files
from robopolicy.demos.hdf5 import DemoFile
from robopolicy.experiment import open_policy, read_provenance

FIGURES = (
    "success_rate",
    "successes",
    "episodes",
    "interval",
    "mean_steps",
    "per_instruction",
    "outcomes",
    "env_steps",
)
EVAL = ("--task", "reach", "--episodes", "5", "--num-envs", "2")
COLLECT = ("--task", "reach", "--episodes", "5", "--num-envs", "2")


def evaluated(run: Path, out: Path, *options: str) -> dict:
    """The JSON of an evaluation."""
    assert main(["eval", str(run), *EVAL, "--json", str(out), *options]) == 0
    return json.loads(out.read_text())


def in_two_processes(verb: list[str]) -> list[str]:
    """What each of two joined processes prints; each pair has a store of its own, so that none reads another's addresses."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    environment = os.environ | {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(store.port),  # held by this process: a free one could be taken by somebody else meanwhile
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "WORLD_SIZE": "2",
    }
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", f"from robopolicy.cli import main; raise SystemExit(main({verb!r}))"],
            env=environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    said = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    return said


def test_two_processes_find_what_one_does(random_run, tmp_path, capsys):
    """Guards against: episodes lost, doubled or reordered between processes, which no single process's log shows."""
    alone = evaluated(random_run, tmp_path / "alone.json")
    assert main(["collect", *COLLECT, "--out", str(tmp_path / "alone.hdf5")]) == 0
    capsys.readouterr()
    evaluation = in_two_processes(["eval", str(random_run), *EVAL, "--json", str(tmp_path / "shared.json")])
    collection = in_two_processes(["collect", *COLLECT, "--out", str(tmp_path / "shared.hdf5")])
    assert "success" in evaluation[0]
    assert [evaluation[1], collection[1]] == ["", ""]
    shared = json.loads((tmp_path / "shared.json").read_text())
    assert {name: shared[name] for name in FIGURES} == {name: alone[name] for name in FIGURES}
    with DemoFile(tmp_path / "alone.hdf5") as one, DemoFile(tmp_path / "shared.hdf5") as two:
        demos = [{demo.seed: demo for demo in map(file.read, file.names)} for file in (one, two)]
    assert demos[0].keys() == demos[1].keys()
    for seed, demo in demos[0].items():
        assert demo.instruction == demos[1][seed].instruction
        assert (demo.executed_actions == demos[1][seed].executed_actions).all()


def test_an_exported_policy_brings_its_own_execution_settings(random_run, tmp_path):
    """Guards against: an exported policy executed with other settings than the trained one."""
    folder = Path(shutil.copytree(Path(__file__).parents[1] / "control/tiny_export", tmp_path / "exported"))
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"execution": {"replan_every": 2}}))
    exported, trained = open_policy(folder), open_policy(random_run)
    assert exported.spec.execution == {"replan_every": 2}
    assert read_provenance(folder)["task"] == "lift"
    assert exported.spec.chunk == 2
    assert trained.spec.execution["replan_every"] == 2
    assert trained.spec.chunk == 2


@pytest.mark.slow
def test_an_exported_policy_is_measured_as_the_one_it_was_made_of(random_run, tmp_path):
    """Guards against: an export that is measured as another policy than its run folder."""
    export = ["export", str(random_run), "--format", "onnx", "--out", str(tmp_path / "exported")]
    subprocess.run([sys.executable, "-c", f"from robopolicy.cli import main; main({export!r})"], check=True)
    theirs = evaluated(random_run, tmp_path / "run.json")
    ours = evaluated(tmp_path / "exported", tmp_path / "exported.json")
    assert [each["success"] for each in ours["outcomes"]] == [each["success"] for each in theirs["outcomes"]]
    assert ours["provenance"]["execution"] == theirs["provenance"]["execution"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("verb", ["eval", "collect"])
def test_a_device_that_is_not_there_is_one_line(verb, random_run, tmp_path, capsys):
    """Guards against: a traceback out of torch, which suggests nothing to do instead."""
    given = [str(random_run), "--task", "reach"] if verb == "eval" else [*COLLECT, "--out", str(tmp_path / "x.hdf5")]
    assert main([verb, *given, "--device", "cuda"]) == 2
    assert capsys.readouterr().err.splitlines() == [
        f"robopolicy: {verb}: device cuda: this machine has 0 CUDA devices that torch can use; use --device cpu"
    ]
    assert not (tmp_path / "x.hdf5").exists()


def test_what_was_randomized_is_in_the_result_and_in_the_demos(random_run, tmp_path):
    """Guards against: a success rate under other light and friction that passes for the plain one."""
    options = ("--randomization.friction", "0.3", "--randomization.delay_steps", "1")
    result = evaluated(random_run, tmp_path / "out.json", *options)
    assert result["provenance"]["randomization"]["friction"] == 0.3
    assert result["provenance"]["physics"] == "auto"
    out = tmp_path / "demos.hdf5"
    assert main(["collect", *COLLECT, "--out", str(out), *options]) == 0
    with DemoFile(out) as file:
        assert file.attributes["env_args"]["simulator"]["randomization"]["delay_steps"] == 1


def test_an_impossible_randomization_is_refused_in_one_line(random_run, capsys):
    """Guards against: friction that could vanish, which would be found out by cubes sliding off the table."""
    assert main(["eval", str(random_run), *EVAL, "--randomization.friction", "1.5"]) == 2
    assert "--randomization.friction must be >= 0 and < 1, got 1.5" in capsys.readouterr().err


def test_an_exported_folder_keeps_its_own_precision(capsys):
    """Guards against: int8 asked of a float32 graph, silently not given, and reported as int8."""
    exported = str(Path(__file__).parent / "robot_export")
    assert main(["eval", exported, "--task", "lift", "--episodes", "1", "--precision", "int8"]) == 2
    assert "leave --precision out, and export with --int8" in capsys.readouterr().err
    assert main(["eval", exported, "--task", "lift", "--episodes", "1", "--flow-steps", "3"]) == 2
    assert "export again with --flow-steps 3" in capsys.readouterr().err


def test_a_run_folder_is_evaluated_at_another_precision(random_run, tmp_path):
    """Guards against: a precision that can't be measured before the policy is sent to a robot's computer."""
    policy = open_policy(random_run, precision="int8")
    assert policy._frozen[0].memory.precision == "int8"


@pytest.mark.parametrize(
    ("option", "value", "expected"),
    [
        ("--against", "missing.json", "--against missing.json: No such file"),
        ("--against", "{list}", "not an evaluation written by robopolicy eval"),
        ("--against", "{lift}", "is of task lift, not reach"),
        ("--against", "{elsewhere}", "shares no seed with 10000 .. 10004"),
        ("--json", ".", "--json . is a folder"),
        ("--json", "{list}/a.json", "is a file, where a folder must be"),
        ("--report", "{list}", "is a file, where a folder must be"),
        ("--videos", "2", "give --report FOLDER"),
        ("--seed", "-1", "expected 0 or more"),
        ("--num-envs", "0", "expected 1 or more"),
    ],
)
def test_what_would_lose_the_result_is_refused_before_the_episodes(
    random_run, tmp_path, capsys, option, value, expected
):
    """Guards against: a mistyped --against that is found out after the last episode, before the result is written."""
    outcomes = [{"seed": 3, "success": True}]
    for name, content in {
        "list": [1],
        "lift": {"task": "lift", "outcomes": outcomes},
        "elsewhere": {"task": "reach", "outcomes": outcomes},
    }.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
        value = value.replace(f"{{{name}}}", str(tmp_path / f"{name}.json"))
    kept = sorted(random_run.rglob("*"))
    assert main(["eval", str(random_run), *EVAL, option, value]) == 2
    said = capsys.readouterr()
    assert expected in said.err
    assert (said.err.count("\n"), said.out) == (1, "")
    assert sorted(random_run.rglob("*")) == kept


def test_a_result_is_kept_where_the_report_looks_for_it(random_run, tmp_path, capsys):
    """Guards against: a result that `eval` without --json forgets, and `report` then misses."""
    run = Path(shutil.copytree(random_run, tmp_path / "run", ignore=shutil.ignore_patterns("eval")))
    written = evaluated(run, tmp_path / "out.json")
    (kept,) = (run / "eval").glob("reach-*.json")
    assert json.loads(kept.read_text()) == written
    assert f"result    {kept}" in capsys.readouterr().out
    inside = evaluated(run, run / "mine.json")
    assert list((run / "eval").iterdir()) == [kept]
    assert inside["outcomes"] == written["outcomes"]


def test_two_evaluations_within_a_second_are_both_kept(random_run):
    """Guards against: the result of one of two evaluations that end together, overwritten by the other's."""
    options = Namespace(policy=[str(random_run)], json=None, report=None)
    assert len({_result_files(str(random_run), options, "reach")[-1] for _ in range(2)}) == 2


POSE_ENV = """
import gymnasium, numpy as np

class Pose(gymnasium.Env):
    \"\"\"Seven numbers; the task is to see one of at least 2.\"\"\"

    observation_space = gymnasium.spaces.Dict({"ee_pose": gymnasium.spaces.Box(-9, 9, (7,))})
    action_space = gymnasium.spaces.Box(-1, 1, (7,))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.seen(), {}

    def step(self, action):
        seen = self.seen()
        return seen, 0.0, False, False, {"success": seen["ee_pose"].max() > 2}

    def seen(self):
        return {"ee_pose": self.np_random.normal(size=7)}

    def render(self):
        return np.zeros((16, 16, 3), np.uint8)
"""
IN_ENV = ("--env", "pose_env:Pose", "--episodes", "6", "--env-copies", "3")


@pytest.fixture
def pose_map(tmp_path, monkeypatch):
    """A map beside its environment, which nothing else can import."""
    (tmp_path / "pose_env.py").write_text(POSE_ENV)
    (tmp_path / "map.yaml").write_text("max_episode_steps: 4\ninstruction: touch the red cube\n")
    yield str(tmp_path / "map.yaml")
    sys.modules.pop("pose_env", None)
    sys.path[:] = [folder for folder in sys.path if folder != str(tmp_path)]


def test_a_third_party_environment_gives_the_same_result_file(random_run, pose_map, tmp_path, capsys):
    """Guards against: results of other simulators that neither --against nor the report can read."""
    out = tmp_path / "out.json"
    given = [*IN_ENV, "--env-map", pose_map, "--json", str(out)]
    assert main(["eval", str(random_run), *given, "--report", str(tmp_path / "page"), "--videos", "1"]) == 0
    result = json.loads(out.read_text())
    assert set(FIGURES) <= result.keys()
    assert result["task"] == "pose_env-Pose"
    assert 0 < result["successes"] < 6
    assert result["provenance"]["environment"]["map"]["max_episode_steps"] == 4
    assert list(result["per_instruction"]) == ["touch the red cube"]
    assert (tmp_path / "page" / "report.html").is_file()
    assert len(list((tmp_path / "page").glob("*.mp4"))) == 2
    capsys.readouterr()
    assert main(["eval", str(random_run), *IN_ENV, "--env-map", pose_map, "--against", str(out)]) == 0
    assert "paired    6 shared seeds: only this 0, only out.json 0, p = 1.000" in capsys.readouterr().out


def test_several_runs_are_training_seeds_of_one_config(random_run, pose_map, tmp_path, capsys):
    """Guards against: three success rates from which the reader has to make an interval."""
    out = tmp_path / "group.json"
    runs = [str(random_run)] * 3
    assert main(["eval", *runs, *IN_ENV, "--env-map", pose_map, "--json", str(out)]) == 0
    group = json.loads(out.read_text())
    assert len(group["runs"]) == len(group["rates"]) == 3
    assert group["std"] == 0.0
    assert group["mean"] == group["runs"][0]["success_rate"]
    assert "training  3 runs: mean" in capsys.readouterr().out
    assert main(["eval", *runs, *IN_ENV, "--env-map", pose_map, "--against", str(out)]) == 0
    assert "against   3 runs, 6 shared seeds: +0.0 points" in capsys.readouterr().out


def test_runs_of_different_configs_are_rows_of_a_table(random_run, pose_map, tmp_path, capsys):
    """Guards against: a mean over a policy with memory and one without."""
    other = Path(shutil.copytree(random_run, tmp_path / "other"))
    config = other / "config.yaml"
    assert "replan_every: 2" in config.read_text()
    config.write_text(config.read_text().replace("replan_every: 2", "replan_every: 1"))
    out = tmp_path / "table.json"
    runs = [str(random_run), str(random_run), str(other)]
    assert main(["eval", *runs, *IN_ENV, "--env-map", pose_map, "--json", str(out)]) == 0
    said = capsys.readouterr().out
    assert "table     execution.replan_every 2  2 runs" in said
    assert "table     execution.replan_every 1  1 runs" in said
    rows = json.loads(out.read_text())["configs"]
    assert [len(row["rates"]) for row in rows] == [2, 1]
    assert rows[1]["minus_first"]["episodes"] == 6


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--env", "pose_env:Pose", "--task", "reach"], "--task reach and --env pose_env:Pose; give one"),
        (["--task", "reach", "--env-map", "{map}"], "--env-map without --env"),
        (["--task", "reach", "--env-copies", "2"], "--env-copies without --env"),
        (["--env", "pose_env:Pose", "--env-map", "{map}", "--env-copies", "0"], "expected 1 or more"),
        (["--env", "pose_env:Pose", "--env-map", "{map}", "--physics", "batch"], "are the simulator's"),
        (["--env", "pose_env:Pose", "--env-map", "{map}", "--task-options", "{a: 1}"], "are --env-kwargs"),
        (["--env", "pose_env:Pose"], "the policy reads an instruction, and the environment gives none"),
        (["--env", "pose_env:Pse", "--env-map", "{map}"], "--env pose_env:Pse"),
        (["--env", "pose_env:Pose", "--env-map", "none.yaml"], "none.yaml: no such file"),
        (["--env", "pose_env:Pose", "--env-map", "{map}", "--env-python", "none/python"], "none/python: No such file"),
        (
            ["--env", "pose_env:Pose", "--env-map", "{map}", "--env-python", "/bin/false"],
            "/bin/false ended (exit code 1)",
        ),
        (["--env", "no_such:Env", "--env-map", "{map}", "--env-python", sys.executable], "No module named 'no_such'"),
    ],
)
def test_an_environment_that_does_not_fit_is_one_line(random_run, pose_map, capsys, options, expected):
    """Guards against: a traceback, or an evaluation of something else than was asked for."""
    given = [option.replace("{map}", pose_map) for option in options]
    assert main(["eval", str(random_run), *given]) == 2
    said = capsys.readouterr()
    assert expected in said.err
    assert (said.err.count("\n"), said.out) == (1, "")
