"""The augmentation `obs_dropout`: low-dimensional keys of random segments replaced by their means."""

from dataclasses import dataclass

import torch

from robopolicy.components import Options, option, register
from robopolicy.training.augmentations import AugmentationInputs, with_obs
from robopolicy.types import Batch


@dataclass(frozen=True)
class ObsDropoutOptions(Options):
    """Options of `obs_dropout`."""

    probability: float = option(0.1, "0 .. 1")
    """Probability that all low-dimensional keys of a segment are replaced by their mean."""


@register("augmentation", "obs_dropout", ObsDropoutOptions)
class ObsDropout:
    """Replaces all low-dimensional keys of random segments by their means, so that the policy has to use the images."""

    def __init__(self, options: ObsDropoutOptions, inputs: AugmentationInputs) -> None:
        inputs.require_keys("obs_dropout")
        self.probability, self.mean = options.probability, inputs.obs_mean

    def __call__(self, batch: Batch) -> Batch:
        """The batch with the low-dimensional keys of some segments replaced."""
        first = batch.obs[next(iter(self.mean))]
        hidden = torch.rand(len(first), device=first.device) < self.probability
        changed = {}
        for key, mean in self.mean.items():
            values = batch.obs[key]
            mask = hidden.reshape(-1, *(1,) * (values.ndim - 1))
            changed[key] = torch.where(mask, mean.to(values.device, values.dtype), values)
        return with_obs(batch, changed)
