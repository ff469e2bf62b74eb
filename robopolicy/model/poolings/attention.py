"""Learned queries attend to the tokens."""

from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

from robopolicy.components import Options, option, register
from robopolicy.model.poolings._attending import attend, flatten_batch, require_divisor, zero_invalid_frames


@dataclass(frozen=True)
class AttentionOptions(Options):
    """Options of the pooling `attention`."""

    latent: int = option(1, ">= 1")
    """Queries, and vectors kept per frame."""
    heads: int = option(1, ">= 1")
    """Attention heads; must divide the token width."""


@register("pooling", "attention", AttentionOptions)
class AttentionPooling(nn.Module):
    """Learned queries, one per latent vector, attend to the tokens (multi-head, pre-normalized); see `Pooling`."""

    def __init__(self, options: AttentionOptions, width: int) -> None:
        super().__init__()
        require_divisor(options.heads, width)
        self.heads = options.heads
        self.output_width = options.latent * width
        self.queries = nn.Parameter(torch.randn(options.latent, width) * width**-0.5)
        self.norm = nn.LayerNorm(width)
        self.key_value = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)

    def forward(
        self, tokens: Float[Tensor, "*batch tokens width"], token_valid: Bool[Tensor, "*batch tokens"] | None = None
    ) -> Float[Tensor, "*batch pooled"]:
        """Attend to the valid tokens; a frame without one gives 0."""
        batch = tokens.shape[:-2]
        flat, valid = flatten_batch(tokens, token_valid)
        queries = rearrange(self.queries, "l (h d) -> 1 h l d", h=self.heads).expand(flat.shape[0], -1, -1, -1)
        keys, values = rearrange(self.key_value(self.norm(flat)), "b n (two h d) -> two b h n d", two=2, h=self.heads)
        attended = rearrange(attend(queries, keys, values, valid), "b h l d -> b l (h d)")
        pooled = rearrange(self.out(attended), "b l d -> b (l d)")
        return zero_invalid_frames(pooled, valid).reshape(*batch, pooled.shape[-1])
