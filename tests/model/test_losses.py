"""Masked action losses: only valid entries count, and nothing else reaches the value or the gradient."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch.nn import functional

from robopolicy.model.losses import action_loss, cut_windows, masked_mean
from robopolicy.types import Chunk

B, W, K, A, G = 2, 3, 4, 6, 1


def random_chunk(gripper=G):
    arm = torch.tanh(torch.randn(B, W, K, A)).requires_grad_()
    logit = torch.randn(B, W, K, gripper).requires_grad_()
    return Chunk(arm=arm, gripper_logit=logit)


def random_target(gripper=G):
    return torch.cat([torch.rand(B, W, K, A) * 2 - 1, torch.randint(0, 2, (B, W, K, gripper)).float()], dim=-1)


def test_no_mask_equals_a_mask_of_ones():
    """Guards against: a mask that only marks padding and still changes what is minimized (RoboVLMs' fact 6)."""
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
    """Guards against: a sum over valid entries divided by the padded count, which makes short demos count less (ACT)."""
    torch.manual_seed(1)
    chunk, target = random_chunk(), random_target()
    valid = torch.zeros(B, W, K, dtype=torch.bool)
    valid[0, 1, :2] = True
    loss = action_loss(chunk, target, valid)
    torch.testing.assert_close(loss["loss_arm"], functional.huber_loss(chunk.arm[0, 1, :2], target[0, 1, :2, :A]))
    right = (chunk.gripper_logit[0, 1, :2] > 0) == (target[0, 1, :2, A:] > 0.5)
    torch.testing.assert_close(loss["gripper_accuracy"], right.float().mean())


def test_an_empty_mask_gives_zero_value_and_gradient():
    """Guards against: 0 / 0, which turns all weights into NaN at the first batch of padding."""
    torch.manual_seed(0)
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
def test_values_at_invalid_places_have_no_influence(place, poison):
    """Guards against: a mask multiplied onto the loss, where 0 * NaN is NaN in value and gradient."""
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


def test_without_a_gripper_only_the_arm_is_learned():
    """Guards against: a division by zero where there is no gripper column (G = 0)."""
    torch.manual_seed(0)
    loss = action_loss(random_chunk(gripper=0), random_target(gripper=0), torch.ones(B, W, dtype=torch.bool))
    assert loss["loss"] == loss["loss_arm"] > 0
    assert loss["loss_gripper"] == loss["gripper_accuracy"] == 0


def test_arm_weights_scale_each_column():
    """Guards against: a weight applied to the wrong axis, which the sum would hide."""
    torch.manual_seed(0)
    chunk, target = random_chunk(), random_target()
    weights = (2.0, 0.0, 0.0, 0.0, 0.0, 0.0)
    only_first = action_loss(chunk, target, None, arm_weights=weights)["loss_arm"]
    expected = 2 * functional.huber_loss(chunk.arm[..., 0], target[..., 0]) / A
    torch.testing.assert_close(only_first, expected)


def test_a_wrong_shape_of_target_or_mask_is_refused():
    """Guards against: broadcasting a target or a mask against the chunk, which trains on nonsense."""
    with pytest.raises(ValueError, match=r"target has shape .*expected \(2, 3, 4, 7\)"):
        action_loss(random_chunk(), random_target()[..., :6], None)
    with pytest.raises(ValueError, match="action_valid has shape"):
        action_loss(random_chunk(), random_target(), torch.ones(B, dtype=torch.bool))


def test_windows_are_views_of_their_segment():
    """Guards against: copying W windows of every segment, which costs W times the memory."""
    frames = torch.arange(2 * 5 * 3).reshape(2, 5, 3)
    windows = cut_windows(frames, 3)
    assert windows.shape == (2, 3, 3, 3)
    assert windows.untyped_storage().data_ptr() == frames.untyped_storage().data_ptr()
    for start in range(3):
        assert torch.equal(windows[:, start], frames[:, start : start + 3])


def test_the_mean_of_nothing_is_zero():
    """Guards against: NaN from the empty mask that is met at the end of every short demo."""
    assert masked_mean(torch.full((3,), torch.nan), torch.zeros(3, dtype=torch.bool)) == 0
