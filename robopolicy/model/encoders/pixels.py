"""The encoder `pixels`: a small image network, trained from scratch, with attention queries from the instruction.

Per camera, the image is cut into patches and one convolution over them gives a feature map. Queries computed from
the sentence vector attend to its cells; each yields the attended feature and the attended image position (a soft argmax).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, cast

import torch
from einops import rearrange
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn import functional

from robopolicy.components import Options, option, register
from robopolicy.model.encoders.base import (
    EncoderInputs,
    Encoding,
    TokenEncoder,
    append_text,
    flat_sentence,
    perceptron,
    with_sentence,
)
from robopolicy.model.texts import TextTokens


@dataclass(frozen=True)
class PixelsOptions(Options):
    """Options of the encoder `pixels`."""

    width: int = option(128, ">= 1")
    """D, width of one token."""
    hidden: int = option(128, ">= 1")
    """Width of the perceptrons' hidden layer."""
    queries: int = option(4, ">= 1")
    """Attention queries, and tokens, per camera."""
    predict: int = option(0, ">= 0")
    """Width of an auxiliary prediction computed from the attended features alone and used by the fused token; 0: none."""

    default_text: ClassVar[str] = "vocabulary"


@register("encoder", "pixels", PixelsOptions)
class PixelsEncoder(TokenEncoder):
    """`queries` tokens per camera, one token that fuses them with proprioception, then the instruction's tokens.

    With the imitation loss alone, the policy learns from proprioception and timing first and from images late. The
    prediction `attended` is computed only from the attended image features, so that an auxiliary loss on it, such as for
    the named object's position, trains the image network directly.
    """

    def __init__(self, options: PixelsOptions, inputs: EncoderInputs) -> None:
        super().__init__()
        inputs.require_cameras("pixels")
        inputs.refuse_tokens("pixels")
        cameras, sentence = inputs.cameras, inputs.text_width
        self.cameras, self.keys = tuple(cameras), tuple(inputs.key_widths)
        self.token_width = options.width
        self.token_count = options.queries * len(cameras) + 1 + inputs.text_tokens
        self.camera_encoders = nn.ModuleList(CameraEncoder(options.queries, sentence) for _ in cameras)
        self.project = nn.Linear(CameraEncoder.CHANNELS + 2, options.width)
        attended = options.queries * len(cameras) * (CameraEncoder.CHANNELS + 2)
        self.prediction_widths = {"attended": options.predict} if options.predict else {}
        self.predict = perceptron(attended, options.hidden, options.predict) if options.predict else None
        fused = attended + sum(inputs.key_widths.values()) + options.predict + (sentence or 0)
        self.fuse = perceptron(fused, options.hidden, options.width)

    def forward(self, obs: Mapping[str, Tensor], text: TextTokens | None) -> Encoding:
        """See `TokenEncoder`."""
        lead, per_camera = obs[self.cameras[0]].shape[:-3], []
        sentence = flat_sentence(text, lead)
        for camera, encode in zip(self.cameras, self.camera_encoders, strict=True):
            image = obs[camera].reshape(-1, *obs[camera].shape[-3:])
            attended = encode(image, sentence)
            per_camera.append(attended.reshape(*lead, *attended.shape[1:]))
        attended = torch.cat(per_camera, dim=-2)
        values = [attended.flatten(-2), *(obs[key] for key in self.keys)]
        predictions = {}
        if self.predict is not None:
            predictions["attended"] = self.predict(values[0])
            values.append(predictions["attended"])
        fused = self.fuse(with_sentence(torch.cat(values, dim=-1), text))
        tokens = torch.cat([self.project(attended), fused[..., None, :]], dim=-2)
        return Encoding(*append_text(tokens, text), predictions)

    def attention(self, obs: Mapping[str, Tensor], text: TextTokens | None) -> dict[str, Tensor]:
        """See `TokenEncoder`: the mean over the queries."""
        maps, sentence = {}, flat_sentence(text, obs[self.cameras[0]].shape[:1])
        for camera, encode in zip(self.cameras, self.camera_encoders, strict=True):
            weights, _, size = cast(CameraEncoder, encode).attention(obs[camera], sentence)
            maps[camera] = weights.mean(dim=1).unflatten(-1, size)
        return maps


class CameraEncoder(nn.Module):
    """One camera: patches to a feature map, and queries from the sentence vector that attend to it.

    The convolution sees each patch with its neighbors, so that an attended feature encodes where in the patch the
    object is. Patches make it several times cheaper than strided convolutions on pixels.
    """

    CHANNELS = 32
    PATCH_PX = 4

    def __init__(self, queries: int, text_width: int | None) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3 * self.PATCH_PX**2, self.CHANNELS, kernel_size=3, padding=1)
        self.features = nn.Conv2d(self.CHANNELS, 2 * self.CHANNELS, kernel_size=1)
        self.query = perceptron(text_width, self.CHANNELS, queries * self.CHANNELS) if text_width else None
        self.free_query = nn.Parameter(torch.randn(queries, self.CHANNELS))

    def forward(
        self, image: UInt8[Tensor, "frames height width 3"], sentence: Float[Tensor, "frames text"] | None
    ) -> Float[Tensor, "frames queries attended"]:
        """For each query the attended feature, then the attended position (x right, y down, each in [-1, 1])."""
        attention, values, size = self.attention(image, sentence)
        grid = cell_positions(*size, like=values)
        return torch.cat([attention @ values, attention @ grid.expand(image.shape[0], -1, -1)], dim=-1)

    def attention(self, image: Tensor, sentence: Tensor | None) -> tuple[Tensor, Tensor, tuple[int, int]]:
        """Weights (frames, queries, cells), the cells' features (frames, cells, channels), and their rows and columns."""
        pad_down, pad_right = (-side % self.PATCH_PX for side in image.shape[1:3])
        padded = functional.pad(image, (0, 0, 0, pad_right, 0, pad_down))
        patches = rearrange(padded, "b (h p) (w q) c -> b (p q c) h w", p=self.PATCH_PX, q=self.PATCH_PX)
        scaled = patches.to(self.free_query.dtype) / 127.5 - 1
        features = self.features(functional.relu(self.patches(scaled)))
        keys, values = rearrange(features, "b (two c) h w -> two b (h w) c", two=2)
        queries = self.free_query.expand(image.shape[0], -1, -1)
        if self.query is not None and sentence is not None:
            queries = queries + self.query(sentence).unflatten(-1, self.free_query.shape)
        attention = functional.softmax(queries @ keys.mT / self.CHANNELS**0.5, dim=-1)
        return attention, values, (features.shape[-2], features.shape[-1])


def cell_positions(height: int, width: int, like: Tensor) -> Tensor:
    """(height * width, 2) centers of the cells of a feature map, x right and y down, each in [-1, 1]."""
    rows = (2 * torch.arange(height, device=like.device, dtype=like.dtype) + 1) / height - 1
    columns = (2 * torch.arange(width, device=like.device, dtype=like.dtype) + 1) / width - 1
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    return torch.stack([x.flatten(), y.flatten()], dim=-1)
