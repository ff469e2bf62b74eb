"""What a training step costs, and how much of that is waiting for data."""

import time
from typing import Any

from lightning.pytorch import Callback
from lightning.pytorch.profilers import PassThroughProfiler


class FetchTimer(PassThroughProfiler):
    """Time [s] spent in the loader, out of the notes that Lightning's loop gives any profiler."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds = 0.0
        self._began = 0.0

    def start(self, action_name: str) -> None:
        """The loop begins something."""
        if action_name.endswith("train_dataloader_next"):
            self._began = time.perf_counter()

    def stop(self, action_name: str) -> None:
        """The loop has done it."""
        if action_name.endswith("train_dataloader_next"):
            self.seconds += time.perf_counter() - self._began


class StepTimer(Callback):
    """How long a batch takes, and which share of that it was waited for; validation and the like are left out.

    Put it last among the callbacks, and its `fetch` into the trainer.
    """

    def __init__(self) -> None:
        self.fetch = FetchTimer()
        self.batches = 0
        self.data_s = 0.0
        self.all_s = 0.0
        self._ended: tuple[float, float] | None = None

    @property
    def data_fraction(self) -> float:
        """Share of the time in which batches were waited for."""
        return self.data_s / max(self.all_s, 1e-9)

    @property
    def step_ms(self) -> float:
        """Time of a batch [ms], waiting and Lightning's loop included."""
        return 1e3 * self.all_s / max(self.batches, 1)

    def before_extras(self) -> None:
        """The batch is done; what follows is not counted. Nor is a run's first one, which allocates and compiles."""
        if self._ended is not None:
            self.all_s += time.perf_counter() - self._ended[0]
            self.data_s += self.fetch.seconds - self._ended[1]
            self.batches += 1

    def on_train_batch_end(self, *_: Any) -> None:
        """Everything beside the batch is done too."""
        self._ended = time.perf_counter(), self.fetch.seconds
