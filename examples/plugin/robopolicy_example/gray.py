"""The augmentation `gray`: some segments lose their colors."""

from dataclasses import dataclass

import torch

from robopolicy.components import Options, option, register
from robopolicy.training.augmentations import AugmentationInputs, with_obs
from robopolicy.types import Batch


@dataclass(frozen=True)
class GrayOptions(Options):
    """Options of `gray`."""

    probability: float = option(0.2, "0 .. 1")
    """Share of the segments whose images become gray."""


@register("augmentation", "gray", GrayOptions)
class Gray:
    """Every channel becomes the mean of all, in all frames and cameras of a segment alike."""

    def __init__(self, options: GrayOptions, inputs: AugmentationInputs) -> None:
        self.probability, self.cameras = options.probability, inputs.require_cameras("gray")

    def __call__(self, batch: Batch) -> Batch:
        """The batch with gray segments."""
        images = [batch.obs[camera] for camera in self.cameras]
        chosen = torch.rand(len(images[0]), 1, 1, 1, 1, device=images[0].device) < self.probability
        gray = [image.float().mean(dim=-1, keepdim=True).round().to(image.dtype) for image in images]
        changed = [torch.where(chosen, mean, image) for mean, image in zip(gray, images, strict=True)]
        return with_obs(batch, dict(zip(self.cameras, changed, strict=True)))
