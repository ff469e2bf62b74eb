"""Times are those of steps: neither validation nor the first step counts, and waiting is what the loader took."""

import pytest

from robopolicy.training import timing
from robopolicy.training.timing import StepTimer


def test_the_data_share_is_the_loaders_time_over_that_of_the_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Validation counted as a step, or Lightning's loop as data, would hide or invent a slow loader."""
    now = [0.0]
    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])
    timer = StepTimer()
    for number in range(3):
        timer.fetch.start("[_TrainingEpochLoop].train_dataloader_next")
        now[0] += 1.0
        timer.fetch.stop("[_TrainingEpochLoop].train_dataloader_next")
        timer.fetch.start("run_training_batch")
        now[0] += 9.0 if number else 100.0
        timer.fetch.stop("run_training_batch")
        timer.before_extras()
        now[0] += 1000.0
        timer.on_train_batch_end()
    assert timer.batches == 2
    assert timer.data_fraction == pytest.approx(0.1)
    assert timer.step_ms == pytest.approx(10_000)


def test_a_run_of_one_step_has_no_times() -> None:
    """Dividing by no step would crash the shortest runs at their very end."""
    timer = StepTimer()
    timer.before_extras()
    assert timer.data_fraction == timer.step_ms == 0.0
