"""The augmentation `shift`: images moved by a few pixels."""

from dataclasses import dataclass

import torch

from robopolicy.components import Options, option, register
from robopolicy.training.augmentations import AugmentationInputs, with_obs
from robopolicy.training.augmentations._geometry import resampled
from robopolicy.types import Batch


@dataclass(frozen=True)
class ShiftOptions(Options):
    """Options of `shift`."""

    pixels: int = option(4, ">= 0")
    """Largest shift along each axis [pixels]; edges are repeated."""


@register("augmentation", "shift", ShiftOptions)
class Shift:
    """Shifts images by a random number of pixels, drawn for each camera and segment."""

    def __init__(self, options: ShiftOptions, inputs: AugmentationInputs) -> None:
        self.pixels, self.cameras = options.pixels, inputs.require_cameras("shift")

    def __call__(self, batch: Batch) -> Batch:
        """The batch with shifted images."""
        changed = {}
        for camera in self.cameras:
            images = batch.obs[camera]
            shape, device = (len(images), 1), images.device
            shift = tuple(torch.randint(-self.pixels, self.pixels + 1, shape, device=device) for _ in range(2))
            changed[camera] = resampled(images, torch.ones(shape, device=device), shift)  # type: ignore[arg-type]
        return with_obs(batch, changed)
