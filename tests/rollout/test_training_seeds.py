"""Several training runs in one number."""

import numpy as np
import pytest

from robopolicy.rollout.statistics import wilson_interval
from robopolicy.rollout.training_seeds import compare_runs, success_by_seed, summarize_runs


def runs(rng: np.random.Generator, rates: list[float], episodes: int = 50) -> list[dict[int, bool]]:
    """Success by seed of runs with these true rates."""
    return [{seed: bool(rng.random() < rate) for seed in range(episodes)} for rate in rates]


def test_mean_and_spread_are_over_training_runs():
    """Guards against: a spread over episodes reported as one over training seeds."""
    summary = summarize_runs([{0: True, 1: False}, {0: True, 1: True}])
    assert summary.rates == [0.5, 1.0]
    assert (summary.mean, summary.episodes) == (0.75, 2)
    assert summary.std == pytest.approx(np.std([0.5, 1.0], ddof=1))


def test_the_interval_counts_both_sources_of_chance():
    """Guards against: an interval of 150 episodes for three training runs that differ by far more."""
    together = summarize_runs([{seed: seed % 10 < 8 for seed in range(50)} for _ in range(3)])
    apart = summarize_runs([{seed: seed % 10 < solved for seed in range(50)} for solved in (6, 8, 10)])
    assert together.mean == pytest.approx(apart.mean)
    width = [high - low for low, high in (together.interval, apart.interval)]
    assert width[1] > 1.3 * width[0]
    assert width[0] >= np.diff(wilson_interval(120, 150))[0]


def test_the_interval_covers_the_true_mean():
    """Guards against: 95 % intervals that hold the truth far less often, for runs drawn around 0.6 with a spread of 0.1."""
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(40):
        summary = summarize_runs(runs(rng, list(rng.normal(0.6, 0.1, size=5).clip(0, 1))))
        held += summary.interval[0] <= 0.6 <= summary.interval[1]
    assert held >= 33  # with five runs the bootstrap is known to be somewhat narrow


def test_runs_that_always_succeed_have_an_interval_of_some_width():
    """Guards against: 100 % +- 0 from a bootstrap that can't draw a failure."""
    summary = summarize_runs([dict.fromkeys(range(20), True)] * 3)
    assert summary.interval[1] == 1.0
    assert summary.interval[0] == pytest.approx(wilson_interval(60, 60)[0], abs=1e-5)


def test_equal_groups_do_not_differ_and_unlike_ones_do():
    """Guards against: a difference out of chance, and one that is overlooked."""
    rng = np.random.default_rng(1)
    group = runs(rng, [0.5, 0.6, 0.55])
    same = compare_runs(group, group)
    assert (same.mean, same.p_value) == (0.0, 1.0)
    better = compare_runs(runs(rng, [0.9, 0.95, 0.9]), group)
    assert better.interval[0] > 0
    assert better.p_value < 0.01


def test_groups_without_a_shared_seed_are_refused():
    """Guards against: a paired test of different scenes."""
    with pytest.raises(ValueError, match="share no seed"):
        compare_runs([{1: True}], [{2: True}])


def test_success_by_seed_reads_a_result_file():
    """Guards against: seeds as text, which JSON makes of keys."""
    assert success_by_seed({"outcomes": [{"seed": 3, "success": True, "steps": 1}]}) == {3: True}
