"""DemoDataModule: from files to everything a policy is built from and trained on."""

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback

from robopolicy.demos.formats import open_demos
from robopolicy.demos.hdf5 import TOKENS_PADDED, DemoFile, DemoWriter
from robopolicy.demos.provenance import fingerprint
from robopolicy.demos.tokens import IDENTITY
from robopolicy.experiment import ConfigError, ExperimentConfig, load_policy
from robopolicy.training.datamodule import DemoDataModule
from robopolicy.training.loader import BatchLoader
from robopolicy.training.train import train
from robopolicy.types import ActionSpec, ArraySpec, Demo, DemoFormatError
from tests.small_runs import run, small_config


def experiment(path: Path, changes: dict | None = None, **data: object) -> ExperimentConfig:
    given = {"data.files": [str(path)], "data.batch_size": 6, "memory.window": 4, "action_head.chunk": 3}
    return ExperimentConfig().change(given | {f"data.{name}": value for name, value in data.items()} | (changes or {}))


def opened(config: ExperimentConfig) -> DemoDataModule:
    module = DemoDataModule(config, device="cpu")
    module.setup("fit")
    return module


def test_everything_a_policy_needs_is_there(tiny_demos):
    """Guards against: a policy built from other shapes than it is trained on."""
    module = opened(experiment(tiny_demos, cameras=("front",), privileged_keys=("cube_red",)))
    assert module.action_spec == open_demos(tiny_demos).action_spec
    assert module.obs == {
        "ee_pose": ArraySpec((7,)),
        "gripper": ArraySpec((1,)),
        "front": ArraySpec((16, 16, 3), "uint8"),
    }
    assert module.privileged == {"cube_red": ArraySpec((3,))}
    assert module.instructions == ("lift the blue cube", "lift the red cube")
    batch = next(iter(module.train_dataloader()))
    assert batch.obs["front"].shape == (6, 4, 16, 16, 3)
    assert batch.obs["cube_red"].shape == (6, 4, 3)
    assert batch.target.shape == (6, 4, 3, 7)
    assert batch.target.abs().max() <= 1.0
    assert set(batch.target[..., 6].unique().tolist()) <= {0.0, 1.0}
    for line in ("4 demos, 43 steps; 1 demos, 11 steps held out", "binary gripper 6 (-1 or 1)", "20 Hz", "cube_red"):
        assert line in module.summary()
    module.teardown()


def test_statistics_come_from_the_training_demos_only(tmp_path):
    """Guards against: statistics that include held-out demos, or whose scale a held-out outlier sets."""
    with DemoWriter(tmp_path / "a.hdf5") as writer:
        for number, size in enumerate((1.0, 1.0, 100.0)):
            rows = size * np.stack([np.arange(5.0), np.arange(5.0) ** 2], axis=1)
            writer.write(Demo(f"demo_{number}", {"x": rows}, rows))
        writer.write_filter_key("train", ["demo_0", "demo_1"])
        writer.write_filter_key("valid", ["demo_2"])
    module = opened(experiment(tmp_path / "a.hdf5"))
    assert module.action_statistics.high.tolist() == [4.0, 16.0]
    assert module.obs_statistics["x"].high.tolist() == [4.0, 16.0]
    assert module.obs_statistics["x"].count == 10
    assert next(iter(module.val_dataloader())).target.max() > 50


def test_validation_shows_every_held_out_step_in_order(tiny_demos):
    """Guards against: a validation loss over other windows each time, which can't pick the best checkpoint."""
    module = opened(experiment(tiny_demos))
    with DemoFile(tiny_demos) as file:
        expected = file.read("demo_4").obs["gripper"]
    for _ in range(2):
        batches = list(module.val_dataloader())
        frames = torch.cat([batch.obs["gripper"][:, 0] for batch in batches])
        valid = torch.cat([batch.frame_valid[:, 0] for batch in batches])
        np.testing.assert_array_equal(frames[valid].numpy(), expected)


def test_no_held_out_demo_means_no_validation(tmp_path, make_demo):
    """Guards against: a single demo refused as a training set."""
    with DemoWriter(tmp_path / "a.hdf5") as writer:
        writer.write(make_demo(0))
    module = opened(experiment(tmp_path / "a.hdf5"))
    assert list(module.val_dataloader()) == []
    assert "none held out" in module.summary()


def test_carried_memory_gets_whole_demos_in_order(tiny_demos):
    """Guards against: truncated BPTT over shuffled windows, which would carry a state from one demo into another."""
    carry = {"memory.history": "carry"}
    whole = next(iter(opened(experiment(tiny_demos, carry)).train_dataloader()))
    assert whole.frame_valid.shape == (6, 15), "without a segment length it is the longest demo"
    assert whole.episode_start is not None
    assert whole.episode_start.all()
    cut = list(opened(experiment(tiny_demos, carry, segment=5)).train_dataloader())
    assert cut[0].frame_valid.shape == (6, 5)
    assert len(cut) == 3
    assert sum(int(batch.frame_valid.sum()) for batch in cut) == 43


def test_a_segment_may_be_longer_than_the_window(tiny_demos):
    """Guards against: frames of an expensive encoder encoded once for every window."""
    batch = next(iter(opened(experiment(tiny_demos, segment=9)).train_dataloader()))
    assert batch.target.shape == (6, 9, 3, 7)


def test_a_key_may_be_an_input_and_privileged_too(tiny_demos):
    """Guards against: a privileged key that can't be an input, as a state estimator's comparison needs."""
    module = opened(experiment(tiny_demos, obs_keys=("gripper", "cube_red"), privileged_keys=("cube_red",)))
    assert list(module.obs) == ["gripper", "cube_red"]
    assert list(module.privileged) == ["cube_red"]
    batch = next(iter(module.train_dataloader()))
    assert batch.obs["cube_red"].shape == (6, 4, 3)


def test_several_files_are_one_set(tiny_demos, tmp_path, make_demo):
    """Guards against: a split over all files instead of one for each."""
    with DemoWriter(tmp_path / "more.hdf5", action_spec=open_demos(tiny_demos).action_spec) as writer:
        for number in range(20, 22):
            writer.write(make_demo(number))
    config = experiment(tiny_demos, {"data.files": [str(tiny_demos), str(tmp_path / "more.hdf5")]})
    module = opened(config)
    assert module.provenance["train_demos"] == 5
    assert module.provenance["valid_demos"] == 2
    assert [file["name"] for file in module.provenance["files"]] == ["tiny.hdf5", "more.hdf5"]


def test_the_log_says_when_the_instruction_is_not_used(tiny_demos):
    """Guards against: the log of an unconditional baseline that reads like that of a conditioned policy."""
    assert "not used (--text.kind none)" in opened(experiment(tiny_demos, {"text.kind": "none"})).summary()
    assert "not used" not in opened(experiment(tiny_demos)).summary()


def test_the_log_says_how_many_demos_have_no_instruction(make_demo, tmp_path):
    """Guards against: files with and without instructions, mixed without a word."""
    with DemoWriter(tmp_path / "mixed.hdf5", action_spec=ActionSpec(arm=6, gripper=1)) as writer:
        for number in range(6):
            demo = make_demo(number)
            writer.write(demo if number < 3 else replace(demo, instruction=None))
    opened_all = opened(experiment(tmp_path / "mixed.hdf5", valid_fraction=0.0))
    assert "'lift the blue cube', 'lift the red cube'; 3 demos without an instruction" in opened_all.summary()


def test_provenance_is_json_and_names_seeds_rate_and_files(tiny_demos):
    """Guards against: seeds, rate or files that `eval` and a robot need and don't find."""
    provenance = opened(experiment(tiny_demos)).provenance
    assert json.loads(json.dumps(provenance)) == provenance
    assert provenance["demo_seeds"] == [0, 1, 2, 3, 4], "held-out demos choose the checkpoint, so they count as seen"
    assert provenance["control_dt"] == 0.05
    assert provenance["files"][0] == {"name": "tiny.hdf5", **fingerprint(tiny_demos)}


def test_mistakes_are_told_before_anything_is_read(tiny_demos, tmp_path):
    """Guards against: tracebacks from deep within for mistakes in the config."""
    with pytest.raises(ConfigError, match=r"give --data.files"):
        opened(ExperimentConfig())
    with pytest.raises(DemoFormatError, match="no camera 'wrist'; it has: front"):
        opened(experiment(tiny_demos, cameras=("wrist",)))
    with pytest.raises(DemoFormatError, match="no such file"):
        opened(experiment(tmp_path / "nothing.hdf5"))
    with pytest.raises(RuntimeError, match="call setup"):
        DemoDataModule(ExperimentConfig(), device="cpu").summary()


def test_each_process_takes_its_share_of_the_batch(tiny_demos, monkeypatch):
    """Guards against: two processes with the same segments, which train on half the batch they claim."""
    module = opened(experiment(tiny_demos))
    whole = next(iter(module.train_dataloader())).target
    shares = []
    for rank in range(2):
        monkeypatch.setattr("robopolicy.training.datamodule._process", lambda rank=rank: (rank, 2))
        loader = opened(experiment(tiny_demos)).train_dataloader()
        assert isinstance(loader, BatchLoader)
        shares.append(next(iter(loader)).target)
    assert torch.equal(torch.cat(shares), whole)
    monkeypatch.setattr("robopolicy.training.datamodule._process", lambda: (0, 4))
    with pytest.raises(ConfigError, match=r"--data.batch_size 6 can't be shared by 4 processes"):
        module.train_dataloader()


def posed(path, flipped, absolute=True):
    """Three demos with a quaternion among observations and actions, whose sign may flip in every other row."""
    spec = ActionSpec(arm=7, gripper=1, kind="absolute" if absolute else "unknown", space="ee", rate_hz=20.0)
    with DemoWriter(path, action_spec=spec) as writer:
        for number in range(3):
            random = np.random.default_rng(number)
            turned = random.normal([1, 0, 0, 0], 0.2, size=(14, 4))
            turned /= np.linalg.norm(turned, axis=1, keepdims=True)
            turned[:: 2 if flipped else 14] *= -1
            at, grip = random.normal(size=(14, 3)), np.where(np.arange(14) < 7, -1.0, 1.0)[:, None]
            obs = {"eef_pos": at, "eef_quat": turned}
            writer.write(Demo(f"demo_{number}", obs, np.concatenate([at, turned, grip], axis=1)))
    return path


@pytest.mark.parametrize("form", ["aligned", "6d"])
def test_a_quaternions_sign_in_the_file_changes_nothing_that_is_learned(tmp_path, form):
    """Guards against: q and -q learned for one pose, whose mean is not a rotation."""
    files = [posed(tmp_path / f"{flipped}.hdf5", flipped) for flipped in (False, True)]
    config = replace(small_config(files[0]), augmentation={}).change({"normalization.rotation": form})
    runs = [config.change({"data.files": [str(path)]}) for path in files]
    losses = [run(each, tmp_path / str(place)) for place, each in enumerate(runs)]
    assert losses[0] == losses[1]
    policy = load_policy(tmp_path / "1")
    assert policy.head.action_head.arm_width == {"aligned": 7, "6d": 9}[form]
    with DemoFile(files[1]) as file:
        demo = file.read("demo_0")
    states = [policy.initial_state() for _ in range(2)]
    for t in range(4):
        rows = []
        for sign in (1, -1):
            seen = {"eef_pos": demo.obs["eef_pos"][t], "eef_quat": sign * demo.obs["eef_quat"][t]}
            actions, states[sign < 0] = policy.act(seen, states[sign < 0])
            rows.append(actions)
        assert torch.equal(*rows)
        assert rows[0].shape == (2, 8)
        torch.testing.assert_close(rows[0][:, 3:7].norm(dim=-1), torch.ones(2))


def test_the_log_says_what_is_taken_for_a_rotation(tmp_path):
    """Guards against: a rotation guessed by name that nobody sees."""
    module = opened(experiment(posed(tmp_path / "a.hdf5", flipped=True)))
    assert "eef_quat (quaternion), actions (quaternion), learned aligned" in module.summary()
    config = experiment(tmp_path / "a.hdf5", {"normalization.rotations": {"eef_quart": "quaternion"}})
    with pytest.raises(ConfigError, match="'eef_quart': no such key; there are eef_pos, eef_quat, actions"):
        opened(config)


def with_tokens(path, padding=None):
    """Four demos with five tokens of width 6 a frame, as `encode` writes them; demo n has n of padding, filled with this."""
    about = {IDENTITY: json.dumps({"model": "tiny"})} | ({} if padding is None else {TOKENS_PADDED: True})
    with DemoWriter(path, attributes=about) as writer:
        for number in range(4):
            random = np.random.default_rng(number)
            tokens = random.normal(size=(12, 5, 6)).astype(np.float16)
            actions = random.uniform(-1, 1, size=(12, 3))
            told = {}
            if padding is not None:
                tokens[:, 5 - number :] = padding
                told = {"token_valid": (np.arange(5) < 5 - number).astype(np.uint8)}
            writer.write(Demo(f"demo_{number}", {"x": actions[:, :1]}, actions, tokens=tokens, attributes=told))
    return path


def tokens_alone(path, pooling="max", latent=1):
    """Tokens that need no more than pooling before the memory."""
    changes = {
        "data.obs_keys": ["tokens"],
        "encoder.kind": "precomputed",
        "encoder.width": 6,
        "encoder.hidden": 0,
        "text.kind": "none",
        "pooling.kind": pooling,
        "pooling.latent": latent,
    }
    return replace(small_config(path), augmentation={}).change(changes)


@pytest.mark.parametrize(("pooling", "latent", "rounding"), [("max", 2, 0.0), ("mean", 1, 1e-6)])
def test_tokens_that_need_only_pooling_are_pooled_once_for_the_same_numbers(tmp_path, pooling, latent, rounding):
    """Guards against: tokens pooled in every step, at 256 times the memory, or pooled to other numbers."""
    config = tokens_alone(with_tokens(tmp_path / "a.hdf5"), pooling=pooling, latent=latent)
    on_disk = config.change({"data.placement": "disk"})
    ahead, as_they_are = opened(config), opened(on_disk)
    assert next(iter(ahead.train_dataloader())).obs["tokens"].shape == (8, 3, latent, 6)
    assert next(iter(as_they_are.train_dataloader())).obs["tokens"].shape == (8, 3, 5, 6)
    assert f"tokens pooled ahead of time ({pooling}), {latent} kept a frame" in ahead.summary()
    assert "pooled" not in as_they_are.summary()
    assert ahead.obs == as_they_are.obs == {"tokens": ArraySpec((5, 6), "float16")}
    losses = [run(each, tmp_path / str(place)) for place, each in enumerate((config, on_disk))]
    assert losses[0] == pytest.approx(losses[1], rel=rounding, abs=0)
    policy = load_policy(tmp_path / "0")
    actions, _ = policy.act({"tokens": torch.randn(5, 6)}, policy.initial_state())
    assert actions.shape == (2, 3)


@pytest.mark.parametrize("head", [{"pooling": "max", "latent": 2}, {"pooling": "mean"}, {"pooling": "attention"}])
def test_what_padding_holds_changes_nothing_that_is_learned(tmp_path, head):
    """Guards against: an instruction that is weighed by how much shorter it is than the longest one."""
    ones, nines = (with_tokens(tmp_path / f"{value}.hdf5", padding=value) for value in (1, 9))
    configs = [tokens_alone(ones, **head), tokens_alone(nines, **head)]
    configs.append(configs[1].change({"data.placement": "disk"}))
    losses = [run(config, tmp_path / str(place)) for place, config in enumerate(configs)]
    assert losses[0] == losses[1] == pytest.approx(losses[2], rel=1e-5)
    policy = load_policy(tmp_path / "2")
    assert policy.obs["token_valid"] == ArraySpec((5,))
    tokens, valid = torch.randn(5, 6), torch.tensor([1.0, 1.0, 1.0, 0.0, 0.0])
    changed = torch.where(valid[:, None] > 0, tokens, torch.full_like(tokens, 9.0))
    answers = [
        policy.act({"tokens": seen, "token_valid": valid}, policy.initial_state())[0] for seen in (tokens, changed)
    ]
    torch.testing.assert_close(*answers, rtol=0, atol=0)


def test_tokens_are_not_pooled_ahead_where_weights_come_first(tmp_path):
    """Guards against: tokens pooled before a perceptron or attention, which would have seen more."""
    path = with_tokens(tmp_path / "a.hdf5")
    for config in (tokens_alone(path, pooling="attention"), tokens_alone(path).change({"encoder.hidden": 8})):
        assert next(iter(opened(config).train_dataloader())).obs["tokens"].shape == (8, 3, 5, 6)


@pytest.mark.parametrize("placement", ["host", "disk"])
def test_a_file_overwritten_while_training_reads_it_ends_the_training(tmp_path, make_demo, placement):
    """Guards against: a training that goes to its end on demos that nobody can name afterwards."""

    def write(path: Path, first: int) -> None:
        with DemoWriter(path) as writer:
            for number in range(first, first + 3):
                writer.write(make_demo(number))

    write(tmp_path / "a.hdf5", 0)
    write(tmp_path / "b.hdf5", 5)

    class Overwriting(Callback):
        def on_train_epoch_start(self, trainer, pl_module) -> None:
            if trainer.current_epoch == 1:
                os.replace(tmp_path / "b.hdf5", tmp_path / "a.hdf5")

    config = small_config(tmp_path / "a.hdf5").change(
        {
            "training.max_steps": 50,
            "data.placement": placement,
            "data.cameras": ["front"],
            "encoder": {"kind": "pixels"},
        }
        if placement == "disk"
        else {"training.max_steps": 50}
    )
    with pytest.raises(DemoFormatError, match=r"a.hdf5: the file was written to since training began"):
        train(config, tmp_path / "run", callbacks=(Overwriting(),))


@pytest.mark.parametrize(("opens", "values"), [("first", (0.08, 0.0)), ("second", (0.0, 0.08)), (None, (0.05, 0.05))])
def test_which_value_opens_the_gripper_is_recorded(tmp_path, make_demo, opens, values):
    """Guards against: a policy that tells no robot which way its gripper goes."""
    rng = np.random.default_rng(0)
    with DemoWriter(tmp_path / "a.hdf5") as writer:
        for number in range(3):
            demo = make_demo(number, steps=40)
            opening = np.repeat(values, [23, 17])[:, None] + rng.normal(0, 1e-3, (40, 1))
            writer.write(replace(demo, obs={**demo.obs, "gripper": opening.astype(np.float32)}))
    module = opened(experiment(tmp_path / "a.hdf5"))
    assert module.provenance["gripper_opens"] == opens
