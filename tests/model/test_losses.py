"""Masked action losses, and the weighted sum of named terms."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import nn
from torch.nn import functional

from robopolicy.model.losses import (
    ForwardPrediction,
    LinearPolicy,
    TargetPrediction,
    TermInputs,
    action_loss,
    cut_windows,
    masked_mean,
    require_terms,
    weighted_sum,
)
from robopolicy.types import Batch, Chunk

B, W, K, A, G = 2, 3, 4, 6, 1


def random_chunk(gripper=G):
    arm = torch.tanh(torch.randn(B, W, K, A)).requires_grad_()
    logit = torch.randn(B, W, K, gripper).requires_grad_()
    return Chunk(arm=arm, gripper_logit=logit)


def random_target(gripper=G):
    return torch.cat([torch.rand(B, W, K, A) * 2 - 1, torch.randint(0, 2, (B, W, K, gripper)).float()], dim=-1)


def test_the_loss_without_a_mask_is_that_with_a_mask_of_ones():
    """A mask that only pads must not change what is minimized (RoboVLMs' fact 6)."""
    torch.manual_seed(0)
    chunk, target = random_chunk(), random_target()
    plain = action_loss(chunk, target, None)
    for shape in ((B, W), (B, W, K)):
        masked = action_loss(chunk, target, torch.ones(shape, dtype=torch.bool))
        for name, value in plain.items():
            torch.testing.assert_close(masked[name], value)
    expected = functional.huber_loss(chunk.arm, target[..., :A])
    torch.testing.assert_close(plain["loss_arm"], expected)
    entropy = functional.binary_cross_entropy_with_logits(chunk.gripper_logit, target[..., A:])
    torch.testing.assert_close(plain["loss_gripper"], entropy)
    torch.testing.assert_close(plain["loss"], expected + 0.01 * entropy)


def test_only_valid_entries_are_averaged():
    """A sum over valid entries divided by the padded count makes short demos count less (ACT's fault)."""
    torch.manual_seed(1)
    chunk, target = random_chunk(), random_target()
    valid = torch.zeros(B, W, K, dtype=torch.bool)
    valid[0, 1, :2] = True
    loss = action_loss(chunk, target, valid)
    torch.testing.assert_close(loss["loss_arm"], functional.huber_loss(chunk.arm[0, 1, :2], target[0, 1, :2, :A]))
    right = (chunk.gripper_logit[0, 1, :2] > 0) == (target[0, 1, :2, A:] > 0.5)
    torch.testing.assert_close(loss["gripper_accuracy"], right.float().mean())


def test_an_empty_mask_gives_zero_and_no_nan_in_value_or_gradient():
    """0 / 0 turns all weights into NaN at the first batch of padding."""
    chunk = random_chunk()
    loss = action_loss(chunk, random_target(), torch.zeros(B, W, K, dtype=torch.bool))
    loss["loss"].backward()
    assert all(value == 0 for value in loss.values())
    assert (chunk.arm.grad == 0).all()
    assert (chunk.gripper_logit.grad == 0).all()


@given(
    place=st.tuples(st.integers(0, B - 1), st.integers(0, W - 1), st.integers(0, K - 1)),
    poison=st.sampled_from(["nan", "inf"]),
)
@settings(max_examples=25, deadline=None)
def test_what_stands_at_invalid_places_leaks_nowhere(place, poison):
    """0 * NaN is NaN: a mask multiplied onto the loss lets padding poison value and gradient."""
    torch.manual_seed(2)
    chunk, target = random_chunk(), random_target()
    valid = torch.ones(B, W, K, dtype=torch.bool)
    valid[place] = False
    clean = action_loss(chunk, target, valid)["loss"]
    (clean_grad,) = torch.autograd.grad(clean, chunk.arm)
    target[place] = float(poison)
    arm = chunk.arm.detach().clone()
    arm[place] = float(poison)
    arm.requires_grad_()
    loss = action_loss(Chunk(arm=arm, gripper_logit=chunk.gripper_logit), target, valid)["loss"]
    (grad,) = torch.autograd.grad(loss, arm)
    assert loss == clean
    assert torch.equal(grad, clean_grad)


def test_without_a_gripper_the_arm_is_learned_alone():
    """G = 0 must not divide by zero."""
    chunk = random_chunk(gripper=0)
    loss = action_loss(chunk, random_target(gripper=0), torch.ones(B, W, dtype=torch.bool))
    assert loss["loss"] == loss["loss_arm"] > 0
    assert loss["loss_gripper"] == loss["gripper_accuracy"] == 0


def test_arm_weights_scale_each_dimension():
    """A weight applied to the wrong axis would go unnoticed in the sum."""
    chunk, target = random_chunk(), random_target()
    weights = (2.0, 0.0, 0.0, 0.0, 0.0, 0.0)
    only_first = action_loss(chunk, target, None, arm_weights=weights)["loss_arm"]
    expected = 2 * functional.huber_loss(chunk.arm[..., 0], target[..., 0]) / A
    torch.testing.assert_close(only_first, expected)


def test_a_wrong_shape_of_target_or_mask_is_refused():
    """Broadcasting would train on nonsense."""
    with pytest.raises(ValueError, match=r"target has shape .*expected \(2, 3, 4, 7\)"):
        action_loss(random_chunk(), random_target()[..., :6], None)
    with pytest.raises(ValueError, match="action_valid has shape"):
        action_loss(random_chunk(), random_target(), torch.ones(B, dtype=torch.bool))


def test_the_weighted_sum_adds_each_term_times_its_weight():
    """A term that is logged but not weighted must not be minimized."""
    terms = {"arm": torch.tensor(2.0), "gripper": torch.tensor(3.0), "kl": torch.tensor(100.0)}
    assert weighted_sum(terms, {"arm": 1.0, "gripper": 0.01}) == pytest.approx(2.03)


def test_a_term_that_nothing_provides_is_refused_with_a_list():
    """A misspelled term would silently never be trained."""
    with pytest.raises(ValueError, match=r"'wher' is provided by no part of this model. Available: arm, gripper"):
        require_terms({"wher": 1.0}, ["gripper", "arm"])
    with pytest.raises(ValueError, match="no loss term has a weight"):
        weighted_sum({"arm": torch.tensor(1.0)}, {})


def test_windows_are_views_of_their_segment():
    """Copying W windows of every segment costs W times the memory."""
    frames = torch.arange(2 * 5 * 3).reshape(2, 5, 3)
    windows = cut_windows(frames, 3)
    assert windows.shape == (2, 3, 3, 3)
    assert windows.untyped_storage().data_ptr() == frames.untyped_storage().data_ptr()
    for start in range(3):
        assert torch.equal(windows[:, start], frames[:, start : start + 3])


def test_the_mean_of_nothing_is_zero():
    """An empty mask is met at the end of every short demo."""
    assert masked_mean(torch.full((3,), torch.nan), torch.zeros(3, dtype=torch.bool)) == 0


def test_forward_prediction_moves_the_memory_but_not_its_goal():
    """Were the goal moved too, the encoder could make all frames alike and call it predicted."""
    torch.manual_seed(0)
    pooled = torch.randn(2, 4, 5, requires_grad=True)
    memory = nn.Linear(5, 7)
    hidden = memory(cut_windows(pooled.detach(), 3))
    frame_valid = torch.tensor([[True] * 4, [True, True, False, False]])
    batch = Batch({}, torch.zeros(2), (), torch.zeros(0), torch.zeros(0), frame_valid)
    provider = ForwardPrediction(hidden=7, pooled=5)
    term = provider.terms(TermInputs(batch, {}, {}, pooled, hidden))["forward"]
    predicted = provider.predict(hidden)
    errors = [
        (predicted[b, v, w] - pooled[b, v + w + 1]).square()
        for b, v, w in [(0, 0, 0), (0, 0, 1), (0, 1, 0), (0, 1, 1), (1, 0, 0)]
    ]
    torch.testing.assert_close(term, torch.stack(errors).mean())
    term.backward()
    assert memory.weight.grad.abs().sum() > 0
    assert pooled.grad is None


def test_remembering_counts_the_real_frames_of_every_window_only():
    """Beyond a demo's end there is nothing to remember; a padded target, even NaN, must not pull on the memory."""
    torch.manual_seed(0)
    target = torch.randn(2, 4, 3)
    target[1, 2:] = torch.nan
    memory = nn.Linear(5, 7)
    hidden = memory(cut_windows(torch.randn(2, 4, 5), 3))
    frame_valid = torch.tensor([[True] * 4, [True, True, False, False]])
    batch = Batch({}, torch.zeros(2), (), torch.zeros(0), torch.zeros(0), frame_valid)
    provider = TargetPrediction(hidden=7, target_widths={"target_pos": 3})
    term = provider.terms(TermInputs(batch, {"target_pos": target}, {}, torch.zeros(0), hidden))["remember"]
    predicted = provider.predict(hidden)
    places = [(0, v, w) for v in range(2) for w in range(3)] + [(1, 0, 0), (1, 0, 1), (1, 1, 0)]
    torch.testing.assert_close(
        term, torch.stack([(predicted[b, v, w] - target[b, v + w]) ** 2 for b, v, w in places]).mean()
    )
    term.backward()
    assert memory.weight.grad.isfinite().all()
    assert memory.weight.grad.abs().sum() > 0


def test_the_linear_policy_explains_the_present_action_where_it_is_valid():
    """Chunks and padding belong to the policy proper; a padded action, even NaN, must not pull on the choice."""
    chosen = torch.randn(2, 4, 5, requires_grad=True)
    target = torch.rand(2, 4, 3, A + G)
    valid = torch.ones(2, 4, 3, dtype=torch.bool)
    valid[1, 2:] = False
    target[1, 2:] = float("nan")
    batch = Batch({}, torch.zeros(2), (), target, valid, torch.ones(2, 4, dtype=torch.bool))
    provider = LinearPolicy(chosen=5, arm=A)
    nn.init.normal_(provider.act.weight)
    term = provider.terms(TermInputs(batch, {}, {"chosen": chosen}, torch.zeros(0), torch.zeros(0)))["choose"]
    predicted = provider.act(chosen)
    errors = [predicted[b, s] - target[b, s, 0, :A] for b, s in [(0, 0), (0, 1), (0, 2), (0, 3), (1, 0), (1, 1)]]
    torch.testing.assert_close(term, torch.stack(errors).square().mean())
    term.backward()
    assert chosen.grad.isfinite().all()
    assert not chosen.grad[1, 2:].any()


def test_remembering_nothing_is_refused():
    """Without a target key the term would be a zero that looks like success."""
    with pytest.raises(ValueError, match=r"give --data\.target_keys"):
        TargetPrediction(hidden=7, target_widths={})


def test_forward_prediction_in_windows_of_one_frame_is_refused():
    """The term would be a zero that looks like success."""
    provider = ForwardPrediction(hidden=7, pooled=5)
    batch = Batch({}, torch.zeros(2), (), torch.zeros(0), torch.zeros(0), torch.ones(2, 4, dtype=torch.bool))
    with pytest.raises(ValueError, match="'forward' needs two frames"):
        provider.terms(TermInputs(batch, {}, {}, torch.zeros(2, 4, 5), torch.zeros(2, 4, 1, 7)))
