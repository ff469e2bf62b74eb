"""Several robots in one training: shared memory, own action specs, normalizers and action heads."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from robopolicy.cli import main
from robopolicy.components import ConfigError
from robopolicy.demos.hdf5 import DemoWriter
from robopolicy.experiment import ExperimentConfig, load_policy
from robopolicy.experiment.run_folder import CheckpointError
from robopolicy.training.train import train
from robopolicy.types import ActionSpec
from tests.small_runs import changed, run, small_config


@pytest.fixture(scope="module")
def files(make_demo, tmp_path_factory):
    """Demos of an arm of 6 columns with a gripper at 20 Hz, and of one of 3 columns without at 10 Hz."""
    folder = tmp_path_factory.mktemp("groups")
    specs = {"wide": ActionSpec(arm=6, gripper=1, rate_hz=20.0), "narrow": ActionSpec(arm=3, gripper=0, rate_hz=10.0)}
    for place, (name, spec) in enumerate(specs.items()):
        with DemoWriter(folder / f"{name}.hdf5", action_spec=spec) as writer:
            for number in range(4):
                demo = make_demo(number + 10 * place)
                obs = {**demo.obs, "ee_pose": demo.obs["ee_pose"] + 5 * place}
                actions = demo.actions if name == "wide" else 3 * demo.actions[:, :3]
                writer.write(replace(demo, name=f"demo_{number}", obs=obs, actions=actions))
    return {name: folder / f"{name}.hdf5" for name in specs}


def config_of(files, **changes):
    groups = {
        name: {"files": [str(path)], "weight": weight}
        for (name, path), weight in zip(files.items(), (1, 3), strict=True)
    }
    return small_config("").change({"data.files": [], "data.groups": groups, **changes})


@pytest.fixture(scope="module")
def trained(files, tmp_path_factory):
    return train(config_of(files), tmp_path_factory.mktemp("runs") / "run")


def test_each_group_has_its_actions_and_all_share_the_memory(trained):
    """Guards against: a group with the columns, scale or rate of another, or a memory that is copied and drifts apart."""
    wide, narrow = load_policy(trained, group="wide"), load_policy(trained, group="narrow")
    assert (wide.spec.action.width, narrow.spec.action.width) == (7, 3)
    assert (wide.spec.control_dt, narrow.spec.control_dt) == (0.05, 0.1)
    for part in ("encoder", "head.memory"):
        both = [dict(policy.get_submodule(part).named_parameters()) for policy in (wide, narrow)]
        assert both[0]
        assert all(torch.equal(value, both[1][name]) for name, value in both[0].items())
    for policy, columns in ((wide, 7), (narrow, 3)):
        seen = {key: np.zeros((1, *spec.shape), np.float32) for key, spec in policy.obs.items()}
        seen["instruction"] = "lift the red cube"
        rows, _ = policy.act(seen, policy.initial_state(1))
        assert rows.shape[-1] == columns
    scales = [policy.scaling.normalizer("ee_pose").offset for policy in (wide, narrow)]
    assert float((scales[1] - scales[0]).mean()) > 4
    ranges = [policy.action_normalizer.arm_scale for policy in (wide, narrow)]
    assert float(ranges[1].mean()) > 2 * float(ranges[0].mean())


def test_a_group_is_chosen_by_name(trained, capsys):
    """Guards against: the first group's action head on another robot."""
    with pytest.raises(CheckpointError, match="no group is given; it has narrow, wide; give --group NAME"):
        load_policy(trained)
    for words, message in (
        ([], "no group is given; it has narrow, wide"),
        (["--group", "ur5"], "no group 'ur5'; it has narrow, wide"),
    ):
        assert main(["run", str(trained), "--robot", "fake", *words]) == 2
        assert message in capsys.readouterr().err
    with pytest.raises(CheckpointError, match="no group 'wide'; it has none"):
        load_policy(trained / "groups" / "wide", group="wide")


def test_a_training_of_groups_resumes_exactly(files, trained, tmp_path):
    """Guards against: batches of a group that are repeated or skipped after an interruption."""
    config = config_of(files)
    run(changed(config, checkpoint_every=100), tmp_path / "cut", stop_at=(5,))
    resumed = train(config, tmp_path / "cut", resume=True)
    for name in files:
        whole, again = (load_policy(folder, group=name).state_dict() for folder in (trained, resumed))
        assert all(torch.equal(value, again[key]) for key, value in whole.items())


def test_the_loss_is_the_weighted_mean_of_the_groups(trained):
    """Guards against: a weight that is ignored."""
    (*_, last) = json.loads((trained / "metrics.json").read_text())["valid"]
    assert last["loss"] == pytest.approx(0.25 * last["loss_wide"] + 0.75 * last["loss_narrow"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data.files": ["a.hdf5"]}, "--data.files beside --data.groups"),
        ({"data.groups": {"a b": {"files": ["x"]}}}, "'a b' is not a name of letters"),
        (
            {"data.groups": {"a": {"file": ["x"]}}},
            "unknown option --data.groups.a.file; the options are: files, weight",
        ),
        ({"data.groups": {"a": {"files": []}}}, "a group without files"),
        ({"data.groups": {"a": {"files": ["x"], "weight": 0}}}, "weight must be > 0"),
        ({"memory.history": "carry"}, "--data.groups can't be used with --memory.history carry"),
    ],
)
def test_groups_that_contradict_themselves_are_refused(changes, message, files):
    """Guards against: an option that is given and does nothing."""
    with pytest.raises(ConfigError, match=message):
        config_of(files, **changes)


def test_groups_that_see_different_keys_are_refused(files, make_demo, tmp_path):
    """Guards against: one encoder for inputs of two widths."""
    with DemoWriter(tmp_path / "other.hdf5") as writer:
        for number in range(3):
            demo = make_demo(number)
            writer.write(replace(demo, obs={**demo.obs, "ee_pose": demo.obs["ee_pose"][:, :6]}))
    with pytest.raises(ConfigError, match=r"ee_pose is \(7,\) in wide and \(6,\) in narrow; groups share the encoder"):
        train(config_of({**files, "narrow": tmp_path / "other.hdf5"}), tmp_path / "run")


def test_a_start_or_closed_loop_evaluation_with_groups_is_refused(files, trained, tmp_path):
    """Guards against: options that would be ignored."""
    with pytest.raises(ConfigError, match=r"--start with --data\.groups"):
        train(config_of(files), tmp_path / "run", start=str(trained / "groups" / "wide"))


def test_groups_are_read_from_a_file_and_from_the_command_line(files, tmp_path):
    """Guards against: a mapping that only Python can give."""
    groups = {name: {"files": [str(path)]} for name, path in files.items()}
    small = ["--max-steps", "2", "--memory.hidden", "8", "--data.batch_size", "4", "--memory.window", "3"]
    assert main(["train", "--data.groups", json.dumps(groups), *small, "--run-dir", str(tmp_path / "run")]) == 0
    assert sorted(path.name for path in (tmp_path / "run" / "groups").iterdir()) == ["narrow", "wide"]
    assert ExperimentConfig().change({"data.groups": groups}).data.groups["wide"].weight == 1.0
