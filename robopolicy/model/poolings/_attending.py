"""Shared by the poolings `attention` and `resampler`: latent vectors that attend to the tokens."""

from dataclasses import dataclass

from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional

from robopolicy.components import Options, option, require


@dataclass(frozen=True)
class AttendingOptions(Options):
    """Options of a pooling by attention."""

    latent: int = option(1, ">= 1")
    """Vectors kept per frame, each of which attends to the tokens."""
    heads: int = option(1, ">= 1")
    """Attention heads; must divide the token width."""


class AttendingPooling(nn.Module):
    """Latent vectors that attend to the valid tokens; subclasses define how. See `Pooling`."""

    def __init__(self, options: AttendingOptions, width: int) -> None:
        super().__init__()
        require(
            width % options.heads == 0,
            f"--pooling.heads {options.heads} does not divide the token width {width}; choose a divisor",
        )
        self.heads = options.heads
        self.output_width = options.latent * width

    def latent_vectors(self, tokens: Tensor, valid: Tensor | None) -> Tensor:
        """(b, latent, D) from tokens (b, N, D) and their mask (b, N); invalid tokens are 0."""
        raise NotImplementedError

    def forward(
        self, tokens: Float[Tensor, "*batch tokens width"], token_valid: Bool[Tensor, "*batch tokens"] | None = None
    ) -> Float[Tensor, "*batch pooled"]:
        """Pool the valid tokens; a frame without one gives 0."""
        valid = None
        if token_valid is not None:
            tokens = tokens.masked_fill(~token_valid[..., None], 0.0)  # keeps NaN in invalid tokens from spreading
            valid = token_valid.reshape(-1, token_valid.shape[-1])
        pooled = self.latent_vectors(tokens.reshape(-1, *tokens.shape[-2:]), valid).flatten(-2)
        if valid is not None:
            pooled = pooled.masked_fill(~valid.any(dim=-1, keepdim=True), 0.0)
        return pooled.reshape(*tokens.shape[:-2], self.output_width)


def attend(queries: Tensor, keys_and_values: Tensor, heads: int, valid: Tensor | None) -> Tensor:
    """Multi-head attention of queries (b, l, D) over concatenated keys and values (b, n, 2 D), masked by `valid` (b, n).

    Rows without a valid entry attend to everything, since a softmax over no entries is NaN; `AttendingPooling` sets them to 0.
    """
    queries = rearrange(queries, "b l (h d) -> b h l d", h=heads)
    keys, values = rearrange(keys_and_values, "b n (two h d) -> two b h n d", two=2, h=heads)
    visible = None if valid is None else (valid | ~valid.any(dim=-1, keepdim=True))[:, None, None]
    attended = functional.scaled_dot_product_attention(queries, keys, values, attn_mask=visible)
    return rearrange(attended, "b h l d -> b l (h d)")
