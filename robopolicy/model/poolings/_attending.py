"""Masked attention for the poolings `attention` and `resampler`."""

from torch import Tensor
from torch.nn import functional

from robopolicy.components import ConfigError


def attend(queries: Tensor, keys: Tensor, values: Tensor, valid: Tensor | None) -> Tensor:
    """Scaled dot-product attention over (b, heads, n, d), masked by `valid` (b, n).

    Rows without a valid entry attend to everything, since a softmax over no entries is NaN; `zero_invalid_frames` clears them.
    """
    if valid is None:
        return functional.scaled_dot_product_attention(queries, keys, values)
    visible = valid | ~valid.any(dim=-1, keepdim=True)
    return functional.scaled_dot_product_attention(queries, keys, values, attn_mask=visible[:, None, None])


def zero_invalid_frames(pooled: Tensor, valid: Tensor | None) -> Tensor:
    """Pooled frames (b, P), 0 where `valid` (b, n) marks no token."""
    return pooled if valid is None else pooled.masked_fill(~valid.any(dim=-1, keepdim=True), 0.0)


def flatten_batch(tokens: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Tokens (b, N, D) and mask (b, N) with the leading axes as one; invalid tokens as 0, so that no NaN in them spreads."""
    if valid is not None:
        tokens = tokens.masked_fill(~valid[..., None], 0.0)
        valid = valid.flatten(0, -2) if valid.ndim > 1 else valid[None]
    return (tokens.flatten(0, -3) if tokens.ndim > 2 else tokens[None]), valid


def require_divisor(heads: int, width: int) -> None:
    """Refuse attention heads that do not divide the token width."""
    if width % heads:
        raise ConfigError(f"--pooling.heads {heads} does not divide the token width {width}; choose a divisor")
