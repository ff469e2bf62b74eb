"""A policy as one folder."""

import json
import os

import pytest
import torch

from robopolicy.config import EncoderConfig, ExperimentConfig, HeadConfig
from robopolicy.model.checkpoint import CheckpointError, load_policy, read_provenance, save_policy
from robopolicy.model.losses import ForwardPrediction
from robopolicy.model.policy import ChunkPolicy
from robopolicy.model.text import Vocabulary
from robopolicy.types import ActionSpec, ArraySpec
from tests.full_disk import full_disk

OBS = {"ee_pose": ArraySpec((7,)), "front": ArraySpec((16, 16, 3), "uint8")}
TARGETS = {"target_pos": ArraySpec((3,))}


def make_policy(seed=0, kind="pixels"):
    torch.manual_seed(seed)
    config = ExperimentConfig(
        encoder=EncoderConfig(kind=kind, width=8, hidden=8),
        head=HeadConfig(window=3, chunk=2, hidden=8, head_widths=(8,)),
    )
    policy = ChunkPolicy(
        config, ActionSpec(6, 1, rate_hz=20.0), OBS, Vocabulary.of(["lift it", "drop it"]), targets=TARGETS
    )
    with torch.no_grad():
        for tensor in policy.action_normalizer.state_dict().values():
            tensor.add_(torch.rand_like(tensor))
    return policy.eval()


def observation():
    return {
        "ee_pose": torch.ones(2, 7),
        "front": torch.full((2, 16, 16, 3), 7, dtype=torch.uint8),
        "instruction": "lift it",
    }


def test_a_loaded_policy_acts_as_the_saved_one(tmp_path):
    """Weights without their statistics, vocabulary or columns are another policy."""
    policy = make_policy()
    save_policy(policy, tmp_path / "run", {"task": "lift"})
    loaded = load_policy(tmp_path / "run")
    for model in (policy, loaded):
        assert not model.training
    rows, _ = policy.act(observation(), policy.initial_state(2))
    again, _ = loaded.act(observation(), loaded.initial_state(2))
    assert torch.equal(rows, again)
    assert loaded.config == policy.config
    assert loaded.action_spec == policy.action_spec
    assert (loaded.obs_keys, loaded.cameras) == (("ee_pose",), ("front",))


def test_a_policy_is_loaded_at_a_precision(tmp_path):
    """A robot's computer may trade exactness for time; what was saved must not change by it."""
    policy = make_policy()
    save_policy(policy, tmp_path / "run")
    coarse = load_policy(tmp_path / "run", precision="int8")
    assert (coarse.head.precision, load_policy(tmp_path / "run").head.precision) == ("int8", "float32")
    rows, again = (model.act(observation(), model.initial_state(2))[0] for model in (policy, coarse))
    torch.testing.assert_close(rows, again, atol=0.1, rtol=0)


def test_a_precision_of_the_cpu_is_refused_elsewhere(tmp_path):
    """int8 that is asked for on a GPU and silently not used would be measured as int8."""
    save_policy(make_policy(), tmp_path / "run")
    with pytest.raises(ValueError, match="precision int8 is for steps on the CPU; with device cuda leave it out"):
        load_policy(tmp_path / "run", "cuda", "int8")


def test_provenance_is_given_back(tmp_path):
    """`eval` refuses the seeds that the training files held; it reads them here."""
    facts = {"task": "lift", "demo_seeds": [1, 2], "control_dt": 0.05}
    save_policy(make_policy(), tmp_path, facts)
    assert read_provenance(tmp_path) == facts


def test_nothing_in_the_folder_is_a_pickle(tmp_path):
    """Loading a stranger's policy must not run a stranger's code."""
    save_policy(make_policy(), tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["config.yaml", "policy.json", "policy.safetensors"]
    for path in tmp_path.iterdir():
        assert not path.read_bytes().startswith((b"\x80", b"PK"))


def test_an_interrupted_save_leaves_the_earlier_policy(tmp_path, monkeypatch):
    """A kill while the best policy is being replaced must not lose it."""
    save_policy(make_policy(seed=0), tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    real = os.replace

    def interrupted(source, target):
        if target.suffix == ".safetensors":
            raise KeyboardInterrupt
        real(source, target)

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save_policy(make_policy(seed=1), tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("name", ["config.yaml", "policy.json", "policy.safetensors"])
def test_a_missing_file_is_one_line(tmp_path, name):
    """'No such file or directory' doesn't say what the folder should be."""
    save_policy(make_policy(), tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(
        CheckpointError, match=f"no {name} in it. It has: .*give a folder that `robopolicy train` wrote"
    ):
        load_policy(tmp_path)


def test_a_missing_folder_is_one_line(tmp_path):
    """A typo in a path."""
    with pytest.raises(CheckpointError, match="runs/lft: no such run folder"):
        load_policy(tmp_path / "runs/lft")
    with pytest.raises(CheckpointError, match="no such run folder"):
        read_provenance(tmp_path / "runs/lft")


def test_another_format_version_is_refused(tmp_path):
    """Read as ours, a future layout would give a policy that acts wrong."""
    save_policy(make_policy(), tmp_path)
    description = json.loads((tmp_path / "policy.json").read_text())
    (tmp_path / "policy.json").write_text(json.dumps(description | {"format": 99}))
    with pytest.raises(CheckpointError, match="format version 99; this robopolicy reads 1"):
        load_policy(tmp_path)
    (tmp_path / "policy.json").write_text("{")
    with pytest.raises(CheckpointError, match="no valid JSON"):
        load_policy(tmp_path)


def test_weights_that_do_not_fit_are_refused_in_one_line(tmp_path):
    """Files of two runs mixed in one folder."""
    save_policy(make_policy(kind="keys"), tmp_path / "other")
    save_policy(make_policy(), tmp_path / "run")
    os.replace(tmp_path / "other" / "policy.safetensors", tmp_path / "run" / "policy.safetensors")
    with pytest.raises(CheckpointError, match=r"doesn't fit config.yaml and policy.json") as caught:
        load_policy(tmp_path / "run")
    assert "\n" not in str(caught.value)
    (tmp_path / "run" / "policy.safetensors").write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match="doesn't fit"):
        load_policy(tmp_path / "run")


def test_what_only_trained_the_policy_is_not_saved_with_it(tmp_path):
    """A contributed loss term's weights, which no config can build again, would make the folder unreadable."""
    policy = make_policy()
    provider = ForwardPrediction(hidden=8, pooled=8)
    policy.add_terms(provider)
    assert set(map(id, provider.parameters())) <= set(map(id, policy.parameters()))
    save_policy(policy, tmp_path / "run")
    rows, _ = load_policy(tmp_path / "run").act(observation(), policy.initial_state(2))
    assert torch.equal(rows, policy.act(observation(), policy.initial_state(2))[0])


def test_weights_that_could_not_be_written_name_the_file(tmp_path):
    """Guards against: on a full disk, safetensors' own error type as a traceback, and half a file."""
    with full_disk(12_000), pytest.raises(OSError, match=r"File too large.*policy\.safetensors"):
        save_policy(make_policy(), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.yaml", "policy.json"]
