"""The conformance kit of poolings; each check takes a pooling and the shape of one frame's tokens."""

from collections.abc import Callable

import torch
from torch import Tensor

from robopolicy.model.poolings import Pooling
from robopolicy.testing._assert import (
    evaluating,
    generator,
    module_of,
    random_like,
    require,
    require_close,
    require_equal,
    require_finite_gradients,
)

TOLERANCE = 1e-5


def pooled_frames_have_the_declared_width(pooling: Pooling, tokens: int, width: int) -> None:
    """`output_width` is the width of a pooled frame; the memory is built from it."""
    pooled = pooling(random_like(generator(), 3, 6, tokens, width))
    expected = (3, 6, pooling.output_width)
    require(tuple(pooled.shape) == expected, f"pooled frames of shape {tuple(pooled.shape)}; expected {expected}")


def a_frame_by_itself_is_pooled_as_one_of_a_batch(pooling: Pooling, tokens: int, width: int) -> None:
    """Any number of leading axes, or none, with and without a mask."""
    frames, valid = _frames(tokens, width)
    with torch.no_grad(), evaluating(pooling):
        require_close(pooling(frames[0]), pooling(frames)[0], TOLERANCE, "a frame against one of a batch")
        masked = pooling(frames, valid)
        require_close(pooling(frames[0], valid[0]), masked[0], TOLERANCE, "a masked frame against one of a batch")
        nested = pooling(frames.reshape(2, 2, tokens, width), valid.reshape(2, 2, tokens))
        require_close(nested.flatten(0, 1), masked, TOLERANCE, "two batch axes against one")


def invalid_tokens_have_no_influence(pooling: Pooling, tokens: int, width: int) -> None:
    """The content of an invalid token, NaN and infinity included, changes nothing."""
    frames, valid = _frames(tokens, width)
    with torch.no_grad(), evaluating(pooling):
        expected = pooling(frames, valid)
        require(expected.isfinite().all(), "pooled frames are not finite")
        for content in (0.0, 1e6, float("nan"), float("inf")):
            other = torch.where(valid[..., None], frames, content)
            require_equal(pooling(other, valid), expected, f"pooled frames with {content} at invalid tokens")


def an_all_true_mask_changes_nothing(pooling: Pooling, tokens: int, width: int) -> None:
    """No mask means that all tokens are valid."""
    frames, valid = _frames(tokens, width)
    with torch.no_grad(), evaluating(pooling):
        require_close(pooling(frames, torch.ones_like(valid)), pooling(frames), TOLERANCE, "all valid against no mask")


def a_frame_without_a_valid_token_is_zero(pooling: Pooling, tokens: int, width: int) -> None:
    """Its pooled vector and its gradient are 0, not the NaN of a softmax, maximum or mean over nothing."""
    frames, valid = _frames(tokens, width)
    frames.requires_grad_()
    valid[1] = False
    pooled = pooling(frames, valid)
    require_equal(pooled[1], torch.zeros_like(pooled[1]), "a frame without a valid token against 0")
    pooled.square().sum().backward()
    gradient = frames.grad
    require(gradient is not None, "tokens get no gradient")
    assert gradient is not None
    require_equal(gradient[1], torch.zeros_like(gradient[1]), "gradient of a frame without a valid token against 0")
    require(gradient[2].abs().sum() > 0, "a valid frame's tokens get no gradient")
    require_finite_gradients(module_of(pooling))


def _frames(tokens: int, width: int) -> tuple[Tensor, Tensor]:
    """Four frames, and a mask with at least one valid token in each."""
    random = generator()
    valid = torch.rand(4, tokens, generator=random) < 0.5
    valid[:, 0] = True
    return random_like(random, 4, tokens, width), valid


CHECKS: tuple[Callable[[Pooling, int, int], None], ...] = (
    pooled_frames_have_the_declared_width,
    a_frame_by_itself_is_pooled_as_one_of_a_batch,
    invalid_tokens_have_no_influence,
    an_all_true_mask_changes_nothing,
    a_frame_without_a_valid_token_is_zero,
)
