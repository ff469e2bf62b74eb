"""Prepares camera images for a backbone: resizing and normalization in torch, on the device, without torchvision."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn import functional


class ImagePreparation(nn.Module):
    """Resizes uint8 images of any size, scales them to [0, 1], and normalizes them by mean and standard deviation.

    Args:
        height, width: size of the backbone's input [pixels].
        mean, std: mean and standard deviation of each color channel.
    """

    def __init__(self, height: int, width: int, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.size = (height, width)
        self.settings: dict[str, Any] = {"size": [height, width], "mean": list(mean), "std": list(std)}
        """The same numbers, JSON-ready; part of a backbone's identity."""
        self.mean = nn.Buffer(torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.std = nn.Buffer(torch.tensor(std).view(3, 1, 1), persistent=False)

    def forward(
        self, images: UInt8[Tensor, "frames height width 3"]
    ) -> Float[Tensor, "frames 3 resized_height resized_width"]:
        """Prepared images; resized bicubically with antialiasing, as the models' own processors do, to another aspect ratio."""
        pixels = rearrange(images, "b h w c -> b c h w").to(self.mean.dtype) / 255
        if tuple(pixels.shape[-2:]) != self.size:
            pixels = functional.interpolate(pixels, self.size, mode="bicubic", antialias=True).clamp(0, 1)
        return (pixels - self.mean) / self.std


def image_preparation(config: Any, processor: Mapping[str, Any], image_size: tuple[int, int]) -> ImagePreparation:
    """The image preparation of a model.

    Args:
        config: the model's config.
        processor: content of its `preprocessor_config.json`; empty if there is none.
        image_size: height and width of the demos' images; only models that read any size use it.
    """
    mean, std = processor.get("image_mean", [0.5] * 3), processor.get("image_std", [0.5] * 3)
    vision = getattr(config, "vision_config", config)
    if hasattr(vision, "spatial_merge_size") and hasattr(vision, "temporal_patch_size"):  # Qwen2-VL and its successors
        unit = vision.patch_size * vision.spatial_merge_size
        height, width = (max(1, round(side / unit)) * unit for side in image_size)
        return ImagePreparation(height, width, mean, std)
    side = getattr(vision, "image_size", None)
    if hasattr(config, "vision_config") and isinstance(side, int):
        return ImagePreparation(side, side, mean, std)
    if side is None and hasattr(vision, "num_patches"):  # SigLIP 2 with a variable aspect ratio: its largest square
        side = int(vision.num_patches**0.5) * vision.patch_size
        return ImagePreparation(side, side, mean, std)
    size = processor.get("crop_size") or processor.get("size") or side or image_size
    return ImagePreparation(*_sides(size), mean, std)


def _sides(size: Any) -> tuple[int, int]:
    """Height and width from a processor's `size`: a number, a pair, or a mapping of sides."""
    if isinstance(size, Mapping):
        short = size.get("shortest_edge", size.get("longest_edge"))
        return int(size.get("height", short)), int(size.get("width", short))
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))
