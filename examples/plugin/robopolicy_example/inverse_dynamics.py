"""The loss `inverse_dynamics`: the action between two frames is predicted from what the encoder sees in both."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robopolicy.components import Options, option, register
from robopolicy.model.losses import masked_mean
from robopolicy.training.losses import LossContext, LossInputs


@dataclass(frozen=True)
class InverseDynamicsOptions(Options):
    """Options of the loss `inverse_dynamics`."""

    hidden: int = option(64, ">= 1")
    """Width of the predictor's hidden layer."""


@register("loss", "inverse_dynamics", InverseDynamicsOptions)
class InverseDynamics(nn.Module):
    """Mean squared error of the arm's action, from the pooled frame that it was taken at and the next one.

    It teaches the encoder what the arm changes in the scene. The predictor is trained beside the policy and not saved.
    """

    def __init__(self, options: InverseDynamicsOptions, context: LossContext) -> None:
        super().__init__()
        self.predict = nn.Sequential(
            nn.Linear(2 * context.pooled_width, options.hidden), nn.ReLU(), nn.Linear(options.hidden, context.arm_width)
        )

    def forward(self, inputs: LossInputs) -> Tensor:
        """A scalar, over the pairs of real frames."""
        predicted = self.predict(torch.cat([inputs.pooled[:, :-1], inputs.pooled[:, 1:]], dim=-1)).float()
        wanted = torch.as_tensor(inputs.batch.target, device=predicted.device)[:, :-1, 0, : predicted.shape[-1]]
        valid = inputs.frame_valid[:, 1:, None]
        return masked_mean((predicted - torch.where(valid, wanted, 0.0)).square(), valid)
