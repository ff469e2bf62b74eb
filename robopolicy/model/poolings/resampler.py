"""A perceiver resampler (Alayrac et al. 2022, Flamingo)."""

from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional

from robopolicy.components import Options, option, register
from robopolicy.model.poolings._attending import attend, flatten_batch, require_divisor, zero_invalid_frames


@dataclass(frozen=True)
class ResamplerOptions(Options):
    """Options of the pooling `resampler`."""

    latent: int = option(1, ">= 1")
    """Latent vectors, each kept per frame."""
    heads: int = option(1, ">= 1")
    """Attention heads; must divide the token width."""
    depth: int = option(2, ">= 1")
    """Layers."""


@register("pooling", "resampler", ResamplerOptions)
class ResamplerPooling(nn.Module):
    """Latents attend to tokens and latents, layer by layer; see `Pooling`.

    From the second layer on, a latent's query depends on the tokens that it has already attended to. So an instruction among
    the tokens influences which image tokens are attended to.
    """

    def __init__(self, options: ResamplerOptions, width: int) -> None:
        super().__init__()
        require_divisor(options.heads, width)
        self.output_width = options.latent * width
        self.latents = nn.Parameter(torch.randn(options.latent, width) * width**-0.5)
        self.layers = nn.ModuleList(_Layer(width, options.heads) for _ in range(options.depth))
        self.norm = nn.LayerNorm(width)

    def forward(
        self, tokens: Float[Tensor, "*batch tokens width"], token_valid: Bool[Tensor, "*batch tokens"] | None = None
    ) -> Float[Tensor, "*batch pooled"]:
        """Resample the valid tokens; a frame without one gives 0."""
        batch = tokens.shape[:-2]
        flat, valid = flatten_batch(tokens, token_valid)
        latents = self.latents.expand(flat.shape[0], -1, -1)
        for layer in self.layers:
            latents = layer(latents, flat, valid)
        pooled = rearrange(self.norm(latents), "b l d -> b (l d)")
        return zero_invalid_frames(pooled, valid).reshape(*batch, pooled.shape[-1])


class _Layer(nn.Module):
    """Cross-attention to [tokens, latents], then a perceptron, both residual and pre-normalized."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.token_norm = nn.LayerNorm(width)
        self.latent_norm = nn.LayerNorm(width)
        self.query = nn.Linear(width, width, bias=False)
        self.key_value = nn.Linear(width, 2 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.mlp = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, 4 * width, bias=False),
            nn.GELU(),
            nn.Linear(4 * width, width, bias=False),
        )

    def forward(self, latents: Tensor, tokens: Tensor, valid: Tensor | None) -> Tensor:
        normed = self.latent_norm(latents)
        if valid is not None:
            valid = functional.pad(valid, (0, latents.shape[-2]), value=True)
        source = torch.cat([self.token_norm(tokens), normed], dim=-2)
        queries = rearrange(self.query(normed), "b l (h d) -> b h l d", h=self.heads)
        keys, values = rearrange(self.key_value(source), "b n (two h d) -> two b h n d", two=2, h=self.heads)
        latents = latents + self.out(rearrange(attend(queries, keys, values, valid), "b h l d -> b l (h d)"))
        return latents + self.mlp(latents)
