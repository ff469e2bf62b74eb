"""Random changes to training batches, drawn per segment and made where the batch lies.

Every frame of a segment is changed alike: a camera that jumps between two frames would teach the memory a motion that
never was. Geometry is one gather of bytes (nearest pixel, edges repeated); colours go through float and back to uint8.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from robopolicy.types import Batch

LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in a grey picture (ITU-R BT.601)."""


@dataclass(frozen=True)
class Augmentation:
    """`augmentation(batch)` gives the batch with its pictures and low-dimensional observations changed at random."""

    cameras: Sequence[str] = ()
    """Keys of the pictures, uint8 (B, S, height, width, channels)."""
    obs_mean: Mapping[str, Tensor] = field(default_factory=dict)
    """Low-dimensional keys and their mean (d,) in the training split, in the demos' units."""
    obs_std: Mapping[str, Tensor] = field(default_factory=dict)
    """Their standard deviation (d,); 0 where a dimension never changes."""
    shift_px: int = 0
    """Largest shift [pixels]."""
    crop: float = 1.0
    """Smallest side of the crop as a share of the picture's side; it is scaled back to full size."""
    brightness: float = 0.0
    """Largest relative change of brightness."""
    contrast: float = 0.0
    """Largest relative change of contrast about the picture's mean."""
    saturation: float = 0.0
    """Largest relative change of saturation."""
    obs_noise: float = 0.0
    """Deviation of the noise, in standard deviations of each dimension; constant dimensions get none."""
    obs_dropout: float = 0.0
    """Probability that a segment's low-dimensional observations are hidden: set to their mean."""

    def __post_init__(self) -> None:
        if not 0 < self.crop <= 1:
            raise ValueError(f"augmentation.crop is {self.crop}; expected a share of the picture's side, 0 < crop <= 1")
        if not 0 <= self.obs_dropout <= 1:
            raise ValueError(f"augmentation.obs_dropout is {self.obs_dropout}; expected a probability, 0 .. 1")
        amounts = {
            name: getattr(self, name) for name in ("shift_px", "brightness", "contrast", "saturation", "obs_noise")
        }
        negative = [name for name, amount in amounts.items() if amount < 0]
        if negative:
            raise ValueError(f"augmentation.{negative[0]} is {amounts[negative[0]]}; expected 0 or more")

    @property
    def active(self) -> bool:
        """Whether anything is changed at all."""
        pictures = self.cameras and (
            self.shift_px or self.crop < 1 or self.brightness or self.contrast or self.saturation
        )
        return bool(pictures or (self.obs_mean and (self.obs_noise or self.obs_dropout)))

    def __call__(self, batch: Batch) -> Batch:
        """The batch with changed observations; what it was made from is left as it is."""
        if not self.active:
            return batch
        changed = {camera: self._recolour(self._move(batch.obs[camera])) for camera in self.cameras}
        return replace(batch, obs={**batch.obs, **changed, **self._perturb(batch.obs)})

    def _move(self, pictures: UInt8[Tensor, "batch segment height width channels"]) -> Tensor:
        if self.shift_px == 0 and self.crop == 1:
            return pictures
        count, segment, height, width, _ = pictures.shape
        share = 1 - (1 - self.crop) * torch.rand(count, 1, device=pictures.device)
        rows, columns = (self._sources(size, share) for size in (height, width))
        batch = torch.arange(count, device=pictures.device)[:, None, None, None]
        frame = torch.arange(segment, device=pictures.device)[None, :, None, None]
        return pictures[batch, frame, rows[:, None, :, None], columns[:, None, None, :]]

    def _sources(self, size: int, share: Tensor) -> Tensor:
        """(B, size): which row or column of the picture each one of the result shows."""
        count, device = len(share), share.device
        corner = torch.rand(count, 1, device=device) * (1 - share) * size
        shift = torch.randint(-self.shift_px, self.shift_px + 1, (count, 1), device=device)
        centres = corner + (torch.arange(size, device=device) + 0.5) * share + shift
        return centres.floor().long().clamp(0, size - 1)

    def _recolour(self, pictures: UInt8[Tensor, "batch segment height width channels"]) -> Tensor:
        if not (self.brightness or self.contrast or self.saturation):
            return pictures
        changed = pictures.float() * self._factor(self.brightness, pictures)
        if self.contrast:
            mean = changed.mean(dim=(1, 2, 3, 4), keepdim=True)
            changed = mean + (changed - mean) * self._factor(self.contrast, pictures)
        if self.saturation and pictures.shape[-1] == 3:
            grey = (changed * changed.new_tensor(LUMA)).sum(dim=-1, keepdim=True)
            changed = grey + (changed - grey) * self._factor(self.saturation, pictures)
        return changed.round_().clamp_(0, 255).to(torch.uint8)

    def _factor(self, amount: float, pictures: Tensor) -> Float[Tensor, "batch 1 1 1 1"]:
        return 1 + amount * (2 * torch.rand(len(pictures), 1, 1, 1, 1, device=pictures.device) - 1)

    def _perturb(self, obs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        if not self.obs_mean or not (self.obs_noise or self.obs_dropout):
            return {}
        first = obs[next(iter(self.obs_mean))]
        hidden = torch.rand(len(first), 1, 1, device=first.device) < self.obs_dropout
        changed = {}
        for key, mean in self.obs_mean.items():
            values = obs[key]
            mean, std = (statistic.to(values.device, values.dtype) for statistic in (mean, self.obs_std[key]))
            noisy = values + self.obs_noise * std * torch.randn_like(values)
            changed[key] = torch.where(hidden, mean, noisy)
        return changed
