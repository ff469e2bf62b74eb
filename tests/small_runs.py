"""Training runs of a second, and what tests ask of them."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback

from robopolicy.experiment import ExperimentConfig, load_policy
from robopolicy.training.train import TrainingInterrupted, train

SMALL: dict[str, Any] = {
    "encoder.width": 8,
    "encoder.hidden": 8,
    "memory.window": 3,
    "memory.layers": 1,
    "memory.hidden": 8,
    "action_head.chunk": 2,
    "action_head.widths": [8],
}
"""Changes that make a config small."""


def small_config(demos: Path) -> ExperimentConfig:
    """Everything random that a run can have: shuffling, noise on observations, dropout."""
    changes = {
        "data.files": [str(demos)],
        "data.batch_size": 8,
        "augmentation.obs_noise": {"std": 0.1},
        "memory.layers": 2,
        "memory.dropout": 0.2,
        "optimizer.warmup_steps": 2,
        "training.max_steps": 8,
        "training.valid_every": 4,
        "training.checkpoint_every": 100,
    }
    return ExperimentConfig().change(SMALL | changes)


def changed(config: ExperimentConfig, **training: Any) -> ExperimentConfig:
    """The config with other values of `training`."""
    return config.change({f"training.{name}": value for name, value in training.items()})


class Losses(Callback):
    """Every step's loss; sends this process Ctrl-C after the given steps."""

    def __init__(self, signals_at: tuple[int, ...] = ()) -> None:
        self.values: list[float] = []
        self.signals_at = signals_at

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, *_: Any) -> None:
        """Note it."""
        self.values.append(outputs["loss"].item())
        if trainer.global_step in self.signals_at:
            os.kill(os.getpid(), signal.SIGINT)


def run(config: ExperimentConfig, folder: Path, stop_at: tuple[int, ...] = (), **options: Any) -> list[float]:
    """Train, stopped by Ctrl-C after the given steps; gives every step's loss."""
    losses = Losses(stop_at)
    if stop_at:
        with pytest.raises(TrainingInterrupted, match="--resume"):
            train(config, folder, callbacks=(losses,), **options)
    else:
        train(config, folder, callbacks=(losses,), **options)
    return losses.values


def weights(folder: Path) -> torch.Tensor:
    """All weights of the policy in a run folder."""
    return torch.cat([parameter.flatten() for parameter in load_policy(folder).parameters()])


def metrics(folder: Path) -> dict[str, Any]:
    """What the run says of itself."""
    return json.loads((folder / "metrics.json").read_text())
