"""Scaling of observations and actions."""

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis.extra.numpy import arrays

from robopolicy.model.normalization import ActionNormalizer, Normalizer
from robopolicy.model.statistics import Statistics
from robopolicy.types import ActionSpec, Chunk

KINDS = ("min-max", "mean-std", "quantile", "none")
ROWS = arrays(np.float64, st.tuples(st.integers(2, 20), st.integers(1, 4)), elements=st.floats(-100, 100, width=32))


@given(rows=ROWS, kind=st.sampled_from(KINDS))
@settings(max_examples=40, deadline=None)
def test_unnormalize_is_the_inverse_of_normalize(rows, kind):
    """Guards against: a scale that is rounded or clipped in one direction only."""
    normalizer = Normalizer(rows.shape[1], kind, Statistics.of(rows))
    values = torch.from_numpy(rows.astype(np.float32))
    scaled = normalizer.normalize(values)
    assert torch.isfinite(scaled).all()
    torch.testing.assert_close(normalizer.unnormalize(scaled), values, rtol=1e-5, atol=1e-4)


def test_each_kind_puts_the_training_range_where_it_says():
    """Guards against: training ranges that end up elsewhere than on [-1, 1], at the quantiles, or at mean 0 and deviation 1."""
    rows = np.random.default_rng(0).normal(3.0, 2.0, size=(1000, 2))
    values, statistics = torch.from_numpy(rows).float(), Statistics.of(rows)
    bounded = Normalizer(2, "min-max", statistics).normalize(values)
    torch.testing.assert_close(bounded.aminmax(dim=0).min, -torch.ones(2))
    torch.testing.assert_close(bounded.aminmax(dim=0).max, torch.ones(2))
    standard = Normalizer(2, "mean-std", statistics).normalize(values)
    torch.testing.assert_close(standard.mean(dim=0), torch.zeros(2), atol=1e-5, rtol=0)
    torch.testing.assert_close(standard.std(dim=0, correction=0), torch.ones(2))
    inner = Normalizer(2, "quantile", statistics).normalize(values)
    assert (inner.abs() <= 1).float().mean() == pytest.approx(0.98, abs=0.002)
    assert torch.equal(Normalizer(2, "none", statistics).normalize(values), values)


@pytest.mark.parametrize("kind", ["min-max", "mean-std", "quantile"])
@pytest.mark.parametrize("value", [0.0, 0.7, -1e6])
def test_a_constant_dimension_becomes_zero_and_comes_back_exactly(kind, value):
    """Guards against: 0 / 0, or rounding noise scaled up to size 1."""
    rows = np.full((50, 1), value)
    rows[::2] *= 1 + 1e-8
    normalizer = Normalizer(1, kind, Statistics.of(rows))
    same = torch.full((3, 1), value)
    assert normalizer.normalize(same).abs().max() <= abs(value) * 1e-6
    assert torch.equal(normalizer.unnormalize(torch.zeros(3, 1)), normalizer.offset.expand(3, 1))
    assert normalizer.offset.item() == pytest.approx(value, rel=1e-6)


def test_the_statistics_travel_with_the_weights():
    """Guards against: statistics that live apart from the weights and are lost or mixed up."""
    fitted = Normalizer(2, "mean-std", Statistics.of(np.random.default_rng(0).normal(size=(9, 2))))
    empty = Normalizer(2, "mean-std")
    empty.load_state_dict(fitted.state_dict())
    values = torch.randn(4, 2)
    assert torch.equal(empty.normalize(values), fitted.normalize(values))
    with pytest.raises(ValueError, match="statistics of width 2 for values of width 3"):
        Normalizer(3, "mean-std", Statistics.of(np.zeros((4, 2))))


ALOHA_LIKE = ActionSpec(arm=[0, 1, 4], gripper=[2, 5], constant={3: 0.25}, gripper_values=[(0.0, 0.04), (1.0, -1.0)])


def interleaved_rows(steps=20):
    rng = np.random.default_rng(0)
    rows = np.zeros((steps, 6))
    rows[:, [0, 1, 4]] = rng.uniform(-3, 5, size=(steps, 3))
    rows[:, 2] = np.where(rng.random(steps) < 0.5, 0.0, 0.04)
    rows[:, 5] = np.where(rng.random(steps) < 0.5, 1.0, -1.0)
    rows[:, 3] = 0.25
    return rows


def test_targets_are_arm_in_unit_range_then_gripper_labels():
    """Guards against: an interleaved layout that reaches the head in another order."""
    rows = interleaved_rows()
    target = ActionNormalizer(ALOHA_LIKE, Statistics.of(rows)).to_target(rows)
    assert target.shape == (20, 5)
    assert target.dtype == np.float32
    np.testing.assert_allclose(target[:, :3].min(axis=0), -1, atol=1e-6)
    np.testing.assert_allclose(target[:, :3].max(axis=0), 1, atol=1e-6)
    np.testing.assert_array_equal(target[:, 3], rows[:, 2] == 0.04)
    np.testing.assert_array_equal(target[:, 4], rows[:, 5] == -1.0)


def test_rows_come_back_from_a_perfect_chunk_in_units_and_order():
    """Guards against: a column in the wrong place or unit, which moves the wrong joint."""
    rows = interleaved_rows()
    normalizer = ActionNormalizer(ALOHA_LIKE, Statistics.of(rows))
    target = torch.from_numpy(normalizer.to_target(rows)).reshape(5, 4, 5)
    chunk = Chunk(arm=target[..., :3], gripper_logit=target[..., 3:] * 2 - 1)
    np.testing.assert_allclose(normalizer.to_rows(chunk).numpy(), rows.reshape(5, 4, 6), atol=1e-5)


def test_a_common_scale_keeps_the_columns_relative_sizes():
    """Guards against: rotation noise of a hundredth, put on [-1, 1] like the motion, that the policy learns by heart."""
    rows = np.random.default_rng(0).uniform(-1, 1, size=(40, 4)) * [1.0, 0.5, 0.01, 0.0]
    normalizer = ActionNormalizer(ActionSpec(arm=4, gripper=0), Statistics.of(rows), common_scale=True)
    target = normalizer.to_target(rows)
    ranges = np.ptp(rows, axis=0)
    np.testing.assert_allclose(np.ptp(target, axis=0), 2 * ranges / ranges.max(), rtol=1e-5)
    chunk = Chunk(arm=torch.from_numpy(target)[:, None], gripper_logit=torch.zeros(40, 1, 0))
    np.testing.assert_allclose(normalizer.to_rows(chunk).numpy()[:, 0], rows, atol=1e-6)


def test_numpy_and_torch_rows_give_the_same_targets():
    """Guards against: targets that differ between the store (NumPy) and online imitation (torch)."""
    rows = interleaved_rows()
    normalizer = ActionNormalizer(ALOHA_LIKE, Statistics.of(rows))
    from_torch = normalizer.to_target(torch.from_numpy(rows))
    np.testing.assert_array_equal(from_torch.numpy(), normalizer.to_target(rows))


def test_a_constant_arm_column_is_given_back_whatever_the_head_says():
    """Guards against: a dead column that the head jitters, which would move a joint that never moved in the demos."""
    rows = np.random.default_rng(0).uniform(-1, 1, size=(30, 2))
    rows[:, 1] = 0.3
    normalizer = ActionNormalizer(ActionSpec(arm=2, gripper=0), Statistics.of(rows))
    assert (normalizer.to_target(rows)[:, 1] == 0).all()
    chunk = Chunk(arm=torch.tensor([[0.1, 0.9]]), gripper_logit=torch.zeros(1, 0))
    assert normalizer.to_rows(chunk)[0, 1] == pytest.approx(0.3)


def test_statistics_of_another_width_are_refused():
    """Guards against: statistics cut to fit another width."""
    with pytest.raises(ValueError, match="statistics of 4 action columns; the ActionSpec has 6"):
        ActionNormalizer(ALOHA_LIKE, Statistics.of(np.zeros((3, 4))))
