"""Statistics of the training split."""

import numpy as np
import pytest

from robopolicy.model.statistics import Statistics


def test_statistics_are_those_of_every_row():
    """Guards against: a sample of the first rows only, which would not see what changes later in the demos."""
    rows = np.stack([np.arange(200_000.0), np.sin(np.arange(200_000.0))], axis=1)
    found = Statistics.of(rows)
    assert found.count == 200_000
    assert found.quantile_low[0] == pytest.approx(2_000, abs=1)
    assert found.quantile_high[0] == pytest.approx(198_000, abs=1)
    np.testing.assert_array_equal(found.low, rows.min(axis=0))
    np.testing.assert_array_equal(found.high, rows.max(axis=0))
    np.testing.assert_allclose(found.mean, [99_999.5, rows[:, 1].mean()])


def test_a_large_offset_costs_no_precision():
    """Guards against: a deviation of 0 or NaN far from the origin, from the sum of squares minus the square of the sum."""
    rows = np.random.default_rng(0).normal(1e6, 1e-2, size=(1000, 1))
    assert Statistics.of(rows).std == pytest.approx(rows.std(axis=0), rel=1e-6)


def test_nan_and_nothing_are_refused():
    """Guards against: one NaN, which would make every statistic NaN, and every observation after it."""
    with pytest.raises(ValueError, match="2 of 4 values are NaN or infinite"):
        Statistics.of(np.array([[0.0, np.nan], [np.inf, 1.0]]))
    with pytest.raises(ValueError, match="no rows"):
        Statistics.of(np.zeros((0, 2)))
