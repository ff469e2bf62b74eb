"""The maximum of each bin of tokens: RoboVLMs' pooling."""

from dataclasses import dataclass

from torch import Tensor

from robopolicy.components import register
from robopolicy.model.poolings._bins import BinOptions, BinPooling


@dataclass(frozen=True)
class MaxOptions(BinOptions):
    """Options of the pooling `max`."""


@register("pooling", "max", MaxOptions)
class MaxPooling(BinPooling):
    """The maximum of each column over the valid tokens of a bin."""

    def pool_bin(self, tokens: Tensor, valid: Tensor | None) -> Tensor:
        """See `BinPooling`."""
        if valid is None:
            return tokens.amax(dim=-2)
        peak = tokens.masked_fill(~valid, float("-inf")).amax(dim=-2)
        return peak.masked_fill(~valid.any(dim=-2), 0.0)
