"""The encoder `concat`: the low-dimensional keys, concatenated, through one MLP to one token."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from robopolicy.components import ConfigError, expect, register
from robopolicy.model.encoders.base import EncoderInputs, Encoding, TokenEncoder, with_sentence
from robopolicy.model.texts import TextTokens


@dataclass(frozen=True)
class ConcatOptions:
    """Options of the encoder `concat`."""

    width: int = 256
    """D, width of the token."""
    hidden: int = 256
    """Width of the hidden layers."""
    layers: int = 2
    """Linear layers, with ReLU between them."""
    differences: bool = False
    """Whether the difference of every two columns, in the demos' units, is an input too."""

    default_text: ClassVar[str] = "vocabulary"

    def __post_init__(self) -> None:
        expect(self, "encoder", ">= 1", "width", "hidden", "layers")


@register("encoder", "concat", ConcatOptions)
class ConcatEncoder(TokenEncoder):
    """All keys and the sentence vector, concatenated, through one MLP: the usual baseline of behavior cloning.

    There is one token, also with the instruction, so that every pooling passes it on unchanged. Constant columns need no
    special treatment: normalization maps them to 0.

    What a robot does next depends on where the hand is from the object and the object from the goal. The differences give the
    network that directly: with 10 demos of absolute positions it generalizes better to positions between and around theirs.
    They are d (d - 1) / 2 more inputs for d columns.
    """

    unit: Tensor
    pairs: Tensor

    def __init__(self, options: ConcatOptions, inputs: EncoderInputs) -> None:
        super().__init__()
        inputs.refuse_cameras("concat")
        inputs.refuse_tokens("concat")
        widths = inputs.key_widths
        if not widths:
            raise ConfigError("--encoder.kind concat needs at least one low-dimensional key; give --data.obs_keys")
        self.keys = tuple(widths)
        self.token_count = 1
        columns = sum(widths.values())
        self.differences = options.differences
        if options.differences:
            unit = torch.cat([inputs.units.get(key, torch.ones(width)) for key, width in widths.items()])
            self.register_buffer("unit", unit)
            self.register_buffer("pairs", torch.tril_indices(columns, columns, -1), persistent=False)
            columns += self.pairs.shape[1]
        columns += inputs.text_width or 0
        layers: list[nn.Module] = []
        for _ in range(options.layers - 1):
            layers += [nn.Linear(columns, options.hidden), nn.ReLU()]
            columns = options.hidden
        self.mlp = nn.Sequential(*layers, nn.Linear(columns, options.width))
        self.token_width = options.width

    def forward(self, obs: Mapping[str, Tensor], text: TextTokens | None) -> Encoding:
        """See `TokenEncoder`."""
        values = torch.cat([obs[key] for key in self.keys], dim=-1)
        if self.differences:
            unit, own = self.unit[self.pairs], (values * self.unit)[..., self.pairs]
            values = torch.cat([values, (own[..., 0, :] - own[..., 1, :]) / unit.norm(dim=0)], dim=-1)
        return Encoding(self.mlp(with_sentence(values, text))[..., None, :], None, predictions={})
