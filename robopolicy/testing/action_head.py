"""Conformance kit of action heads; each check takes a function that builds a head from an ActionSpec, and the hidden width."""

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

from robopolicy.model.action_heads import ActionHead
from robopolicy.testing._assert import (
    generator,
    module_of,
    random_like,
    require,
    require_close,
    require_equal,
    require_error,
    require_finite_gradients,
    require_trained,
    seeded,
)
from robopolicy.types import ActionSpec

ARM, GRIPPER = 4, 2
Make: TypeAlias = Callable[[ActionSpec], ActionHead]
"""Builds the head for an ActionSpec."""


def any_leading_axes_decode_to_bounded_actions(make: Make, hidden_width: int) -> None:
    """Arm (*B, K, A) in [-1, 1] and gripper logits (*B, K, G), for no, one, two and three batch axes."""
    head = _head(make)
    for lead in ((), (5,), (2, 3), (2, 1, 3)):
        for source in (None, generator()):
            with torch.no_grad():
                chunk = head.decode(3 * random_like(generator(), *lead, hidden_width), generator=source)
            arm, logit = tuple(chunk.arm.shape), tuple(chunk.gripper_logit.shape)
            require(arm == (*lead, head.chunk, ARM), f"arm of shape {arm}; expected {(*lead, head.chunk, ARM)}")
            require(
                logit == (*lead, head.chunk, GRIPPER),
                f"gripper logits of shape {logit}; expected {(*lead, head.chunk, GRIPPER)}",
            )
            require(chunk.arm.abs().max() <= 1, f"arm of {chunk.arm.abs().max():.3f}; expected at most 1")


def a_row_decodes_alone_as_in_a_batch(make: Make, hidden_width: int) -> None:
    """The most probable actions of an episode don't depend on the other episodes."""
    head, hidden = _head(make), random_like(generator(), 6, hidden_width)
    with torch.no_grad():
        together, alone = head.decode(hidden), head.decode(hidden[2])
    require_close(alone.arm, together.arm[2], 1e-5, "arm of a single row against one of a batch")
    require_close(alone.gripper_logit, together.gripper_logit[2], 1e-5, "gripper of a row against one of a batch")


def declared_losses_are_scalars_with_gradients(make: Make, hidden_width: int) -> None:
    """Each of `loss_names` is among what `losses` returns, and reaches every trainable weight."""
    head = _head(make)
    hidden, labels, valid = _examples(head, hidden_width, 7)
    losses = head.losses(hidden, labels, valid)
    missing = [name for name in head.loss_names if name not in losses]
    require(not missing, f"losses {missing} are declared but not returned; got: {', '.join(losses)}")
    for name, value in losses.items():
        require(value.ndim == 0 and value.isfinite(), f"loss {name!r} is {value}; expected a finite scalar")
    _sum(head, losses).backward()
    require_trained(module_of(head))


def invalid_labels_have_no_influence(make: Make, hidden_width: int) -> None:
    """Padding, NaN included, changes neither losses nor gradients."""
    head = _head(make)
    hidden, labels, valid = _examples(head, hidden_width, 7)
    valid = valid.clone()
    valid[4:] = False
    # Seeded, since a head may draw noise, row by row.
    expected = seeded(head.losses, hidden[:4], labels[:4], valid[:4])
    labels = torch.where(valid[..., None], labels, torch.nan)
    padded = seeded(head.losses, hidden, labels, valid)
    for name, value in padded.items():
        require_close(value, expected[name], 1e-5, f"{name!r} with padding against without")
    _sum(head, padded).backward()
    require_finite_gradients(module_of(head), " with padding")


def without_a_valid_label_losses_are_zero(make: Make, hidden_width: int) -> None:
    """With no valid label every loss is 0, with finite gradients."""
    head = _head(make)
    hidden, labels, valid = _examples(head, hidden_width, 3)
    losses = head.losses(hidden, labels, torch.zeros_like(valid))
    for name, value in losses.items():
        require(value == 0, f"{name!r} is {value} without a valid label; expected 0")
    _sum(head, losses).backward()
    require_finite_gradients(module_of(head))


def a_robot_without_gripper_works(make: Make, hidden_width: int) -> None:
    """Decoding and losses work with G = 0."""
    head = _head(make, gripper=0)
    hidden, labels, valid = _examples(head, hidden_width, 3, gripper=0)
    width = head.decode(hidden).gripper_logit.shape[-1]
    require(width == 0, f"{width} gripper columns for a robot without gripper")
    for name, value in head.losses(hidden, labels, valid).items():
        require(value.isfinite(), f"{name!r} is {value} for a robot without gripper")


def samples_come_from_the_generator(make: Make, hidden_width: int) -> None:
    """The same seed gives the same actions; another seed gives others if and only if `samples` is True."""
    head, hidden = _head(make), random_like(generator(), 20, hidden_width)
    with torch.no_grad():
        first, again, other = (head.decode(hidden, generator=generator(seed)).arm for seed in (1, 1, 2))
        mode, mode_again = head.decode(hidden).arm, head.decode(hidden).arm
    require_equal(first, again, "two decodings with one seed")
    require_equal(mode, mode_again, "two decodings without a generator")
    differs = not torch.equal(first, other)
    require(differs == head.samples, f"samples is {head.samples}, but other actions with another seed: {differs}")


def a_prefix_is_used_or_refused(make: Make, hidden_width: int) -> None:
    """A prefix of committed actions is never silently ignored."""
    head, hidden = _head(make), random_like(generator(), 4, hidden_width)
    prefix = torch.zeros(4, 1, ARM + GRIPPER)
    if head.uses_prefix:
        head.decode(hidden, prefix=prefix)
    else:
        require_error(lambda: head.decode(hidden, prefix=prefix), "a prefix, with uses_prefix False")


def a_constant_action_is_learned(make: Make, hidden_width: int) -> None:
    """Minimizing the declared losses moves the decoded action to the labels."""
    head = _head(make)
    hidden = random_like(generator(), 64, hidden_width)
    action = torch.tensor([0.5, -0.25, 0.125, -0.75, 1.0, 0.0])
    labels = action.expand(64, head.chunk, ARM + GRIPPER)
    valid = torch.ones(64, head.chunk, dtype=torch.bool)
    optimizer = torch.optim.Adam(module_of(head).parameters(), lr=1e-2)
    # A smaller rate at the end, since the loss of a head that samples is noisy.
    decay = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (300 - step) / 100))
    for _ in range(300):
        optimizer.zero_grad()
        _sum(head, head.losses(hidden, labels, valid)).backward()
        optimizer.step()
        decay.step()
    with torch.no_grad():
        chunk = head.decode(hidden)
    require_close(chunk.arm, labels[..., :ARM], 0.1, "decoded arm after 300 steps on a constant action")
    require(torch.equal(chunk.gripper_logit > 0, labels[..., ARM:] > 0.5), "the gripper's label was not learned")


def _head(make: Make, gripper: int = GRIPPER) -> ActionHead:
    return make(ActionSpec(arm=ARM, gripper=gripper))


def _examples(head: ActionHead, hidden_width: int, count: int, gripper: int = GRIPPER) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden vectors, labels and an all-true mask."""
    random = generator()
    arm = 2 * torch.rand(count, head.chunk, ARM, generator=random) - 1
    closed = torch.randint(0, 2, (count, head.chunk, gripper), generator=random).float()
    valid = torch.ones(count, head.chunk, dtype=torch.bool)
    return random_like(random, count, hidden_width), torch.cat([arm, closed], dim=-1), valid


def _sum(head: ActionHead, losses: dict[str, Tensor]) -> Tensor:
    return torch.stack([losses[name] for name in head.loss_names]).sum()


CHECKS: tuple[Callable[[Make, int], None], ...] = (
    any_leading_axes_decode_to_bounded_actions,
    a_row_decodes_alone_as_in_a_batch,
    declared_losses_are_scalars_with_gradients,
    invalid_labels_have_no_influence,
    without_a_valid_label_losses_are_zero,
    a_robot_without_gripper_works,
    samples_come_from_the_generator,
    a_prefix_is_used_or_refused,
    a_constant_action_is_learned,
)
