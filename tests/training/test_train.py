"""A run folder holds the best policy, and a run that was stopped goes on as if it never had been."""

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
    ConfigError,
    DataConfig,
    EncoderConfig,
    ExperimentConfig,
    HeadConfig,
    OptimizerConfig,
    TrainingConfig,
)
from robopolicy.model.checkpoint import load_policy, read_provenance
from robopolicy.training.callbacks import TrainingDivergedError
from robopolicy.training.train import TrainingInterrupted, train


@pytest.fixture
def config(tiny_demos: Path) -> ExperimentConfig:
    """Everything random that a run can have: shuffling, noise on observations, dropout."""
    return ExperimentConfig(
        data=DataConfig(files=(str(tiny_demos),), batch_size=8),
        augmentation=AugmentationConfig(obs_noise=0.1),
        encoder=EncoderConfig(width=8, hidden=8),
        head=HeadConfig(window=3, chunk=2, hidden=8, layers=2, head_widths=(8,), dropout=0.2),
        optimizer=OptimizerConfig(warmup_steps=2),
        training=TrainingConfig(max_steps=8, valid_every=4, checkpoint_every=100),
    )


def changed(config: ExperimentConfig, **training: Any) -> ExperimentConfig:
    return replace(config, training=replace(config.training, **training))


class Losses(Callback):
    """Every step's loss; sends this process a signal after the given steps."""

    def __init__(self, signals_at: tuple[int, ...] = ()) -> None:
        self.values: list[float] = []
        self.signals_at = signals_at

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, *_: Any) -> None:  # noqa: D102
        self.values.append(outputs["loss"].item())
        if trainer.global_step in self.signals_at:
            os.kill(os.getpid(), signal.SIGINT)


def run(config: ExperimentConfig, folder: Path, stop_at: tuple[int, ...] = (), **options: Any) -> list[float]:
    losses = Losses(stop_at)
    if stop_at:
        with pytest.raises(TrainingInterrupted, match="--resume"):
            train(config, folder, callbacks=(losses,), **options)
    else:
        train(config, folder, callbacks=(losses,), **options)
    return losses.values


def weights(folder: Path) -> torch.Tensor:
    return torch.cat([parameter.flatten() for parameter in load_policy(folder).parameters()])


def test_a_run_folder_is_a_policy_that_acts_with_its_figures_beside_it(
    config: ExperimentConfig, tmp_path: Path
) -> None:
    """A run whose policy can't be loaded, or whose provenance is lost, is worth nothing."""
    folder = train(config, tmp_path / "run")
    policy = load_policy(folder)
    obs = {key: torch.zeros(2, spec.width) for key, spec in policy.obs.items()}
    actions, _ = policy.act({**obs, "instruction": "lift the red cube"}, policy.initial_state(2))
    assert actions.shape == (2, 2, 7)
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["steps"] == 8
    assert metrics["finished"]
    assert [row["step"] for row in metrics["valid"]] == [4, 8]
    assert {"loss", "loss_arm", "loss_gripper"} <= set(metrics["train"][-1])
    assert metrics["best"]["loss"] == min(row["loss"] for row in metrics["valid"])
    assert metrics["provenance"]["demo_seeds"] == read_provenance(folder)["demo_seeds"] == [0, 1, 2, 3, 4]
    assert 0 <= metrics["data_fraction"] < 1
    assert list((folder / "tensorboard").glob("events*"))
    assert not list(folder.glob("*.partial"))


def test_training_learns(config: ExperimentConfig, tmp_path: Path) -> None:
    """Gradients that never reach the weights leave every other test of this file green."""
    head = replace(config.head, dropout=0.0, layers=1, hidden=64, head_widths=(64,))
    calm = replace(config, augmentation=AugmentationConfig(), encoder=EncoderConfig(width=32, hidden=32), head=head)
    calm = replace(calm, optimizer=OptimizerConfig(lr=1e-2, warmup_steps=5))
    losses = run(changed(calm, max_steps=150, valid_every=150), tmp_path / "run")
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])


@pytest.mark.parametrize("stop_at", [3, 4, 5])
def test_a_run_stopped_by_ctrl_c_goes_on_exactly(config: ExperimentConfig, tmp_path: Path, stop_at: int) -> None:
    """Mid-epoch, at a validation, at an epoch's end: whatever begins anew (order, noise, average) changes the losses."""
    whole = run(config, tmp_path / "whole")
    first = run(config, tmp_path / "stopped", stop_at=(stop_at,))
    rest = run(config, tmp_path / "stopped", resume=True)
    assert len(first) == stop_at
    assert first + rest == whole
    assert torch.equal(weights(tmp_path / "stopped"), weights(tmp_path / "whole"))
    metrics = [json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("stopped", "whole")]
    assert metrics[0]["valid"] == metrics[1]["valid"]


@pytest.mark.parametrize("kind", ["carry", "accumulate"])
def test_carried_states_and_accumulation_resume_exactly_too(
    config: ExperimentConfig, tmp_path: Path, kind: str
) -> None:
    """A carried state that is lost, or half an accumulated gradient counted as a step, changes the losses."""
    if kind == "carry":
        config = changed(
            replace(config, head=replace(config.head, history="carry"), data=replace(config.data, batch_size=2)),
            tbptt=3,
        )
    else:
        config = replace(config, optimizer=replace(config.optimizer, accumulate=2))
    whole = run(config, tmp_path / "whole")
    stopped = run(config, tmp_path / "stopped", stop_at=(4,)) + run(config, tmp_path / "stopped", resume=True)
    assert stopped == whole


def test_measuring_more_often_changes_no_training(config: ExperimentConfig, tmp_path: Path) -> None:
    """Validation and closed-loop episodes that draw from training's random numbers make runs incomparable."""
    seldom = run(config, tmp_path / "seldom")
    often = run(
        changed(config, valid_every=1, checkpoint_every=2, eval_every=3),
        tmp_path / "often",
        evaluate=lambda policy: torch.rand(()).item(),
    )
    assert often == seldom


def test_the_policy_of_the_best_closed_loop_success_is_kept(config: ExperimentConfig, tmp_path: Path) -> None:
    """The lowest validation loss is often not the best policy on the robot."""
    seen: list[torch.Tensor] = []
    rates = iter([0.2, 0.8, 0.5])

    def evaluate(policy: torch.nn.Module) -> float:
        assert not policy.training
        seen.append(torch.cat([parameter.detach().clone().flatten() for parameter in policy.parameters()]))
        return next(rates)

    chosen = changed(config, select="success", eval_every=2, max_steps=6)
    train(chosen, tmp_path, evaluate=evaluate)
    assert torch.equal(weights(tmp_path), seen[1])
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["best"] == {"step": 4, "rate": 0.8}
    assert [row["rate"] for row in metrics["success"]] == [0.2, 0.8, 0.5]


def test_a_time_limit_ends_the_run_properly(config: ExperimentConfig, tmp_path: Path) -> None:
    """A run that ends by the clock must validate and keep its policy like one that ends by steps."""
    train(changed(config, max_steps=10**6, max_minutes=0.01), tmp_path)
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["finished"]
    assert metrics["steps"] == metrics["valid"][-1]["step"] < 10**6
    assert metrics["wall_s"] >= 0.6
    load_policy(tmp_path)


def test_a_loss_that_is_not_a_number_stops_the_run_and_spares_the_kept_policy(
    config: ExperimentConfig, tmp_path: Path
) -> None:
    """Without the check a run trains NaN to its end and overwrites the good policy with it."""

    class Poison(Callback):
        def on_train_batch_start(self, trainer: Any, pl_module: Any, *_: Any) -> None:
            if trainer.global_step == 5:
                next(pl_module.policy.head.parameters()).data.fill_(float("nan"))

    with pytest.raises(TrainingDivergedError, match="nan before step 8"):
        train(config, tmp_path, callbacks=(Poison(),))
    assert weights(tmp_path).isfinite().all()


def test_a_run_is_neither_overwritten_nor_resumed_as_another(config: ExperimentConfig, tmp_path: Path) -> None:
    """A forgotten --run-dir would destroy yesterday's run; a resume with another size would be neither of the two."""
    with pytest.raises(ConfigError, match="nothing to go on with"):
        train(config, tmp_path / "run", resume=True)
    assert not (tmp_path / "run").exists()
    train(changed(config, max_steps=2), tmp_path / "run")
    with pytest.raises(ConfigError, match="holds a run already"):
        train(config, tmp_path / "run")
    with pytest.raises(ConfigError, match=r"--head\.hidden is 16 but the run .* began with 8"):
        train(replace(config, head=replace(config.head, hidden=16)), tmp_path / "run", resume=True)
    train(changed(config, max_steps=4), tmp_path / "run", resume=True)
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["steps"] == 4
    train(changed(config, max_steps=4), tmp_path / "run", resume=True)


def test_a_selection_that_cannot_be_made_is_refused_before_anything_is_written(
    config: ExperimentConfig, tmp_path: Path
) -> None:
    """Selection by what is never measured would keep no policy at all, found out hours later."""
    with pytest.raises(ConfigError, match="--eval-every"):
        train(changed(config, select="success"), tmp_path / "run")
    everything = replace(config.data, train_filter="all_of_them")
    with pytest.raises(ConfigError, match="all_of_them"):
        train(replace(config, data=everything), tmp_path / "run")
    assert not (tmp_path / "run").exists()
