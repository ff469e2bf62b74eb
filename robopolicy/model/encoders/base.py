"""Interface of every encoder, and parts that several encoders share."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from robopolicy.components import require
from robopolicy.model.statistics import Statistics
from robopolicy.model.texts import TextTokens
from robopolicy.types import TOKEN_VALID_KEY, TOKENS_KEY, ArraySpec


class Encoding(NamedTuple):
    """The tokens of each frame, and what the encoder predicted for auxiliary losses."""

    tokens: Float[Tensor, "*batch tokens width"]
    """N tokens per frame."""
    token_valid: Bool[Tensor, "*batch tokens"] | None
    """False where a token is padding; None: all are valid."""
    predictions: Mapping[str, Tensor]
    """Name -> prediction (*B, d), as `TokenEncoder.prediction_widths` declares them."""


@dataclass(frozen=True)
class EncoderInputs:
    """The observation and instruction that an encoder is built for."""

    obs: Mapping[str, ArraySpec]
    """Every key that the policy reads, with the shape of one frame after normalization."""
    text_width: int | None
    """Width of the instruction's sentence vector; None for an unconditioned policy."""
    text_tokens: int
    """Tokens of one instruction; 0 for an unconditioned policy."""
    statistics: Mapping[str, Statistics] | None = None
    """Statistics of each low-dimensional key, in the columns and units before scaling; None when weights are loaded later."""
    units: Mapping[str, Tensor] = field(default_factory=dict)
    """Key -> size of a change by 1 in each scaled column, in the units of `statistics`."""

    @property
    def key_widths(self) -> dict[str, int]:
        """The low-dimensional keys and the width of each."""
        tokens = (TOKENS_KEY, TOKEN_VALID_KEY)
        return {key: spec.width for key, spec in self.obs.items() if not spec.is_image and key not in tokens}

    @property
    def cameras(self) -> dict[str, tuple[int, int]]:
        """The cameras and the (height, width) of each [pixels]."""
        return {key: (spec.shape[0], spec.shape[1]) for key, spec in self.obs.items() if spec.is_image}

    def require_cameras(self, kind: str) -> None:
        """Refuse an observation without images, for an encoder of this kind that needs them."""
        require(
            self.cameras,
            f"--encoder.kind {kind} needs at least one camera; the policy sees: {', '.join(self.obs) or 'nothing'}; "
            "give --data.cameras, or choose --encoder.kind keys",
        )

    def refuse_cameras(self, kind: str) -> None:
        """Refuse images, for an encoder of this kind that would ignore them."""
        require(
            not self.cameras,
            f"--encoder.kind {kind} can't use the camera {', '.join(map(repr, self.cameras))}; choose --encoder.kind "
            "pixels, or leave it out of --data.cameras",
        )

    def refuse_tokens(self, kind: str) -> None:
        """Refuse tokens encoded ahead of time, for an encoder of this kind that would ignore them."""
        require(
            TOKENS_KEY not in self.obs,
            f"--encoder.kind {kind} can't use the key {TOKENS_KEY!r}; choose --encoder.kind precomputed, or leave it out "
            "of --data.obs_keys",
        )


class TokenEncoder(nn.Module):
    """Interface of every encoder; `robopolicy.testing.encoder` checks it.

    An encoder refuses keys that it would not use. Its options may have two class attributes: `default_text: ClassVar[str]`,
    the text model used if the config names none (default `vocabulary`), and `reads_tokens: ClassVar[bool]`, whether the
    demos' tokens are part of its observation (default False).
    """

    token_width: int
    """D, the width of one token."""
    token_count: int
    """N, the same for every frame."""
    prediction_widths: Mapping[str, int] = {}
    """Name -> width of what `Encoding.predictions` holds."""
    exportable: bool = True
    """Whether `forward` can be traced into a graph for any batch size."""

    def forward(self, obs: Mapping[str, Tensor], text: TextTokens | None) -> Encoding:
        """Encode frames with any leading axes *B; deterministic in eval mode.

        Args:
            obs: low-dimensional keys normalized float (*B, d), images uint8 (*B, height, width, 3), tokens (*B, N, D).
            text: the instruction with leading axes that broadcast against *B; None for a policy without the instruction.
        """
        raise NotImplementedError

    def attention(self, obs: Mapping[str, Tensor], text: TextTokens | None) -> dict[str, Tensor]:
        """Attention maps for display: camera -> weights (frames, rows, columns); empty if the encoder has none.

        Args:
            obs: as for `forward`, with one leading axis.
            text: as for `forward`.
        """
        return {}


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


def with_sentence(values: Tensor, text: TextTokens | None) -> Tensor:
    """Values (*B, d) with the sentence vector appended; unchanged for a policy without the instruction."""
    if text is None:
        return values
    return torch.cat([values, text.sentence.expand(*values.shape[:-1], text.sentence.shape[-1])], dim=-1)


def flat_sentence(text: TextTokens | None, batch: torch.Size) -> Tensor | None:
    """The sentence vector of each frame, (frames, width), for images with leading axes `batch`; None without an instruction."""
    if text is None:
        return None
    width = text.sentence.shape[-1]
    return text.sentence.expand(*batch, width).reshape(-1, width)


def perceptron(*widths: int) -> nn.Sequential:
    """Linear layers from the first of these widths to the last, with ReLU between them."""
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1])
