"""Poolings: they map the tokens of one frame to one vector.

`Cls(options, width)` builds a pooling for tokens `width` = D columns wide; `pooling(tokens, token_valid)` maps tokens
(*B, N, D) and an optional mask (*B, N) to pooled frames (*B, P), and `output_width` is P. The built-in kinds keep
`latent` vectors per frame, so that P = latent * D and vector n fills columns n*D .. n*D + D - 1. Invalid tokens have no
influence, NaN included. Where there is no valid token to pool - in a bin of `max` or `mean`, or in a whole frame - the
result is 0.
"""

from typing import Protocol, runtime_checkable

from torch import Tensor


@runtime_checkable
class Pooling(Protocol):
    """Interface of every pooling, which is an `nn.Module`. `robopolicy.testing.pooling` checks it."""

    output_width: int
    """P, the width of a pooled frame."""

    def __call__(self, tokens: Tensor, token_valid: Tensor | None = None) -> Tensor:
        """Pooled frames (*B, P) of tokens (*B, N, D).

        Args:
            tokens: any number of leading axes.
            token_valid: (*B, N), False where a token is padding; None: all are valid.
        """
        ...
