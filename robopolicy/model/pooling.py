"""Tokens of one frame -> one vector.

Every pooling maps `tokens` (*B, N, D) and an optional `token_valid` (*B, N) to `pooled` (*B, P), where P = `latent * D`
and latent vector n fills columns n*D .. n*D + D - 1. Invalid tokens have no influence. Where nothing valid is left to
pool - in a bin of `max` or `mean`, or in a whole frame - the result is 0.
"""

from typing import Literal, TypeAlias

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional

PoolingKind: TypeAlias = Literal["max", "mean", "attention", "resampler", "none"]


def make_pooling(kind: PoolingKind, width: int, latent: int = 1, *, heads: int = 1, depth: int = 2) -> nn.Module:
    """The pooling called `kind` for tokens of `width` columns, keeping `latent` vectors per frame.

    Args:
        kind: `max`, `mean`, `attention`, `resampler` or `none`.
        width: D, the width of one token.
        latent: vectors kept per frame; for `none`, the number of tokens itself.
        heads: attention heads, of `attention` and `resampler`.
        depth: layers, of `resampler`.

    Raises:
        ValueError: the kind is unknown, `latent` or `depth` is below 1, or `heads` does not divide `width`.
    """
    if latent < 1:
        raise ValueError(f"latent is {latent}; expected at least 1 vector per frame")
    if kind in ("max", "mean"):
        return BinPooling(kind, latent)
    if kind == "attention":
        return AttentionPooling(width, latent, heads)
    if kind == "resampler":
        return ResamplerPooling(width, latent, heads, depth)
    if kind == "none":
        return FlattenTokens(latent)
    raise ValueError(f"pooling {kind!r} is not known; choose max, mean, attention, resampler or none")


class BinPooling(nn.Module):
    """Adaptive maximum or mean: token bin i of L is floor(i*N/L) up to, not including, ceil((i+1)*N/L)."""

    def __init__(self, kind: Literal["max", "mean"], latent: int) -> None:
        super().__init__()
        self.kind = kind
        self.latent = latent

    def forward(
        self, tokens: Float[Tensor, "*batch tokens width"], token_valid: Bool[Tensor, "*batch tokens"] | None = None
    ) -> Float[Tensor, "*batch pooled"]:
        """Pool each bin by itself; a bin without a valid token gives 0."""
        count = tokens.shape[-2]
        bins = [slice(i * count // self.latent, -(-(i + 1) * count // self.latent)) for i in range(self.latent)]
        pool = _masked_max if self.kind == "max" else _masked_mean
        pooled = [pool(tokens[..., b, :], None if token_valid is None else token_valid[..., b, None]) for b in bins]
        return pooled[0] if self.latent == 1 else torch.cat(pooled, dim=-1)

    def extra_repr(self) -> str:
        """What `print(head)` shows."""
        return f"{self.kind}, latent={self.latent}"


class AttentionPooling(nn.Module):
    """Learned queries, one per latent vector, attend to the tokens (multi-head, pre-normalized)."""

    def __init__(self, width: int, latent: int, heads: int = 1) -> None:
        super().__init__()
        _require_heads(heads, width)
        self.heads = heads
        self.queries = nn.Parameter(torch.randn(latent, width) * width**-0.5)
        self.norm = nn.LayerNorm(width)
        self.key_value = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)

    def forward(
        self, tokens: Float[Tensor, "*batch tokens width"], token_valid: Bool[Tensor, "*batch tokens"] | None = None
    ) -> Float[Tensor, "*batch pooled"]:
        """Attend to the valid tokens; a frame without one gives 0."""
        batch = tokens.shape[:-2]
        flat, valid = _flat(tokens, token_valid)
        queries = rearrange(self.queries, "l (h d) -> 1 h l d", h=self.heads).expand(flat.shape[0], -1, -1, -1)
        keys, values = rearrange(self.key_value(self.norm(flat)), "b n (two h d) -> two b h n d", two=2, h=self.heads)
        attended = rearrange(_attend(queries, keys, values, valid), "b h l d -> b l (h d)")
        pooled = rearrange(self.out(attended), "b l d -> b (l d)")
        return _zero_where_blind(pooled, valid).reshape(*batch, pooled.shape[-1])


class ResamplerPooling(nn.Module):
    """A perceiver resampler (Alayrac et al. 2022, Flamingo): latents attend to tokens and latents, layer by layer.

    From the second layer on, what a latent looks for depends on what it has seen: an instruction among the tokens
    steers where the pictures' tokens are read.
    """

    def __init__(self, width: int, latent: int, heads: int = 1, depth: int = 2) -> None:
        super().__init__()
        _require_heads(heads, width)
        if depth < 1:
            raise ValueError(f"a resampler of {depth} layers; expected 1 or more")
        self.latents = nn.Parameter(torch.randn(latent, width) * width**-0.5)
        self.layers = nn.ModuleList(_ResamplerLayer(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)

    def forward(
        self, tokens: Float[Tensor, "*batch tokens width"], token_valid: Bool[Tensor, "*batch tokens"] | None = None
    ) -> Float[Tensor, "*batch pooled"]:
        """Resample the valid tokens; a frame without one gives 0."""
        batch = tokens.shape[:-2]
        flat, valid = _flat(tokens, token_valid)
        latents = self.latents.expand(flat.shape[0], -1, -1)
        for layer in self.layers:
            latents = layer(latents, flat, valid)
        pooled = rearrange(self.norm(latents), "b l d -> b (l d)")
        return _zero_where_blind(pooled, valid).reshape(*batch, pooled.shape[-1])


class _ResamplerLayer(nn.Module):
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
        latents = latents + self.out(rearrange(_attend(queries, keys, values, valid), "b h l d -> b l (h d)"))
        return latents + self.mlp(latents)


class FlattenTokens(nn.Module):
    """No pooling: all N = latent tokens side by side, invalid ones as 0."""

    def __init__(self, latent: int) -> None:
        super().__init__()
        self.latent = latent

    def forward(
        self, tokens: Float[Tensor, "*batch tokens width"], token_valid: Bool[Tensor, "*batch tokens"] | None = None
    ) -> Float[Tensor, "*batch pooled"]:
        """Join the tokens' columns.

        Raises:
            ValueError: the frame does not have `latent` tokens.
        """
        if tokens.shape[-2] != self.latent:
            raise ValueError(
                f"pooling none got {tokens.shape[-2]} tokens per frame; expected latent = {self.latent}; "
                "set latent to the number of tokens, or choose another pooling"
            )
        if token_valid is not None:
            tokens = tokens.masked_fill(~token_valid[..., None], 0.0)
        return tokens.flatten(-2)


def _masked_max(tokens: Tensor, valid: Tensor | None) -> Tensor:
    if valid is None:
        return tokens.amax(dim=-2)
    peak = tokens.masked_fill(~valid, float("-inf")).amax(dim=-2)
    return peak.masked_fill(~valid.any(dim=-2), 0.0)


def _masked_mean(tokens: Tensor, valid: Tensor | None) -> Tensor:
    if valid is None:
        return tokens.mean(dim=-2)
    return tokens.masked_fill(~valid, 0.0).sum(dim=-2) / valid.sum(dim=-2).clamp(min=1)


def _attend(queries: Tensor, keys: Tensor, values: Tensor, valid: Tensor | None) -> Tensor:
    """Attention over (b, h, n, d); rows of `valid` (b, n) without a True attend to everything and are zeroed by the caller."""
    if valid is None:
        return functional.scaled_dot_product_attention(queries, keys, values)
    seen = valid | ~valid.any(dim=-1, keepdim=True)
    return functional.scaled_dot_product_attention(queries, keys, values, attn_mask=seen[:, None, None])


def _zero_where_blind(pooled: Tensor, valid: Tensor | None) -> Tensor:
    return pooled if valid is None else pooled.masked_fill(~valid.any(dim=-1, keepdim=True), 0.0)


def _flat(tokens: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Leading axes as one; invalid tokens as 0, so that not even a NaN in them gets through."""
    if valid is not None:
        tokens = tokens.masked_fill(~valid[..., None], 0.0)
        valid = valid.flatten(0, -2) if valid.ndim > 1 else valid[None]
    return (tokens.flatten(0, -3) if tokens.ndim > 2 else tokens[None]), valid


def _require_heads(heads: int, width: int) -> None:
    if heads < 1 or width % heads:
        raise ValueError(f"{heads} attention heads do not divide the token width {width}; choose a divisor")
