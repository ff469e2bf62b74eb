"""Shared by the poolings `max` and `mean`: adaptive bins of tokens."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from robopolicy.components import Options, option


@dataclass(frozen=True)
class BinOptions(Options):
    """Options of a pooling over bins."""

    latent: int = option(1, ">= 1")
    """L, vectors kept per frame: token bin i of L is floor(i*N/L) up to, not including, ceil((i+1)*N/L)."""


class BinPooling(nn.Module):
    """One vector per bin of tokens; subclasses define how a bin is reduced to a vector. See `Pooling`."""

    def __init__(self, options: BinOptions, width: int) -> None:
        super().__init__()
        self.latent = options.latent
        self.output_width = options.latent * width

    def pool_bin(self, tokens: Tensor, valid: Tensor | None) -> Tensor:
        """One vector (*B, D) from the tokens (*B, n, D) of a bin and their mask (*B, n, 1); 0 without a valid token."""
        raise NotImplementedError

    def forward(
        self, tokens: Float[Tensor, "*batch tokens width"], token_valid: Bool[Tensor, "*batch tokens"] | None = None
    ) -> Float[Tensor, "*batch pooled"]:
        """Pool each bin separately; a bin without a valid token gives 0."""
        count = tokens.shape[-2]
        bins = [slice(i * count // self.latent, -(-(i + 1) * count // self.latent)) for i in range(self.latent)]
        pooled = []
        for bin_ in bins:
            valid = None if token_valid is None else token_valid[..., bin_, None]
            pooled.append(self.pool_bin(tokens[..., bin_, :], valid))
        return pooled[0] if self.latent == 1 else torch.cat(pooled, dim=-1)

    def extra_repr(self) -> str:
        """The options that `print` shows for this module."""
        return f"latent={self.latent}"
