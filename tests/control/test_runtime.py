"""The runtime on a robot: no torch, the same words, clear mistakes."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from robopolicy.client import PolicyClient
from robopolicy.control import runtime
from robopolicy.control.runtime import ExportedState, ExportError
from robopolicy.experiment import open_policy
from robopolicy.model.texts import Vocabulary
from robopolicy.types import Observation
from tests.serving import running_server

TINY = Path(__file__).parent / "tiny_export"


@pytest.fixture
def policy() -> runtime.ExportedPolicy:
    return runtime.load(TINY, threads=1)


def look(batch: tuple[int, ...] = (), **changes) -> dict:
    return {
        "ee_pose": np.ones((*batch, 7)),
        "gripper": np.full((*batch, 1), 0.04),
        "instruction": "lift the red cube",
        **changes,
    }


WITHOUT_TORCH = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "h5py", "lightning", "mujoco", "gymnasium", "msgpack", "websockets"):
            raise ImportError(f"{{name}} is blocked")
sys.meta_path.insert(0, Block())
from robopolicy.control.runtime import load
import numpy as np
policy = load({folder!r})
actions, state = policy.act({{"ee_pose": np.ones(7), "gripper": np.ones(1), "instruction": "lift"}}, policy.initial_state())
print(actions.shape, "torch" in sys.modules)
"""


def test_it_runs_where_there_is_no_torch():
    """Guards against: a runtime that needs torch on a robot computer with onnxruntime and NumPy."""
    code = WITHOUT_TORCH.format(folder=str(TINY))
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600)
    assert result.stdout.strip() == "(2, 5) False", result.stderr


def test_any_leading_axes_give_the_same_actions(policy):
    """Guards against: a batch shape that works for rollouts and not for one robot, or for agents in environments."""
    alone, state = policy.act(look(), policy.initial_state())
    assert alone.shape == (2, 5)
    assert state.batch_shape == ()
    many, state = policy.act(look((2, 3)), policy.initial_state((2, 3)))
    assert many.shape == (2, 3, 2, 5)
    np.testing.assert_allclose(many, np.broadcast_to(alone, many.shape), atol=1e-6)
    same, _ = policy.act(Observation(look((4,)), ["lift the red cube"] * 4), policy.initial_state(4))
    np.testing.assert_allclose(same, np.broadcast_to(alone, same.shape), atol=1e-6)


def test_words_are_numbered_as_in_training(policy):
    """Guards against: words numbered otherwise than in training: another instruction."""
    vocabulary = Vocabulary(tuple(policy.manifest["text"]["words"]), policy.manifest["text"]["length"])
    instructions = ["Lift the RED cube!", "push it", "", None, "lift " * 20]
    expected = vocabulary.encode(instructions).numpy()
    np.testing.assert_array_equal(policy._words(instructions, 5, (5,)), expected)


def test_words_that_are_not_read_are_reported_once(policy, caplog):
    """Guards against: a long instruction cut off in silence where the policy in torch warns."""
    for _ in range(2):
        policy.act(look(instruction="lift the red cube slowly lift the red cube blue"), policy.initial_state())
    reported = [record.getMessage() for record in caplog.records]
    assert "instruction word 'blue' beyond the 8 words that this policy reads: left out" in reported
    assert "instruction word 'slowly' not in the training instructions: read as <unk>" in reported
    assert len(reported) == len(set(reported))


def test_the_instruction_matters(policy):
    """Guards against: an export that drops the instruction's input, and moves to any cube."""
    red, _ = policy.act(look(), policy.initial_state())
    blue, _ = policy.act(look(instruction="lift the blue cube"), policy.initial_state())
    assert np.abs(red - blue).max() > 1e-4


def test_states_join_and_part():
    """Guards against: states that the server can't join and split for its batches."""
    rng = np.random.default_rng(0)
    states = [ExportedState((1,), np.array([n]), (rng.normal(size=(2, 1, 3)).astype(np.float32),)) for n in range(3)]
    parts = ExportedState.concat(states).split(1)
    for state, part in zip(states, parts, strict=True):
        assert part.batch_shape == (1,)
        np.testing.assert_array_equal(part.age, state.age)
        np.testing.assert_array_equal(part.tensors[0], state.tensors[0])


def test_a_reset_is_of_the_episodes_named_and_carried_states_are_cleared():
    """Guards against: a carried state that survives a reset, since no window forgets it."""
    state = ExportedState((2,), np.array([3, 3]), (np.ones((1, 2, 4), np.float32),), carried=True)
    after = state.reset(np.array([True, False]))
    assert after.age.tolist() == [0, 3]
    assert after.tensors[0][0].sum(axis=1).tolist() == [0, 4]
    with pytest.raises(ValueError, match=r"done has shape \(3,\)"):
        state.reset(np.zeros(3, bool))


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"ee_pose": np.ones((2, 7))}, ValueError, r"'ee_pose' has shape \(2, 7\); expected \(1, 7\)"),
        ({"ee_pose": np.full((1, 7), np.nan)}, ValueError, "'ee_pose' holds NaN or infinite values"),
        ({"ee_pose": np.full((1, 7), 1e300)}, ValueError, "'ee_pose' holds NaN or infinite values"),
        ({"gripper": np.full((1, 1), -np.inf)}, ValueError, "'gripper' holds NaN or infinite values"),
        ({"instruction": ["a", "b"]}, ValueError, "2 instructions for a batch of"),
    ],
)
def test_a_wrong_observation_is_named(policy, changes, error, words):
    """Guards against: onnxruntime's own message, which names a node and not a key."""
    with pytest.raises(error, match=words):
        policy.act(look((1,), **changes), policy.initial_state(1))


def test_a_missing_key_lists_what_came(policy):
    """Guards against: an error without the list of keys that came."""
    with pytest.raises(KeyError, match=r"key .ee_pose. is not in this observation"):
        policy.act({"gripper": np.ones((1, 1))}, policy.initial_state(1))


def test_a_folder_that_is_no_export_is_refused(tmp_path):
    """Guards against: a run folder taken for an exported one."""
    with pytest.raises(ExportError, match=r"no manifest\.json in it; give a folder that `robopolicy export` wrote"):
        runtime.load(tmp_path)
    (tmp_path / "manifest.json").write_text(json.dumps({"format_version": 99}))
    with pytest.raises(ExportError, match="format version 99; this robopolicy reads 1"):
        runtime.load(tmp_path)
    (tmp_path / "manifest.json").write_text((TINY / "manifest.json").read_text())
    with pytest.raises(ExportError, match="the graph that"):
        runtime.load(tmp_path)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("spec", "observation", "gripper", "shape"), [1e308]),
        (("spec", "observation", "gripper", "shape"), [1, 2]),
        (("spec", "observation", "gripper", "shape"), ["a"]),
        (("spec", "observation", "ee_pose", "shape"), {}),
        (("spec", "observation", "ee_pose", "dtype"), 10**9),
        (("spec", "observation"), {}),
        (("text",), {"a": 1}),
        (("text", "length"), 10**9),
        (("text", "length"), 0),
        (("text",), None),
    ],
    ids=str,
)
def test_a_crafted_manifest_is_refused_in_one_line(tmp_path, place, value):
    """Guards against: gigabytes for an instruction, or a traceback of onnxruntime at the robot's first step."""
    shutil.copytree(TINY, tmp_path / "export")
    manifest = json.loads((TINY / "manifest.json").read_text())
    inner = manifest
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    (tmp_path / "export" / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ExportError, match=r"don't belong together|not a manifest of an export") as refused:
        runtime.load(tmp_path / "export")
    assert "\n" not in str(refused.value)


def test_an_exported_folder_is_served(policy):
    """Guards against: an export that can't be served on the robot's own computer."""
    served = open_policy(TINY)
    with running_server(served, served.spec) as server, PolicyClient("127.0.0.1", server.port) as client:
        obs = {"ee_pose": np.ones(7), "gripper": np.array([0.04]), "prompt": "lift the red cube"}
        expected, state = policy.act(look(), policy.initial_state())
        np.testing.assert_allclose(client.infer(obs)["actions"], expected, atol=1e-6)
        expected, state = policy.act(look(), state)
        np.testing.assert_allclose(client.infer(obs)["actions"], expected, atol=1e-6)
        assert client.metadata["provenance"] == {"task": "lift", "control_dt": 0.05}
