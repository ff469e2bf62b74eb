"""Training a backbone together with the head, by LoRA adapters or all of it, on tiny models."""

import signal
import subprocess
import sys

import pytest
import torch
import yaml
from safetensors.torch import load_file

pytest.importorskip("transformers", reason="the extra vlm isn't installed")
pytest.importorskip("peft", reason="the extra vlm isn't installed")

from robopolicy.components import ConfigError
from robopolicy.experiment import ExperimentConfig, config_to_dict, load_policy
from robopolicy.model.encoders._loading import load_backbone
from robopolicy.training.train import train
from tests.small_runs import metrics, run, small_config, weights
from tests.tiny_backbones import save_backbone


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """No test may look for a model on the hub."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def tuning_config(demos, model, **options):
    """A run of 4 steps that trains the backbone in this folder, with options of the encoder."""
    changes = {
        "encoder.kind": "transformers",
        "encoder.width": 8,
        "encoder.hidden": 8,
        "encoder.model": str(model),
        "encoder.gradient_checkpointing": True,
        "data.cameras": ["front"],
        "data.batch_size": 2,
        "optimizer.warmup_steps": 0,
        "training.max_steps": 4,
        "training.valid_every": 4,
    }
    return small_config(demos).change(changes | {f"encoder.{name}": value for name, value in options.items()})


def lora_config(demos, model):
    targets = ["q_proj", "v_proj"]
    return tuning_config(demos, model, lora_rank=2, lora_alpha=3.0, lora_dropout=0.1, lora_targets=targets)


def test_adapters_are_saved_loaded_and_resumed_bit_for_bit(tiny_demos, tmp_path):
    """Guards against: adapters that are lost at the end, or whose dropout draws other numbers after a resumption."""
    model = save_backbone("clip", tmp_path / "model")
    config = lora_config(tiny_demos, model)
    whole = train(config, tmp_path / "whole")
    run(config, tmp_path / "cut", stop_at=(2,))
    resumed = train(config, tmp_path / "cut", resume=True)
    assert torch.equal(weights(resumed), weights(whole))
    saved = load_file(whole / "policy.safetensors")
    adapters = {name: value for name, value in saved.items() if "lora_" in name}
    assert adapters
    assert all("q_proj" in name or "v_proj" in name for name in adapters)
    assert any(value.abs().max() > 0 for name, value in adapters.items() if "lora_B" in name), "they have learned"
    loaded = dict(load_policy(whole).named_parameters())
    assert all(torch.equal(loaded[name], value) for name, value in adapters.items())


def finetune_config(demos, model):
    config = tuning_config(demos, model, finetune=True)
    return config.change({"optimizer.lr": 1e-2, "optimizer.encoder_lr_scale": 0.1})


@pytest.mark.parametrize("kind", ["siglip", "smolvlm"])
def test_a_fine_tuned_backbone_is_saved_loaded_and_resumed(kind, tiny_demos, tmp_path):
    """Guards against: weights of the backbone that are trained and then lost, in the folder or at a resumption."""
    model = save_backbone(kind, tmp_path / "model")
    config = finetune_config(tiny_demos, model)
    whole = train(config, tmp_path / "whole")
    run(config, tmp_path / "cut", stop_at=(2,))
    assert torch.equal(weights(train(config, tmp_path / "cut", resume=True)), weights(whole))
    before, saved = load_backbone(str(model), (16, 16)).state_dict(), load_file(whole / "policy.safetensors")
    tuned = {name.removeprefix("encoder.backbone."): value for name, value in saved.items() if ".backbone." in name}
    assert tuned.keys() == before.keys()
    moved = [(tuned[name] - value).abs().max().item() for name, value in before.items()]
    assert 1e-4 < max(moved) < 0.01, "4 steps of at most 1e-3 each: a tenth of the head's rate"
    assert sum(change > 0 for change in moved) > len(moved) / 2
    loaded = load_policy(whole)
    assert all(torch.equal(value, saved[name]) for name, value in loaded.state_dict().items())
    with torch.no_grad():
        shown = torch.zeros(1, 16, 16, 3, dtype=torch.uint8)
        theirs, ours = (
            each([shown], None)[0] for each in (load_backbone(str(model), (16, 16)), loaded.encoder.backbone)
        )
    assert (theirs - ours).abs().max() > 1e-4, "the loaded policy sees with the tuned weights"
    assert not loaded.encoder.backbone.training


def test_training_weights_of_low_precision_is_warned_of(tiny_demos, tmp_path, caplog):
    """Guards against: a fine-tuning whose steps are smaller than what bfloat16 can hold."""
    config = finetune_config(tiny_demos, save_backbone("clip", tmp_path / "model"))
    train(config.change({"encoder.dtype": "bfloat16", "training.max_steps": 1}), tmp_path / "run")
    assert "has bfloat16 weights, in which small updates are lost to rounding" in caplog.text


KILLED = """
import os, signal, sys
from lightning.pytorch import Callback
from robopolicy.experiment import read_config
from robopolicy.training.train import train

class Killed(Callback):
    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == 5:
            os.kill(os.getpid(), signal.SIGKILL)

train(read_config(sys.argv[1]), sys.argv[2], callbacks=(Killed(),))
"""


@pytest.mark.slow
@pytest.mark.parametrize("configured", [lora_config, finetune_config])
def test_a_killed_run_resumes_the_backbone_bit_for_bit(configured, tiny_demos, tmp_path):
    """Guards against: adapters or weights, their dropout or their optimizer that start from scratch after a power cut."""
    config = configured(tiny_demos, save_backbone("clip", tmp_path / "model"))
    config = config.change({"training.max_steps": 6, "training.valid_every": 2, "training.checkpoint_every": 2})
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config_to_dict(config)))
    words = [sys.executable, "-c", KILLED, str(tmp_path / "config.yaml"), str(tmp_path / "cut")]
    assert subprocess.run(words, check=False, timeout=900).returncode == -signal.SIGKILL
    assert not (tmp_path / "cut" / "metrics.json").exists() or metrics(tmp_path / "cut")["steps"] < 6
    resumed = train(config, tmp_path / "cut", resume=True)
    whole = train(config, tmp_path / "whole")
    assert torch.equal(weights(resumed), weights(whole))
    first, second = ([row["loss"] for row in metrics(folder)["train"]] for folder in (resumed, whole))
    assert first[-1] == second[-1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"encoder.lora_dropout": 0.1}, "--encoder.lora_dropout without adapters; give --encoder.lora_rank"),
        ({"encoder.gradient_checkpointing": True}, "--encoder.gradient_checkpointing with a frozen backbone"),
        (
            {"encoder.lora_rank": 2, "encoder.finetune": True},
            "finetune trains all weights of the backbone, .*; give one",
        ),
        ({"encoder.lora_rank": 2, "encoder.lora_dropout": 1.0}, "lora_dropout must be >= 0 and < 1, got 1.0"),
    ],
)
def test_options_that_contradict_each_other_are_refused(changes, message):
    """Guards against: an option that is given and does nothing."""
    with pytest.raises(ConfigError, match=message):
        ExperimentConfig().change({"encoder.kind": "transformers", **changes})


def test_an_unknown_linear_map_is_refused_with_those_there(tiny_demos, tmp_path):
    """Guards against: adapters on nothing, since the model's maps have other names."""
    config = lora_config(tiny_demos, save_backbone("clip", tmp_path / "model"))
    with pytest.raises(ConfigError, match=r"no linear map 'wq'; it has: .*q_proj"):
        train(config.change({"encoder.lora_targets": ["wq"]}), tmp_path / "run")
