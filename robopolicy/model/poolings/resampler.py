"""A perceiver resampler (Alayrac et al. 2022, Flamingo)."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from robopolicy.components import option, register
from robopolicy.model.poolings._attending import AttendingOptions, AttendingPooling, attend


@dataclass(frozen=True)
class ResamplerOptions(AttendingOptions):
    """Options of the pooling `resampler`."""

    depth: int = option(2, ">= 1")
    """Layers."""


@register("pooling", "resampler", ResamplerOptions)
class ResamplerPooling(AttendingPooling):
    """Latents attend to tokens and latents, layer by layer; see `Pooling`.

    From the second layer on, a latent's query depends on the tokens that it has already attended to. So an instruction among
    the tokens influences which image tokens are attended to.
    """

    def __init__(self, options: ResamplerOptions, width: int) -> None:
        super().__init__(options, width)
        self.latents = nn.Parameter(torch.randn(options.latent, width) * width**-0.5)
        self.layers = nn.ModuleList(_Layer(width, options.heads) for _ in range(options.depth))
        self.norm = nn.LayerNorm(width)

    def latent_vectors(self, tokens: Tensor, valid: Tensor | None) -> Tensor:
        """See `AttendingPooling`."""
        latents = self.latents.expand(tokens.shape[0], -1, -1)  # `len` would fix the batch size in an exported graph
        for layer in self.layers:
            latents = layer(latents, tokens, valid)
        return self.norm(latents)


class _Layer(nn.Module):
    """Cross-attention to [tokens, latents], then an MLP, both residual and pre-norm."""

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
        latents = latents + self.out(attend(self.query(normed), self.key_value(source), self.heads, valid))
        return latents + self.mlp(latents)
