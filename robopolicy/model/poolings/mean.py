"""The mean of each bin of tokens."""

from dataclasses import dataclass

from torch import Tensor

from robopolicy.components import register
from robopolicy.model.poolings._bins import BinOptions, BinPooling


@dataclass(frozen=True)
class MeanOptions(BinOptions):
    """Options of the pooling `mean`."""


@register("pooling", "mean", MeanOptions)
class MeanPooling(BinPooling):
    """The mean of each column over the valid tokens of a bin."""

    def pool_bin(self, tokens: Tensor, valid: Tensor | None) -> Tensor:
        """See `BinPooling`."""
        if valid is None:
            return tokens.mean(dim=-2)
        return tokens.masked_fill(~valid, 0.0).sum(dim=-2) / valid.sum(dim=-2).clamp(min=1)
