"""An exported policy gives the same actions as the one in torch, and says what it is."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from robopolicy.control import runtime
from robopolicy.control.export import ExportError, Reference, export_policy
from robopolicy.experiment import DemoFacts, ExperimentConfig, build_policy, load_policy
from robopolicy.model.policy import ChunkPolicy
from robopolicy.model.texts import Vocabulary
from robopolicy.types import ActionSpec, ArraySpec
from tests.exporting import CASES, SLOW_CASES
from tests.tiny_backbones import save_sentence_model


def exported(out: Path, names: list[str]) -> Path:
    """All cases by one process, which imports the exporter once."""
    command = [sys.executable, "-m", "tests.exporting", str(out), *names]
    result = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr[-3000:]
    return out


@pytest.fixture(scope="module")
def cases(tmp_path_factory) -> Path:
    return exported(tmp_path_factory.mktemp("exports"), list(CASES))


@pytest.fixture(scope="module")
def slow_cases(tmp_path_factory) -> Path:
    return exported(tmp_path_factory.mktemp("exports"), list(SLOW_CASES))


class Plant:
    """Two robots that execute their actions: errors feed back, as on a real one."""

    def __init__(self, policy) -> None:
        self.policy, self.state = policy, policy.initial_state(2)
        self.pose = np.tile(np.linspace(-1, 1, 7, dtype=np.float32), (2, 1))
        self.gripper = np.full((2, 1), 0.04, np.float32)
        self.instructions = ["lift the red cube", "lift the blue sphere"]

    def tick(self, step: int, over: np.ndarray) -> np.ndarray:
        """One control step; episodes in `over` restart: their memory is reset, their pose is kept."""
        self.state = self.state.reset(torch.from_numpy(over))
        observation = {"ee_pose": self.pose, "gripper": self.gripper, "instruction": self.instructions}
        expected = self.policy.obs if isinstance(self.policy, ChunkPolicy) else self.policy.spec.observation
        if "front" in expected:
            shade = np.clip(self.pose[:, :1] * 50 + 128 + np.arange(256), 0, 255).astype(np.uint8)
            observation["front"] = np.repeat(shade.reshape(2, 16, 16, 1), 3, axis=3)
        if "tokens" in expected:
            observation["tokens"] = np.tile(self.pose[:, None, :1], (1, 5, 16)) * np.linspace(
                -1, 1, 16, dtype=np.float32
            )
        actions, self.state = self.policy.act(observation, self.state)
        actions = np.asarray(actions)
        rng = np.random.default_rng(step)
        self.pose = self.pose * 0.95 + rng.normal(size=7).astype(np.float32) * 0.1
        self.pose[:, :3] += 0.1 * actions[:, 0, [0, 1, 3]]
        self.gripper = actions[:, 0, 2:3].astype(np.float32)
        return actions


def largest_difference(folder: Path, steps: int = 500) -> float:
    """Between the run in torch and its export, each in its own closed loop, resets included."""
    reference, other = Plant(load_policy(folder / "run")), Plant(runtime.load(folder / "exported", threads=1))
    worst = 0.0
    for step in range(steps):
        over = np.array([step % 7 == 3, step % 11 == 5])
        arm = [0, 1, 3]
        worst = max(worst, float(np.abs(reference.tick(step, over) - other.tick(step, over))[..., arm].max()))
    return worst


def test_500_closed_loop_steps_equal_torch(cases):
    """Guards against: a graph that drifts, forgets a reset or bakes the batch in, and fails on the robot only."""
    assert largest_difference(cases / "window") < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in SLOW_CASES if not name.startswith("int8")])
def test_every_memory_pooling_and_head_exports(slow_cases, name):
    """Guards against: a component whose operators can't be traced or exported."""
    assert largest_difference(slow_cases / name) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("name", ["int8", "int8-transformer"])
def test_int8_keeps_to_its_tolerance(slow_cases, name):
    """Guards against: an int8 export that differs by half of an action's range and is written all the same."""
    manifest = json.loads((slow_cases / name / "exported" / "manifest.json").read_text())
    assert 0 < manifest["error_to_torch"] <= 0.02
    assert manifest["int8_frames"] == 512
    assert largest_difference(slow_cases / name) < 0.25  # units of the actions, whose range is 5


@pytest.mark.slow
def test_int8_that_cannot_keep_to_its_tolerance_is_refused(slow_cases, tmp_path):
    """Guards against: a tolerance that is printed and not kept."""
    code = (
        "import sys, warnings; warnings.simplefilter('ignore')\n"
        "from robopolicy import load_policy\n"
        "from robopolicy.control.export import export_policy\n"
        f"run = load_policy({str(slow_cases / 'int8-transformer' / 'run')!r})\n"
        f"export_policy(run, {str(tmp_path / 'close')!r}, int8=True, int8_tolerance=1e-3)\n"
        f"export_policy(run, {str(tmp_path / 'out')!r}, int8=True, int8_tolerance=1e-9)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600)
    assert result.returncode != 0
    assert "raise --int8-tolerance or export in float32" in result.stderr
    assert not (tmp_path / "out" / "manifest.json").exists()
    manifest = json.loads((tmp_path / "close" / "manifest.json").read_text())
    assert manifest["float_layers"]
    assert manifest["error_to_torch"] <= 1e-3


@pytest.mark.parametrize("given", [np.nan, 0.0])
def test_a_graph_that_gives_nan_is_not_taken_for_exact(monkeypatch, given):
    """Guards against: max(0.0, nan), which is 0.0."""
    config = ExperimentConfig().change({"memory.hidden": 8})
    policy = build_policy(config, DemoFacts(ActionSpec(), {"ee_pose": ArraySpec((7,))}))
    observation = {"ee_pose": np.zeros((1, 7), np.float32)}
    reference = Reference(policy, [(1, [observation, observation])])

    def act(observation, state):
        actions, state = policy.act(observation, state)
        return actions.numpy() + given, state

    graph = SimpleNamespace(initial_state=policy.initial_state, act=act)
    monkeypatch.setattr(runtime, "load", lambda folder: graph)
    np.testing.assert_equal(reference.largest_error(Path("exported")), given)


def test_the_manifest_tells_names_shapes_rates_and_words(cases):
    """Guards against: a manifest that lacks what the writer of another runtime needs."""
    manifest = json.loads((cases / "window" / "exported" / "manifest.json").read_text())
    inputs = {entry["name"]: (entry["shape"], entry["dtype"]) for entry in manifest["inputs"]}
    assert inputs == {
        "ee_pose": (["batch", 7], "float32"),
        "gripper": (["batch", 1], "float32"),
        "instruction": (["batch", 8], "int64"),
        "age": (["batch"], "int64"),
        "state.0": ([2, "batch", 3, 16], "float32"),
        "state.1": ([2, "batch", 3, 16], "float32"),
    }
    assert [entry["name"] for entry in manifest["outputs"]] == ["actions", "next.age", "next.state.0", "next.state.1"]
    assert manifest["text"] == {"words": ["blue", "cube", "lift", "red", "the"], "length": 8}
    assert manifest["spec"]["control_dt"] == 0.05
    assert manifest["spec"]["action"]["rate_hz"] == 20.0
    assert manifest["error_to_torch"] < 1e-4


def test_nothing_of_the_training_machine_leaves_with_the_export(cases):
    """Guards against: source files and paths of the training machine in a folder that is given to others."""
    here = str(Path(__file__).parents[2]).encode()
    for path in (cases / "window" / "exported").iterdir():
        assert here not in path.read_bytes()
        assert b"/home/someone" not in path.read_bytes()


def test_what_cannot_be_exported_is_said_in_one_line(tmp_path):
    """Guards against: a stack of tracing errors instead of a reason."""
    config = ExperimentConfig().change(
        {"text.kind": "sentence", "text.model": str(save_sentence_model(tmp_path / "model"))}
    )
    facts = DemoFacts(ActionSpec(), {"ee_pose": ArraySpec((7,))}, Vocabulary.of(["lift"]))
    with pytest.raises(ExportError, match="a sentence model isn't exported"):
        export_policy(build_policy(config, facts), tmp_path / "out")
    assert not (tmp_path / "out").exists()
