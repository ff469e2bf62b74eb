"""The augmentation `obs_noise`: Gaussian noise on low-dimensional observations."""

from dataclasses import dataclass

import torch

from robopolicy.components import Options, option, register
from robopolicy.training.augmentations import AugmentationInputs, with_obs
from robopolicy.types import Batch


@dataclass(frozen=True)
class ObsNoiseOptions(Options):
    """Options of `obs_noise`."""

    std: float = option(0.02, ">= 0")
    """Standard deviation of the noise, relative to each dimension's own; constant dimensions get no noise."""
    past_std: float | None = option(None, ">= 0")
    """Standard deviation for all frames of a segment except the last; null: as `std`."""


@register("augmentation", "obs_noise", ObsNoiseOptions)
class ObsNoise:
    """Adds independent noise to every frame."""

    def __init__(self, options: ObsNoiseOptions, inputs: AugmentationInputs) -> None:
        inputs.require_keys("obs_noise")
        self.options, self.std = options, inputs.obs_std

    def __call__(self, batch: Batch) -> Batch:
        """The batch with noisy low-dimensional keys."""
        changed = {}
        for key, std in self.std.items():
            values = batch.obs[key]
            amount = torch.full(values.shape[:2], self.options.std, device=values.device, dtype=values.dtype)
            if self.options.past_std is not None:
                amount[:, :-1] = self.options.past_std
            scale = amount.reshape(*amount.shape, *(1,) * (values.ndim - 2)) * std.to(values.device, values.dtype)
            changed[key] = values + scale * torch.randn_like(values)
        return with_obs(batch, changed)
