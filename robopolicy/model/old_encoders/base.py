"""What every encoder is: observation and instruction in, tokens out."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from robopolicy.model.text import TextTokens


class Encoding(NamedTuple):
    """The tokens of each frame, and what the encoder predicted on the way for its own loss terms."""

    tokens: Float[Tensor, "*batch tokens width"]
    """N tokens per frame."""
    token_valid: Bool[Tensor, "*batch tokens"] | None
    """False where a token stands for nothing; None: all valid."""
    predictions: Mapping[str, Tensor]
    """By name, (*B, ...): what loss terms compare with something; empty for most."""


class TokenEncoder(nn.Module):
    """The contract that `tests/conformance/test_token_encoder.py` checks.

    An encoder that contributes loss terms is a `robopolicy.model.losses.TermProvider` as well.
    """

    token_width: int
    """D."""
    token_count: int
    """N, the same for every frame."""
    chosen_width: int = 0
    """Width of its prediction `chosen`, (*B, width): values with those that the instruction picked; 0 where it picks none."""

    def forward(self, obs: Mapping[str, Tensor], text: TextTokens | None) -> Encoding:
        """Encode frames with any leading axes *B; the same numbers each time in eval mode.

        Args:
            obs: low-dimensional keys normalized float (*B, d), images uint8 (*B, height, width, 3), tokens (*B, N, D).
            text: the instruction with leading axes that broadcast against *B, or None for a policy that is told nothing.
        """
        raise NotImplementedError


def append_text(
    tokens: Tensor, text: TextTokens | None, token_valid: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """Frame tokens (*B, N, D) followed by the instruction's, and the mask of both; None where all are valid."""
    if text is None:
        return tokens, token_valid
    lead = tokens.shape[:-2]
    words = text.tokens.expand(*lead, *text.tokens.shape[-2:])
    if token_valid is None:
        token_valid = torch.ones((*lead, tokens.shape[-2]), dtype=torch.bool, device=tokens.device)
    valid = torch.cat([token_valid, text.valid.expand(*lead, text.valid.shape[-1])], dim=-1)
    return torch.cat([tokens, words], dim=-2), valid


def told(values: Tensor, text: TextTokens | None) -> Tensor:
    """Values (*B, d) with the sentence vector beside them, or as they are for a policy that is told nothing."""
    if text is None:
        return values
    return torch.cat([values, text.sentence.expand(*values.shape[:-1], text.sentence.shape[-1])], dim=-1)


def perceptron(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    """One hidden layer with ReLU."""
    return nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, outputs))
