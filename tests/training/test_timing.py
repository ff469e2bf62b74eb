"""Times are those of steps: neither validation nor the first step counts, and waiting is what the loader took."""

import pytest

from robopolicy.training import callbacks
from robopolicy.training.callbacks import StepTimer


def test_the_data_share_is_the_loaders_time_over_that_of_the_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against: validation counted as a step, or Lightning's loop as data, which hides or invents a slow loader."""
    now = [0.0]
    monkeypatch.setattr(callbacks.time, "perf_counter", lambda: now[0])
    timer = StepTimer()
    for number in range(3):
        now[0] += 10.0 if number else 101.0
        timer.stop(waited_s=number + 1.0)
        now[0] += 1000.0
        timer.start(waited_s=number + 1.0)
    assert timer.batches == 2
    assert timer.data_fraction == pytest.approx(0.1)
    assert timer.step_ms == pytest.approx(10_000)


def test_a_run_of_one_step_has_no_times() -> None:
    """Guards against: a division by zero at the very end of the shortest runs."""
    timer = StepTimer()
    timer.stop(waited_s=1.0)
    assert timer.data_fraction == timer.step_ms == 0.0
