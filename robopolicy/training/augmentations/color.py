"""The augmentation `color`: brightness, contrast and saturation."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from robopolicy.components import Options, option, register
from robopolicy.training.augmentations import AugmentationInputs, with_obs
from robopolicy.types import Batch

LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in a gray image (ITU-R BT.601)."""


@dataclass(frozen=True)
class ColorOptions(Options):
    """Options of `color`: largest relative changes; 0 switches a change off."""

    brightness: float = option(0.0, ">= 0")
    """Largest relative change of all pixel values."""
    contrast: float = option(0.0, ">= 0")
    """Largest relative change of the pixel values' distance from the segment's mean."""
    saturation: float = option(0.0, ">= 0")
    """Largest relative change of the colors' distance from gray."""


@register("augmentation", "color", ColorOptions)
class Color:
    """Changes images by random factors, drawn for each camera and segment."""

    def __init__(self, options: ColorOptions, inputs: AugmentationInputs) -> None:
        self.options, self.cameras = options, inputs.require_cameras("color")

    def __call__(self, batch: Batch) -> Batch:
        """The batch with recolored images."""
        return with_obs(batch, {camera: self._recolored(batch.obs[camera]) for camera in self.cameras})

    def _recolored(self, images: UInt8[Tensor, "batch segment height width channels"]) -> Tensor:
        changed = images.float() * _factor(self.options.brightness, images)
        if self.options.contrast:
            mean = changed.mean(dim=(1, 2, 3, 4), keepdim=True)
            changed = mean + (changed - mean) * _factor(self.options.contrast, images)
        if self.options.saturation and images.shape[-1] == 3:
            gray = (changed * changed.new_tensor(LUMA)).sum(dim=-1, keepdim=True)
            changed = gray + (changed - gray) * _factor(self.options.saturation, images)
        return changed.round_().clamp_(0, 255).to(torch.uint8)


def _factor(amount: float, images: Tensor) -> Float[Tensor, "batch 1 1 1 1"]:
    return 1 + amount * (2 * torch.rand(len(images), 1, 1, 1, 1, device=images.device) - 1)
