"""Statistics of rows that come array by array."""

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis.extra.numpy import arrays

from robopolicy.model.statistics import RunningStatistics, Statistics

ROWS = arrays(np.float64, st.tuples(st.integers(2, 20), st.integers(1, 4)), elements=st.floats(-100, 100, width=32))


@given(rows=ROWS, parts=st.integers(1, 5))
@settings(max_examples=40, deadline=None)
def test_streamed_statistics_equal_those_of_the_whole(rows, parts):
    """Guards against: another policy from files that are too big for memory."""
    running = RunningStatistics()
    for part in np.array_split(rows, parts):
        running.update(part)
    found = running.result()
    np.testing.assert_allclose(found.mean, rows.mean(axis=0), atol=1e-9)
    np.testing.assert_allclose(found.std, rows.std(axis=0), atol=1e-6)
    np.testing.assert_array_equal(found.low, rows.min(axis=0))
    np.testing.assert_array_equal(found.high, rows.max(axis=0))
    np.testing.assert_allclose(found.quantile_low, np.quantile(rows, 0.01, axis=0))
    np.testing.assert_allclose(found.quantile_high, np.quantile(rows, 0.99, axis=0))
    assert found.count == len(rows)


def test_a_large_offset_costs_no_precision():
    """Guards against: a deviation of 0 or NaN far from the origin, from the sum of squares minus the square of the sum."""
    rows = np.random.default_rng(0).normal(1e6, 1e-2, size=(1000, 1))
    assert Statistics.of(rows).std == pytest.approx(rows.std(axis=0), rel=1e-6)


def test_beyond_the_capacity_quantiles_come_from_a_uniform_sample():
    """Guards against: a sample of the first rows only, which would not see what changes later in the file."""
    running = RunningStatistics(capacity=2000)
    for start in range(0, 100_000, 1000):
        running.update(np.arange(start, start + 1000)[:, None])
    found = running.result()
    assert found.quantile_low[0] == pytest.approx(1_000, abs=1_000)
    assert found.quantile_high[0] == pytest.approx(99_000, abs=1_000)
    assert found.low[0] == 0
    assert found.high[0] == 99_999


def test_nan_and_nothing_are_refused():
    """Guards against: one NaN, which would make every statistic NaN, and every observation after it."""
    with pytest.raises(ValueError, match="2 of 4 values are NaN or infinite"):
        Statistics.of(np.array([[0.0, np.nan], [np.inf, 1.0]]))
    with pytest.raises(ValueError, match="no rows"):
        RunningStatistics().result()
    running = RunningStatistics()
    running.update(np.zeros((1, 2)))
    with pytest.raises(ValueError, match="width 3 after rows of width 2"):
        running.update(np.zeros((1, 3)))
