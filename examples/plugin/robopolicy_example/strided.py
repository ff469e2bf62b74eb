"""The encoder `strided`: images through strided convolutions and an average, beside the low-dimensional keys."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robopolicy.components import Options, option, register
from robopolicy.model.encoders import EncoderInputs, Encoding, TokenEncoder
from robopolicy.model.encoders.base import with_sentence
from robopolicy.model.texts import TextTokens


@dataclass(frozen=True)
class StridedOptions(Options):
    """Options of the encoder `strided`."""

    width: int = option(64, ">= 1")
    """D, width of the token."""
    channels: tuple[int, ...] = option((16, 32), ">= 1")
    """Channels of the 3x3 convolutions, each with stride 2."""


@register("encoder", "strided", StridedOptions)
class StridedEncoder(TokenEncoder):
    """One token: average features of every camera, the low-dimensional keys and the sentence vector, mixed linearly."""

    def __init__(self, options: StridedOptions, inputs: EncoderInputs) -> None:
        super().__init__()
        inputs.require_cameras("strided")
        inputs.refuse_tokens("strided")
        self.cameras, self.keys = tuple(inputs.cameras), tuple(inputs.key_widths)
        self.trunks = nn.ModuleList(_trunk(inputs.obs[camera].shape[-1], options.channels) for camera in self.cameras)
        columns = len(self.cameras) * options.channels[-1] + sum(inputs.key_widths.values()) + (inputs.text_width or 0)
        self.mix = nn.Sequential(nn.Linear(columns, options.width), nn.ReLU(), nn.Linear(options.width, options.width))
        self.token_width, self.token_count = options.width, 1

    def forward(self, obs: Mapping[str, Tensor], text: TextTokens | None) -> Encoding:
        """See `TokenEncoder`."""
        parts = [self._features(trunk, obs[camera]) for trunk, camera in zip(self.trunks, self.cameras, strict=True)]
        values = torch.cat([*parts, *(obs[key] for key in self.keys)], dim=-1)
        return Encoding(self.mix(with_sentence(values, text))[..., None, :], None, predictions={})

    def _features(self, trunk: nn.Module, images: Tensor) -> Tensor:
        """Images (*B, height, width, channels) in 0 .. 255 -> average features (*B, C)."""
        flat = images.reshape(-1, *images.shape[-3:]).movedim(-1, 1)
        features = trunk(flat.to(self.mix[0].weight.dtype) / 127.5 - 1).mean(dim=(-2, -1))
        return features.reshape(*images.shape[:-3], features.shape[-1])


def _trunk(depth: int, channels: tuple[int, ...]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for width in channels:
        layers += [nn.Conv2d(depth, width, 3, stride=2, padding=1), nn.ReLU()]
        depth = width
    return nn.Sequential(*layers)
