"""Why the run's own callback validates, saves and averages: what Lightning 2.6's callbacks do instead.

Should a later Lightning pass what is asserted here the other way round, `RunKeeper` can shrink to its callbacks.
"""

from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, WeightAveraging
from torch import Tensor, nn
from torch.utils.data import DataLoader

from robopolicy.training.module import copy_sharing_frozen
from robopolicy.training.train import quiet_lightning


class Line(LightningModule):
    """Fits one number; counts its validations."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen = nn.Linear(1, 1).requires_grad_(False)
        self.weight = nn.Parameter(torch.ones(()))
        self.validated: list[int] = []

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        """See `LightningModule`."""
        return (self.weight * batch).square().mean()

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        """See `LightningModule`."""
        self.validated.append(self.global_step)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """See `LightningModule`."""
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(folder: Path, callbacks: list[Callback], steps: int, resume: Path | None = None) -> Line:
    """Steps with a validation after every second one."""
    module = Line()
    trainer = Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        max_steps=steps,
        val_check_interval=2,
        num_sanity_val_steps=0,
        callbacks=callbacks,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    with quiet_lightning():
        trainer.fit(
            module, DataLoader(list(torch.ones(4))), DataLoader([torch.ones(())]), ckpt_path=resume, weights_only=False
        )
    return module


@pytest.mark.filterwarnings("ignore")  # its advice on workers, folders and callbacks is beside the point
def test_lightning_saves_before_it_validates_so_a_resumed_run_skips_that_validation(tmp_path: Path) -> None:
    """Guards against: taking Lightning's checkpoint and validation for exact, and losing the best policy at a resume."""

    def saving() -> list[Callback]:
        return [ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=2, save_top_k=-1)]

    whole = fit(tmp_path, saving(), steps=4)
    assert whole.validated == [2, 4]
    resumed = fit(tmp_path, saving(), steps=4, resume=tmp_path / "step=2.ckpt")
    assert resumed.validated == [4]


@pytest.mark.filterwarnings("ignore")  # its advice on workers, folders and callbacks is beside the point
def test_lightnings_average_copies_frozen_weights_too(tmp_path: Path) -> None:
    """Guards against: twice the memory for a backbone of billions of weights that never change."""
    averaging = WeightAveraging()
    module = fit(tmp_path, [averaging], steps=2)
    copied = averaging._average_model.module.frozen.weight  # type: ignore[union-attr]
    assert copied.data_ptr() != module.frozen.weight.data_ptr()
    shared = copy_sharing_frozen(nn.ModuleList([module]))
    assert shared[0].frozen.weight is module.frozen.weight  # type: ignore[union-attr]
