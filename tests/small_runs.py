"""Training runs of a second, and what tests ask of them."""

import json
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback

from robopolicy.config import (
    AugmentationConfig,
    DataConfig,
    EncoderConfig,
    ExperimentConfig,
    HeadConfig,
    OptimizerConfig,
    TrainingConfig,
)
from robopolicy.model.checkpoint import load_policy
from robopolicy.training.train import TrainingInterrupted, train


def small_config(demos: Path) -> ExperimentConfig:
    """Everything random that a run can have: shuffling, noise on observations, dropout."""
    return ExperimentConfig(
        data=DataConfig(files=(str(demos),), batch_size=8),
        augmentation=AugmentationConfig(obs_noise=0.1),
        encoder=EncoderConfig(width=8, hidden=8),
        head=HeadConfig(window=3, chunk=2, hidden=8, layers=2, head_widths=(8,), dropout=0.2),
        optimizer=OptimizerConfig(warmup_steps=2),
        training=TrainingConfig(max_steps=8, valid_every=4, checkpoint_every=100),
    )


def changed(config: ExperimentConfig, **training: Any) -> ExperimentConfig:
    """The config with other values of `training`."""
    return replace(config, training=replace(config.training, **training))


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
