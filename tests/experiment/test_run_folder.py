"""A policy as one folder: it acts as before, needs only what it names, and runs nothing that a stranger wrote."""

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from robopolicy import components
from robopolicy.components import ConfigError, load_plugins
from robopolicy.experiment import (
    CheckpointError,
    DemoFacts,
    ExperimentConfig,
    build_policy,
    load_policy,
    open_policy,
    read_provenance,
    save_policy,
)
from robopolicy.model.statistics import Statistics
from robopolicy.model.texts import Vocabulary
from robopolicy.types import ActionSpec, ArraySpec
from tests.full_disk import full_disk
from tests.small_runs import SMALL

OBS = {"ee_pose": ArraySpec((7,)), "front": ArraySpec((16, 16, 3), "uint8")}
PLUGIN = """
import os
from dataclasses import dataclass
from robopolicy.components import register
from robopolicy.model.memories.gru import GRUMemory, GRUOptions

open(os.environ["MARKER"], "w").close()

@dataclass(frozen=True)
class EchoOptions(GRUOptions):
    pass

@register("memory", "echo", EchoOptions)
class EchoMemory(GRUMemory):
    pass
"""


def make_policy(seed=0, kind="pixels", **changes):
    torch.manual_seed(seed)
    config = ExperimentConfig().change(SMALL | {"encoder.kind": kind, "memory.layers": 2} | changes)
    obs = {key: spec for key, spec in OBS.items() if kind == "pixels" or not spec.is_image}
    vocabulary = Vocabulary.of(["lift it", "drop it", "lift it or drop it now"])
    policy = build_policy(config, DemoFacts(ActionSpec(6, 1, rate_hz=20.0), obs, vocabulary))
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


def streamed(policy):
    """Action rows of three frames, one after another."""
    rows, state = [], policy.initial_state(2)
    for _ in range(3):
        actions, state = policy.act(observation(), state)
        rows.append(actions)
    return torch.stack(rows)


def test_differences_of_columns_are_kept_in_the_folder(tmp_path):
    """Guards against: differences that are chosen from the demos' statistics, which a folder does not hold, lost on loading."""
    rows = np.random.default_rng(0).normal(size=(50, 7))
    config = ExperimentConfig().change(SMALL | {"encoder.kind": "concat", "encoder.differences": True})
    statistics = {"ee_pose": Statistics.of(rows)}
    saved = build_policy(
        config, DemoFacts(ActionSpec(6, 1, rate_hz=20.0), {"ee_pose": OBS["ee_pose"]}, None, statistics)
    )
    save_policy(saved, tmp_path / "run")
    loaded = load_policy(tmp_path / "run")
    assert saved.encoder.differences.any()
    assert torch.equal(loaded.encoder.differences, saved.encoder.differences)


def test_a_loaded_policy_acts_as_the_saved_one(tmp_path):
    """Guards against: weights without their statistics, vocabulary or columns, which are another policy."""
    policy = make_policy()
    save_policy(policy, tmp_path / "run", {"task": "lift"})
    loaded = load_policy(tmp_path / "run")
    for model in (policy, loaded):
        assert not model.training
    torch.testing.assert_close(streamed(loaded), streamed(policy), atol=1e-5, rtol=1e-5)
    assert torch.equal(streamed(loaded.train().eval()), streamed(policy))
    assert loaded.config == policy.config
    assert loaded.action_spec == policy.action_spec
    assert loaded.vocabulary == policy.vocabulary
    assert (set(loaded.obs), loaded.cameras) == ({"ee_pose", "front"}, ("front",))
    assert (loaded.spec.control_dt, loaded.spec.provenance) == (0.05, {"task": "lift"})


def test_a_policy_is_loaded_at_a_precision(tmp_path):
    """Guards against: a precision that is accepted and not used, or that changes what was saved."""
    policy = make_policy(**{"memory.hidden": 256})
    save_policy(policy, tmp_path / "run")
    exact, coarse = (streamed(load_policy(tmp_path / "run", precision=p)) for p in (None, "int8"))
    torch.testing.assert_close(exact, streamed(policy), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(coarse, exact, atol=0.1, rtol=0)
    assert (coarse - exact).abs().max() > 1e-5
    saved = load_policy(tmp_path / "run", precision="int8").state_dict()
    assert all(torch.equal(saved[name], tensor) for name, tensor in policy.state_dict().items())


def test_a_flow_is_loaded_with_another_number_of_steps(tmp_path):
    """Guards against: a number that the packed copy of the head ignores, or that another head accepts."""
    policy = make_policy(**{"action_head.kind": "flow"})
    save_policy(policy, tmp_path / "run")
    coarse = streamed(load_policy(tmp_path / "run", flow_steps=1))
    policy.head.action_head.steps = 1
    torch.testing.assert_close(coarse, streamed(policy), atol=1e-5, rtol=1e-5)
    assert (coarse - streamed(load_policy(tmp_path / "run"))).abs().max() > 1e-3
    with pytest.raises(ConfigError, match="--flow-steps 0: expected 1 or more"):
        load_policy(tmp_path / "run", flow_steps=0)
    save_policy(make_policy(), tmp_path / "other")
    with pytest.raises(
        ConfigError, match="--flow-steps 3 is for the action head flow; this policy has a RegressionHead"
    ):
        load_policy(tmp_path / "other", flow_steps=3)


def test_a_precision_of_the_cpu_is_refused_elsewhere(tmp_path):
    """Guards against: int8 that is asked for on a GPU, silently not used, and measured as int8."""
    save_policy(make_policy(), tmp_path / "run")
    with pytest.raises(ValueError, match="precision int8 is for steps on the CPU; with device cuda leave it out"):
        load_policy(tmp_path / "run", device="cuda", precision="int8")


def test_provenance_is_given_back(tmp_path):
    """Guards against: an evaluation on the seeds of the training files, which it reads here."""
    facts = {"task": "lift", "demo_seeds": [1, 2], "control_dt": 0.05}
    save_policy(make_policy(), tmp_path, facts)
    assert read_provenance(tmp_path) == facts


def test_nothing_in_the_folder_is_a_pickle(tmp_path):
    """Guards against: a stranger's policy that runs a stranger's code when it is loaded."""
    save_policy(make_policy(), tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["README.md", "config.yaml", "policy.json", "policy.safetensors"]
    for path in tmp_path.iterdir():
        assert not path.read_bytes().startswith((b"\x80", b"PK"))


def test_an_interrupted_save_leaves_the_earlier_policy(tmp_path, monkeypatch):
    """Guards against: a kill, while the best policy is being replaced, that loses it."""
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
    """Guards against: 'No such file or directory', which doesn't say what the folder should be."""
    save_policy(make_policy(), tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(
        CheckpointError, match=f"no {name} in it. It has: .*give a folder that `robopolicy train` wrote"
    ):
        load_policy(tmp_path)


def test_a_missing_folder_is_one_line(tmp_path):
    """Guards against: a traceback for a typo in a path."""
    for read in (load_policy, open_policy, read_provenance):
        with pytest.raises(CheckpointError, match="runs/lft: no such run folder"):
            read(tmp_path / "runs/lft")


def test_another_format_version_is_refused(tmp_path):
    """Guards against: another layout read as ours, which gives a policy that acts wrong."""
    save_policy(make_policy(), tmp_path)
    description = json.loads((tmp_path / "policy.json").read_text())
    for version in (1, 99):
        (tmp_path / "policy.json").write_text(json.dumps(description | {"format": version}))
        with pytest.raises(CheckpointError, match=f"format version {version}; this robopolicy reads 2"):
            load_policy(tmp_path)
    (tmp_path / "policy.json").write_text("{")
    with pytest.raises(CheckpointError, match="cannot be read as JSON"):
        load_policy(tmp_path)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("action_spec", 3),
        ("action_spec", {"arm": "six"}),
        ("obs", None),
        ("obs", {"ee_pose": 7}),
        ("obs", {"ee_pose": {"shape": ["7"], "dtype": "float32"}}),
        ("obs", {"ee_pose": {"shape": [-1], "dtype": "float32"}}),
        ("vocabulary", {"words": ["lift"], "length": ["a"], "weights": [1.0], "longest": ""}),
        ("vocabulary", {"words": ["lift"], "length": -1, "weights": [1.0], "longest": ""}),
        ("vocabulary", {}),
        ("vocabulary", {"words": ["lift"]}),
        ("provenance", None),
        ("provenance", 3),
    ],
    ids=str,
)
def test_a_damaged_description_is_one_line(tmp_path, key, value):
    """Guards against: a TypeError for a file that another program has changed."""
    save_policy(make_policy(), tmp_path)
    description = json.loads((tmp_path / "policy.json").read_text())
    (tmp_path / "policy.json").write_text(json.dumps(description | {key: value}))
    with pytest.raises(CheckpointError, match=r"policy\.json") as refused:
        load_policy(tmp_path)
    assert "\n" not in str(refused.value)


def test_weights_that_do_not_fit_are_refused_in_one_line(tmp_path):
    """Guards against: a traceback where files of two runs are mixed in one folder."""
    save_policy(make_policy(kind="keys"), tmp_path / "other")
    save_policy(make_policy(), tmp_path / "run")
    os.replace(tmp_path / "other" / "policy.safetensors", tmp_path / "run" / "policy.safetensors")
    with pytest.raises(CheckpointError, match=r"doesn't fit config.yaml and policy.json") as caught:
        load_policy(tmp_path / "run")
    assert "\n" not in str(caught.value)
    (tmp_path / "run" / "policy.safetensors").write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match="doesn't fit"):
        load_policy(tmp_path / "run")


@pytest.mark.parametrize(
    ("section", "changes"),
    [
        ("memory", {"hidden": 30_000}),
        ("memory", {"layers": 10**6}),
        ("encoder", {"width": 10**7}),
        ("action_head", {"chunk": 10**9}),
        ("action_head", {"widths": [10**6, 10**6]}),
    ],
)
def test_a_config_that_asks_for_other_weights_takes_no_memory(tmp_path, section, changes):
    """Guards against: a stranger's folder of kilobytes whose policy takes gigabytes, or minutes, to build."""
    save_policy(make_policy(), tmp_path)
    values = yaml.safe_load((tmp_path / "config.yaml").read_text())
    values[section] |= changes
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(values))
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    with pytest.raises(CheckpointError, match=r"policy\.safetensors: doesn't fit config.yaml and policy.json"):
        load_policy(tmp_path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000, "kB"
    assert time.monotonic() - began < 20


@pytest.mark.parametrize(
    "text",
    [
        "a: &a [x, x]\nb: &b [*a, *a]\n",
        "a: &a [*a]\n",
        "a: !!python/object/apply:os.system ['true']\n",
        "\ta: 1\n",
        "[" * 5000,
        "\x00",
        "- 1\n",
    ],
)
def test_yaml_of_a_strangers_config_is_refused_in_one_line(tmp_path, text):
    """Guards against: aliases that loop or become billions of values, tags that make objects, and tracebacks."""
    save_policy(make_policy(), tmp_path)
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(CheckpointError, match=r"config\.yaml") as refused:
        load_policy(tmp_path)
    assert "\n" not in str(refused.value)


def test_weights_that_can_not_be_written_name_the_file(tmp_path):
    """Guards against: on a full disk, safetensors' own error type as a traceback, and half a file."""
    with full_disk(12_000), pytest.raises(OSError, match=r"File too large.*policy\.safetensors"):
        save_policy(make_policy(), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["README.md", "config.yaml", "policy.json"]


# -- plug-ins --------------------------------------------------------------------------------------------------------------


def forget_plugin():
    """As in another process, where the plug-in has not been imported."""
    sys.modules.pop("plugin_echo", None)
    if found := components._registered.pop(("memory", "echo"), None):
        components._by_options.pop(found.options)


@pytest.fixture
def foreign_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The run folder of a policy with the memory `echo` of a plug-in, in a process that has not imported it."""
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "plugin_echo.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(tmp_path / "modules")
    monkeypatch.setenv("MARKER", str(tmp_path / "imported"))
    load_plugins(["plugin_echo"])
    policy = make_policy(**{"memory.kind": "echo", "plugins": ["plugin_echo"], "memory.window": 3, "memory.hidden": 8})
    save_policy(policy, tmp_path / "run")
    forget_plugin()
    (tmp_path / "imported").unlink()
    yield tmp_path / "run"
    forget_plugin()


def test_a_run_folder_records_where_losses_augmentations_and_task_come_from(tmp_path):
    """Guards against: a run that can't be trained again because nobody knows whose loss it used."""
    changes = {"task": "lift", "augmentation": {"shift": {}, "lost": {}}, "losses": {"arm": 1.0, "forward": 0.1}}
    save_policy(make_policy(**changes), tmp_path)
    found = json.loads((tmp_path / "policy.json").read_text())["components"]
    assert found["losses.forward"] == {"kind": "forward", "origin": "robopolicy"}
    assert found["augmentation.shift"] == {"kind": "shift", "origin": "robopolicy"}
    assert found["augmentation.lost"] == {"kind": "lost", "origin": "unknown"}
    assert found["task"] == {"kind": "lift", "origin": "robopolicy"}
    assert "losses.arm" not in found


def test_a_run_folder_names_the_plug_in_that_is_missing(foreign_run):
    """Guards against: `memory 'echo' is unknown`, which doesn't say what has to be installed."""
    with pytest.raises(
        ConfigError, match=r"memory 'echo' is unknown; .* used components of plugin_echo: install it"
    ) as no:
        load_policy(foreign_run)
    assert "\n" not in str(no.value)
    assert "config.yaml" in str(no.value)
    description = json.loads((foreign_run / "policy.json").read_text())
    for damaged in (None, 3, {"memory": "echo"}):
        (foreign_run / "policy.json").write_text(json.dumps(description | {"components": damaged}))
        with pytest.raises(ConfigError, match="memory 'echo' is unknown"):
            load_policy(foreign_run)


def test_a_run_folder_imports_nothing_that_it_names(foreign_run, tmp_path):
    """Guards against: a stranger's policy whose config runs a module that lies on the path."""
    assert yaml.safe_load((foreign_run / "config.yaml").read_text())["plugins"] == ["plugin_echo"]
    for read in (load_policy, open_policy):
        with pytest.raises(ConfigError):
            read(foreign_run)
    assert "plugin_echo" not in sys.modules
    assert not (tmp_path / "imported").exists()
    own = make_policy(seed=1)
    save_policy(own, tmp_path / "own")
    text = (tmp_path / "own" / "config.yaml").read_text()
    (tmp_path / "own" / "config.yaml").write_text(text.replace("plugins: []", "plugins: [plugin_echo]"))
    assert load_policy(tmp_path / "own").config.plugins == ("plugin_echo",)
    assert not (tmp_path / "imported").exists()


def test_a_plug_in_that_the_caller_names_is_imported(foreign_run, tmp_path):
    """Guards against: a policy of a plug-in that can't be loaded at all."""
    loaded = load_policy(foreign_run, plugins=["plugin_echo"])
    assert (tmp_path / "imported").exists()
    assert type(loaded.head.memory).__name__ == "EchoMemory"
    assert streamed(loaded).isfinite().all()


# -- the robot's computer --------------------------------------------------------------------------------------------------

WITHOUT_EXTRAS = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"mujoco", "h5py", "lightning"}:
            raise ModuleNotFoundError(f"{name} is blocked")

sys.meta_path.insert(0, Blocker())
import torch
from robopolicy import load_policy

policy = load_policy(sys.argv[1])
obs = {"ee_pose": torch.ones(2, 7), "front": torch.full((2, 16, 16, 3), 7, dtype=torch.uint8), "instruction": "lift it"}
rows, state = policy.act(obs, policy.initial_state(2))
print(tuple(rows.shape), bool(rows.isfinite().all()))
for name in ("mujoco", "h5py", "lightning"):
    try:
        __import__(name)
    except ModuleNotFoundError:
        continue
    raise SystemExit(f"{name} was not blocked")
"""


def test_a_policy_acts_without_simulator_and_demo_libraries(tmp_path):
    """Guards against: a robot's computer that needs mujoco, h5py or lightning to run a policy."""
    save_policy(make_policy(), tmp_path / "run")
    command = [sys.executable, "-c", WITHOUT_EXTRAS, str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[0] == "(2, 2, 7) True"
