"""Time of a training step, and how much of it is waiting for data."""

import time
from typing import Any

from lightning.pytorch import Callback


class StepTimer(Callback):
    """Time per batch, and the share of it spent waiting for batches; validation and the like are left out.

    Put it last among the callbacks.
    """

    def __init__(self) -> None:
        self.batches = 0
        self.data_s = 0.0
        self.all_s = 0.0
        self._loader: Any = None
        self._ended: tuple[float, float] | None = None

    @property
    def data_fraction(self) -> float:
        """Share of the time spent waiting for batches."""
        return self.data_s / max(self.all_s, 1e-9)

    @property
    def step_ms(self) -> float:
        """Time per batch [ms], waiting and Lightning's loop included."""
        return 1e3 * self.all_s / max(self.batches, 1)

    def on_train_start(self, trainer: Any, *_: Any) -> None:
        """The loader counts the time that its batches take."""
        self._loader = trainer.train_dataloader

    def before_extras(self) -> None:
        """Count the batch that has ended, without the callbacks after it; a run's first batch, which compiles, is left out."""
        if self._ended is not None:
            self.all_s += time.perf_counter() - self._ended[0]
            self.data_s += self._loader.waited_s - self._ended[1]
            self.batches += 1

    def on_train_batch_end(self, *_: Any) -> None:
        """Callbacks have finished; the time of the next batch starts here."""
        self._ended = time.perf_counter(), self._loader.waited_s
