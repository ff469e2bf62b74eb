"""The augmentation `crop`: a random part of the image, scaled back to full size."""

from dataclasses import dataclass

import torch

from robopolicy.components import Options, option, register
from robopolicy.training.augmentations import AugmentationInputs, with_obs
from robopolicy.training.augmentations._geometry import resampled
from robopolicy.types import Batch


@dataclass(frozen=True)
class CropOptions(Options):
    """Options of `crop`."""

    share: float = option(0.9, "> 0 and <= 1")
    """Smallest side of the crop, as a fraction of the image's side; drawn uniformly from this value to 1."""


@register("augmentation", "crop", CropOptions)
class Crop:
    """Crops images at random, drawn for each camera and segment."""

    def __init__(self, options: CropOptions, inputs: AugmentationInputs) -> None:
        self.share, self.cameras = options.share, inputs.require_cameras("crop")

    def __call__(self, batch: Batch) -> Batch:
        """The batch with cropped images."""
        changed = {}
        for camera in self.cameras:
            images = batch.obs[camera]
            share = 1 - (1 - self.share) * torch.rand(len(images), 1, device=images.device)
            changed[camera] = resampled(images, share, (torch.zeros_like(share), torch.zeros_like(share)))
        return with_obs(batch, changed)
