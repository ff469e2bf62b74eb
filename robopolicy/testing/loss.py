"""Conformance kit for auxiliary losses; each check takes a function that builds the loss from a `LossContext`."""

from collections.abc import Callable
from dataclasses import replace
from typing import TypeAlias

import torch
from torch import Tensor, nn

from robopolicy.testing._assert import generator, random_like, require, require_close, require_trained, seeded
from robopolicy.training.losses import LossContext, LossInputs
from robopolicy.types import Batch

SEGMENTS, FRAMES, WINDOW, CHUNK = 3, 6, 3, 2
CONTEXT = LossContext(pooled_width=5, hidden_width=4, arm_width=3, predictions={}, privileged={"target_pos": 3})
"""Default sizes for the checks; a test may pass others, such as with predictions of an encoder."""
Make: TypeAlias = Callable[[LossContext], nn.Module]
"""Function that builds the loss."""


def it_is_one_finite_scalar(make: Make, context: LossContext = CONTEXT) -> None:
    """The loss is a finite scalar, for windows cut from segments and for whole segments (`history: carry`)."""
    for window in (WINDOW, FRAMES):
        value = seeded(make, context)(_inputs(context, window))
        require(value.ndim == 0 and value.isfinite(), f"the loss is {value}; expected a finite scalar")


def every_weight_is_trained(make: Make, context: LossContext = CONTEXT) -> None:
    """Every trainable weight of the loss gets a gradient, and so does at least one output of the policy."""
    loss, inputs = seeded(make, context), _inputs(context)
    loss(inputs).backward()
    require_trained(loss)
    policy = (inputs.pooled, inputs.hidden, *inputs.predictions.values())
    require(any(part.grad is not None for part in policy), "no gradient reaches the policy; the loss changes nothing")


def frames_beyond_the_demo_have_no_influence(make: Make, context: LossContext = CONTEXT) -> None:
    """Values at padded frames, even NaN in action targets and privileged keys, change neither the loss nor a gradient."""
    loss, inputs = seeded(make, context), _padded(_inputs(context))
    expected = loss(inputs)
    expected.backward()
    gradients = [weight.grad.clone() for weight in loss.parameters() if weight.grad is not None]
    loss.zero_grad()
    other = _with_content(inputs, torch.nan)
    found = loss(other)
    require_close(found, expected, 1e-5, "the loss with NaN instead of 0 at padded frames")
    found.backward()
    for before, weight in zip(gradients, (w for w in loss.parameters() if w.grad is not None), strict=True):
        assert weight.grad is not None
        require_close(weight.grad, before, 1e-5, "a gradient with NaN instead of 0 at padded frames")


def without_a_real_frame_it_is_zero(make: Make, context: LossContext = CONTEXT) -> None:
    """The loss of a batch without a real frame is 0, not NaN."""
    value = seeded(make, context)(_padded(_inputs(context), kept=0))
    require(value == 0, f"the loss is {value} without a real frame; expected 0")


def _inputs(context: LossContext, window: int = WINDOW) -> LossInputs:
    """A batch of real frames, with random policy outputs that record their gradient."""
    random = generator()
    valid = torch.ones(SEGMENTS, FRAMES, dtype=torch.bool)
    batch = Batch(
        obs={},
        instruction_id=torch.zeros(SEGMENTS, dtype=torch.int64),
        instructions=("",),
        target=random_like(random, SEGMENTS, FRAMES, CHUNK, context.arm_width + 1),
        action_valid=valid[..., None].expand(-1, -1, CHUNK).clone(),
        frame_valid=valid,
    )
    frames = {name: random_like(random, SEGMENTS, FRAMES, width) for name, width in context.privileged.items()}
    seen = {
        name: random_like(random, SEGMENTS, FRAMES, width).requires_grad_()
        for name, width in context.predictions.items()
    }
    pooled = random_like(random, SEGMENTS, FRAMES, context.pooled_width).requires_grad_()
    windows = FRAMES - window + 1
    hidden = random_like(random, SEGMENTS, windows, window, context.hidden_width).requires_grad_()
    return LossInputs(batch, frames, seen, pooled, hidden)


def _padded(inputs: LossInputs, kept: int = 4) -> LossInputs:
    """The same inputs with all but the first `kept` frames marked as padding, where targets and privileged keys are 0."""
    batch = inputs.batch
    valid = torch.as_tensor(batch.frame_valid).clone()
    valid[:, kept:] = False
    actions = torch.as_tensor(batch.action_valid) & valid[..., None]
    return _with_content(replace(inputs, batch=replace(batch, frame_valid=valid, action_valid=actions)), 0.0)


def _with_content(inputs: LossInputs, content: float) -> LossInputs:
    """The same inputs with `content` in the action targets and privileged keys of padded frames."""
    valid = torch.as_tensor(inputs.batch.frame_valid)

    def filled(values: Tensor) -> Tensor:
        return torch.where(valid.reshape(*valid.shape, *(1,) * (values.ndim - 2)), values, content)

    batch = replace(inputs.batch, target=filled(torch.as_tensor(inputs.batch.target)))
    return replace(inputs, batch=batch, privileged={key: filled(v) for key, v in inputs.privileged.items()})


CHECKS: tuple[Callable[..., None], ...] = (
    it_is_one_finite_scalar,
    every_weight_is_trained,
    frames_beyond_the_demo_have_no_influence,
    without_a_real_frame_it_is_zero,
)
