"""Starting from an earlier run's policy: its weights, its statistics, frozen parts."""

import logging
from dataclasses import replace

import numpy as np
import pytest
import torch

from robopolicy.cli import main
from robopolicy.components import ConfigError
from robopolicy.demos.hdf5 import DemoFile, DemoWriter
from robopolicy.experiment import load_policy
from robopolicy.experiment.building import key_scaling
from robopolicy.training.objective import Objective
from robopolicy.training.start import Start
from robopolicy.training.train import _prepare, train
from robopolicy.types import ActionSpec, Chunk
from tests.small_runs import changed, run, small_config, weights


@pytest.fixture(scope="module")
def begun(tiny_demos, tmp_path_factory):
    """A run of 8 steps on the tiny demos."""
    folder = tmp_path_factory.mktemp("begun") / "run"
    return train(small_config(tiny_demos), folder)


@pytest.fixture(scope="module")
def other_demos(make_demo, tmp_path_factory):
    """Demos with other instructions, poses moved by 3 and larger actions."""
    path = tmp_path_factory.mktemp("other") / "demos.hdf5"
    spec = ActionSpec(arm=6, gripper=1, kind="delta", space="ee", rate_hz=20.0)
    with DemoWriter(path, action_spec=spec) as writer:
        for number in range(4):
            demo = make_demo(number + 20)
            obs = {**demo.obs, "ee_pose": demo.obs["ee_pose"] + 3}
            actions = np.concatenate([1.5 * demo.actions[:, :6], demo.actions[:, 6:]], axis=1)
            writer.write(
                replace(demo, name=f"demo_{number}", obs=obs, actions=actions, instruction="stack the green cube")
            )
    return path


def without_noise(demos):
    return small_config(demos).change({"augmentation": {}, "memory.dropout": 0.0})


def first_loss(config, start):
    """The loss of the first validation batch before any step, and that of the policy that it began with."""
    module, data, _ = _prepare(config, start)
    (batch, *_) = data.val_dataloader()
    module.policy.eval()
    own = module.objective(module.policy, batch)[0]["loss"]
    earlier = load_policy(start.folder)
    objective = Objective(
        config.losses, earlier, key_scaling(config.normalization, data.privileged, data.obs_statistics)
    )
    theirs = objective(earlier, batch)[0]["loss"]
    target = batch.target[0, 0, 0]
    row = earlier.action_normalizer.to_rows(Chunk(arm=target[:6], gripper_logit=target[6:] - 0.5))
    torch.testing.assert_close(row, torch.as_tensor(data._valid.actions[0]), atol=1e-5, rtol=0)
    data.teardown()
    return own.item(), theirs.item()


@pytest.mark.parametrize("new", [False, True])
def test_with_kept_statistics_the_first_loss_is_the_starts(new, begun, tiny_demos, other_demos):
    """Guards against: weights on other inputs than they were trained for, so that fine-tuning begins by relearning."""
    own, theirs = first_loss(without_noise(other_demos if new else tiny_demos), Start(str(begun)))
    assert abs(own - theirs) <= 1e-6


def test_refit_statistics_are_those_of_the_new_demos(begun, other_demos):
    """Guards against: `refit` that keeps, or `keep` that refits."""
    config = without_noise(other_demos)
    kept, *_ = _prepare(config, Start(str(begun)))
    refit, *_ = _prepare(config, Start(str(begun), statistics="refit"))
    fresh, *_ = _prepare(config, None)
    start = load_policy(begun)
    for policy, expected in ((kept.policy, start), (refit.policy, fresh.policy)):
        for name, buffer in policy.action_normalizer.named_buffers():
            assert torch.equal(buffer, dict(expected.action_normalizer.named_buffers())[name])
        for name, buffer in policy.scaling.named_buffers():
            assert torch.equal(buffer, dict(expected.scaling.named_buffers())[name])


def test_new_words_are_learned_unless_the_text_model_is_frozen(begun, other_demos, tmp_path):
    """Guards against: a fine-tuned policy to which every word of its new instructions is the same unknown one."""
    start, config = load_policy(begun), small_config(other_demos)
    frozen, *_ = _prepare(config, Start(str(begun), freeze=("text",)))
    assert frozen.policy.vocabulary == start.vocabulary
    after = load_policy(train(config, tmp_path / "run", start=Start(str(begun))))
    known = len(start.vocabulary.words) + 2
    assert after.vocabulary.words[: known - 2] == start.vocabulary.words
    assert set(after.vocabulary.words[known - 2 :]) == {"stack", "green"}
    first, second = after.text.embedding.weight[known:]
    assert (first - second).abs().max() > 1e-4


def test_longer_instructions_keep_what_the_start_knows_of_shorter_ones(begun, other_demos, tmp_path):
    """Guards against: a refused start, or word positions that begin from random numbers, for instructions with more words."""
    path = tmp_path / "long.hdf5"
    with DemoFile(other_demos) as file, DemoWriter(path, action_spec=file.action_spec) as writer:
        for name in file.names:
            writer.write(replace(file.read(name), instruction="put the cube that is green on the one that is red"))
    start = load_policy(begun)
    module, *_ = _prepare(small_config(path), Start(str(begun)))
    text = module.policy.text
    assert text.vocabulary.length == 12
    assert start.vocabulary.length == 8
    assert torch.equal(text.position[:8], start.text.position)
    assert torch.equal(text.embedding.weight[: len(start.text.embedding.weight)], start.text.embedding.weight)


def test_how_far_the_new_demos_differ_is_printed(begun, other_demos, caplog):
    """Guards against: demos that lie outside what the kept statistics cover, unnoticed."""
    with caplog.at_level(logging.INFO):
        _prepare(without_noise(other_demos), Start(str(begun)))
    assert "ee_pose: center moved by" in caplog.text
    assert "actions: they reach 1.64" in caplog.text
    assert "--statistics refit scales actions to the new range" in caplog.text


def test_frozen_parts_stay_and_the_others_learn(begun, tiny_demos, tmp_path):
    """Guards against: a frozen part that weight decay or averaging still moves."""
    folder = train(small_config(tiny_demos), tmp_path / "run", start=Start(str(begun), freeze=("encoder", "memory")))
    before, after = load_policy(begun), load_policy(folder)
    moved = {
        name
        for (name, old), new in zip(before.named_parameters(), after.parameters(), strict=True)
        if not torch.equal(old, new)
    }
    assert moved
    assert not any(name.startswith(("encoder.", "head.memory.")) for name in moved)
    assert any(name.startswith("head.action_head.") for name in moved)


def test_a_resumed_run_keeps_its_start(begun, other_demos, tmp_path):
    """Guards against: labels on another scale after a resumption, since the command line named no start any more."""
    config, start = small_config(other_demos), Start(str(begun), freeze=("memory",))
    whole = train(config, tmp_path / "whole", start=start)
    run(changed(config, checkpoint_every=100), tmp_path / "cut", stop_at=(5,), start=start)
    resumed = train(config, tmp_path / "cut", resume=True)
    assert torch.equal(weights(resumed), weights(whole))
    for name, buffer in load_policy(resumed).action_normalizer.named_buffers():
        assert torch.equal(buffer, dict(load_policy(begun).action_normalizer.named_buffers())[name])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--freeze", "memory"], "--freeze without --start"),
        (["--statistics", "keep"], "--statistics without --start"),
        (
            ["--start", "{begun}", "--freeze", "head"],
            "--freeze head: no such part; a policy has encoder, text, pooling",
        ),
        (["--start", "nowhere"], "nowhere: no such run folder"),
        (["--start", "{begun}", "--memory.hidden", "16"], "its weights differ from those of this config"),
    ],
)
def test_a_start_that_does_not_fit_is_one_line(words, message, begun, tiny_demos, tmp_path, capsys):
    """Guards against: a traceback, or weights silently left random."""
    config = [
        f"--{key}={value}" for key, value in {"memory.window": 3, "encoder.width": 8, "encoder.hidden": 8}.items()
    ]
    given = [word.format(begun=begun) for word in words]
    assert main(["train", "--run-dir", str(tmp_path / "r"), "--data.files", str(tiny_demos), *config, *given]) == 2
    shown = capsys.readouterr().err
    assert message in shown
    assert len(shown.splitlines()) == 1


def test_other_action_columns_are_refused(begun, make_demo, tmp_path):
    """Guards against: labels of absolute poses on the scale of a policy of motions."""
    path = tmp_path / "demos.hdf5"
    with DemoWriter(
        path, action_spec=ActionSpec(arm=6, gripper=1, kind="absolute", space="ee", rate_hz=20.0)
    ) as writer:
        for number in range(3):
            writer.write(make_demo(number))
    with pytest.raises(ConfigError, match=r"its action columns are .*'delta'.* those of the demos .*'absolute'"):
        _prepare(small_config(path), Start(str(begun)))
