"""Time of a training step, and how much of it is waiting for data."""

import time


class StepTimer:
    """Time per batch, and the share of it spent waiting for batches; a run's first batch, which compiles, is left out."""

    def __init__(self) -> None:
        self.batches = 0
        self.data_s = 0.0
        self.all_s = 0.0
        self._began: tuple[float, float] | None = None

    @property
    def data_fraction(self) -> float:
        """Share of the time spent waiting for batches."""
        return self.data_s / max(self.all_s, 1e-9)

    @property
    def step_ms(self) -> float:
        """Time per batch [ms], waiting and Lightning's loop included."""
        return 1e3 * self.all_s / max(self.batches, 1)

    def start(self, waited_s: float) -> None:
        """The next batch begins; the loader has waited this long in all [s]."""
        self._began = time.perf_counter(), waited_s

    def stop(self, waited_s: float) -> None:
        """The batch has ended; what follows, such as validation, does not count."""
        if self._began is not None:
            self.all_s += time.perf_counter() - self._began[0]
            self.data_s += waited_s - self._began[1]
            self.batches += 1
