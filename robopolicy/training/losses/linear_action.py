"""The loss `linear_action`: a linear policy on the values that the instruction selected from a group of keys."""

import torch
from torch import Tensor, nn

from robopolicy.components import ConfigError, NoOptions, register
from robopolicy.model.losses import masked_mean
from robopolicy.training.losses import LossContext, LossInputs


@register("loss", "linear_action")
class LinearAction(nn.Module):
    """Mean squared error of the present action's arm columns, predicted linearly from the selected values.

    A linear policy can't memorize the training scenes, so its gradient keeps indicating which object of a group the
    demonstrated actions follow; the gradient of the policy itself vanishes once the scenes are memorized.
    """

    def __init__(self, options: NoOptions, context: LossContext) -> None:
        super().__init__()
        width = context.predictions.get("selected", 0)
        if not width:
            raise ConfigError(
                "--losses.linear_action needs an encoder that selects from a group; give --encoder.groups"
            )
        self.act = nn.Linear(width, context.arm_width)
        # From zero, the first object that it follows it follows with the right sign.
        nn.init.zeros_(self.act.weight)

    def forward(self, inputs: LossInputs) -> Tensor:
        """A scalar, over the valid actions."""
        predicted = self.act(inputs.predictions["selected"]).float()
        wanted = torch.as_tensor(inputs.batch.target, device=predicted.device)[..., 0, : predicted.shape[-1]]
        valid = torch.as_tensor(inputs.batch.action_valid, device=predicted.device)[..., :1]
        return masked_mean((predicted - torch.where(valid, wanted, 0.0)).square(), valid)
