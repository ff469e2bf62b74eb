"""The loss `memory_keys`: the memory predicts privileged keys at every frame."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robopolicy.components import register
from robopolicy.model.losses import cut_windows, masked_mean
from robopolicy.training.losses import LossContext, LossInputs, PrivilegedKeysOptions


@dataclass(frozen=True)
class MemoryKeysOptions(PrivilegedKeysOptions):
    """Options of the loss `memory_keys`."""


@register("loss", "memory_keys", MemoryKeysOptions)
class MemoryKeys(nn.Module):
    """Mean squared error of privileged keys predicted linearly from the memory, even when their objects are out of view."""

    def __init__(self, options: MemoryKeysOptions, context: LossContext) -> None:
        super().__init__()
        self.keys, width = context.privileged_keys("memory_keys", options)
        self.predict = nn.Linear(context.hidden_width, width)

    def forward(self, inputs: LossInputs) -> Tensor:
        """The loss, a scalar: mean over the real frames of every window."""
        window = inputs.hidden.shape[2]
        predicted = self.predict(inputs.hidden).float()
        expected = cut_windows(inputs.joined(self.keys), window)
        valid = cut_windows(inputs.frame_valid, window)[..., None]
        return masked_mean((predicted - torch.where(valid, expected, 0.0)).square(), valid)
