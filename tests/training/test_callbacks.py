"""What happens beside the steps: measuring, keeping the best policy, ending a run."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback

from robopolicy.experiment import ExperimentConfig, load_policy
from robopolicy.training.callbacks import TrainingDivergedError
from robopolicy.training.train import train
from tests.small_runs import changed, metrics, run, small_config, weights


@pytest.fixture
def config(tiny_demos: Path) -> ExperimentConfig:
    return small_config(tiny_demos)


def test_measuring_more_often_changes_no_training(config: ExperimentConfig, tmp_path: Path) -> None:
    """Guards against: validation and closed-loop episodes that draw from training's random numbers."""
    seldom = run(config, tmp_path / "seldom")
    often = run(
        changed(config, valid_every=1, checkpoint_every=2, eval_every=3),
        tmp_path / "often",
        evaluate=lambda policy: torch.rand(()).item(),
    )
    assert often == seldom


def test_the_policy_of_the_best_closed_loop_success_is_kept(config: ExperimentConfig, tmp_path: Path) -> None:
    """Guards against: the lowest validation loss kept, which is often not the best policy on the robot."""
    seen: list[torch.Tensor] = []
    rates = iter([0.2, 0.8, 0.5])

    def evaluate(policy: torch.nn.Module) -> float:
        assert not policy.training
        seen.append(torch.cat([parameter.detach().clone().flatten() for parameter in policy.parameters()]))
        return next(rates)

    chosen = changed(config, select="success", eval_every=2, max_steps=6)
    train(chosen, tmp_path, evaluate=evaluate)
    assert torch.equal(weights(tmp_path), seen[1])
    figures = metrics(tmp_path)
    assert figures["best"] == {"step": 4, "rate": 0.8}
    assert [row["rate"] for row in figures["success"]] == [0.2, 0.8, 0.5]


def test_a_time_limit_ends_the_run_properly(config: ExperimentConfig, tmp_path: Path) -> None:
    """Guards against: a run ended by the clock that doesn't validate or keep its policy."""
    train(changed(config, max_steps=10**6, max_minutes=0.01), tmp_path)
    figures = metrics(tmp_path)
    assert figures["finished"]
    assert figures["steps"] == figures["valid"][-1]["step"] < 10**6
    assert figures["wall_s"] >= 0.6
    load_policy(tmp_path)


def test_a_loss_that_is_not_a_number_stops_the_run_and_spares_the_kept_policy(
    config: ExperimentConfig, tmp_path: Path
) -> None:
    """Guards against: a run that trains NaN to its end, and overwrites the good policy with it."""

    class Poison(Callback):
        def on_train_batch_start(self, trainer: Any, pl_module: Any, *_: Any) -> None:
            if trainer.global_step == 5:
                next(pl_module.policy.head.parameters()).data.fill_(float("nan"))

    with pytest.raises(TrainingDivergedError, match="nan before step 8"):
        train(config, tmp_path, callbacks=(Poison(),))
    assert weights(tmp_path).isfinite().all()


def test_the_progress_bar_shows_losses_and_times_and_leaves_the_terminal(
    config: ExperimentConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Guards against: a broken progress bar, which appears on a terminal only."""
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "200")
    train(config, tmp_path)
    shown = capsys.readouterr().out
    assert "train 8/8" in shown
    assert "valid 0." in shown
    assert "ms/step" in shown
    assert "% data" in shown
