"""The loss `attention_keys`: the camera encoder predicts privileged keys from the attended image features alone."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robopolicy.components import ConfigError, register
from robopolicy.model.losses import masked_mean
from robopolicy.training.losses import LossContext, LossInputs, PrivilegedKeysOptions


@dataclass(frozen=True)
class AttentionKeysOptions(PrivilegedKeysOptions):
    """Options of the loss `attention_keys`."""


@register("loss", "attention_keys", AttentionKeysOptions)
class AttentionKeys(nn.Module):
    """Mean squared error of predicted privileged keys, such as the named object's position.

    Early in training, a policy relies on time and proprioception more than on images; this loss trains the attention from the
    first step on. The prediction is part of the encoder's output (`encoder.predict` columns), so the policy sees it too.
    """

    def __init__(self, options: AttentionKeysOptions, context: LossContext) -> None:
        super().__init__()
        self.keys, expected = context.privileged_keys("attention_keys", options)
        if expected != (given := context.predictions.get("attended", 0)):
            raise ConfigError(
                f"--losses.attention_keys has {expected} columns of {', '.join(self.keys)}, and the encoder predicts {given}; "
                f"set --encoder.predict {expected}"
            )

    def forward(self, inputs: LossInputs) -> Tensor:
        """The loss, a scalar: mean over the real frames."""
        valid = inputs.frame_valid[..., None]
        expected = torch.where(valid, inputs.joined(self.keys), 0.0)
        error = torch.where(valid, inputs.predictions["attended"].float() - expected, 0.0).square()
        return masked_mean(error, valid)
