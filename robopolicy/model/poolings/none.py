"""No pooling: all tokens, concatenated."""

from dataclasses import dataclass

from jaxtyping import Bool, Float
from torch import Tensor, nn

from robopolicy.components import Options, option, register


@dataclass(frozen=True)
class FlattenOptions(Options):
    """Options of the pooling `none`."""

    latent: int = option(1, ">= 1")
    """N, the number of tokens per frame; frames with another number are refused."""


@register("pooling", "none", FlattenOptions)
class FlattenTokens(nn.Module):
    """All N = `latent` tokens concatenated, with invalid tokens set to 0; see `Pooling`."""

    def __init__(self, options: FlattenOptions, width: int) -> None:
        super().__init__()
        self.latent = options.latent
        self.output_width = options.latent * width

    def forward(
        self, tokens: Float[Tensor, "*batch tokens width"], token_valid: Bool[Tensor, "*batch tokens"] | None = None
    ) -> Float[Tensor, "*batch pooled"]:
        """Join the tokens' columns.

        Raises:
            ValueError: the frame does not have `latent` tokens.
        """
        if tokens.shape[-2] != self.latent:
            raise ValueError(
                f"pooling none got {tokens.shape[-2]} tokens per frame; expected --pooling.latent = {self.latent}; "
                "set it to the number of tokens, or choose another pooling"
            )
        if token_valid is not None:
            tokens = tokens.masked_fill(~token_valid[..., None], 0.0)
        return tokens.flatten(-2)
