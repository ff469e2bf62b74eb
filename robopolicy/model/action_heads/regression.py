"""The action head `regression`: predicts arm columns directly, as RoboVLMs' head."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from robopolicy.components import option, register
from robopolicy.model.action_heads.base import BoundedOptions, PerceptronHead
from robopolicy.model.losses import masked_mean, weigh_columns
from robopolicy.types import ActionSpec


@dataclass(frozen=True)
class RegressionOptions(BoundedOptions):
    """Options of the action head `regression`."""

    huber_delta: float = option(1.0, "> 0")
    """Error at which the loss `arm` changes from quadratic to linear, in normalized action units."""


@register("action_head", "regression", RegressionOptions)
class RegressionHead(PerceptronHead):
    """The arm trained with the Huber loss; the gripper by a logit, trained with binary cross-entropy."""

    def __init__(self, options: RegressionOptions, hidden_width: int, action: ActionSpec) -> None:
        super().__init__(options, hidden_width, action, arm_outputs=action.arm_width)
        self.options = options

    def arm_loss(self, hidden: Tensor, labels: Tensor, valid: Tensor, drawn: Tensor) -> Tensor:
        """Mean Huber loss per valid arm column."""
        arm = torch.where(valid, self._outputs(hidden).float(), 0.0)
        huber = functional.huber_loss(arm, labels, reduction="none", delta=self.options.huber_delta)
        return masked_mean(weigh_columns(huber, self.arm_weights), valid)

    def decode_arm(self, hidden: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """See `PerceptronHead`."""
        return self._outputs(hidden).clamp(-1.0, 1.0)

    def _outputs(self, hidden: Tensor) -> Tensor:
        return self.options.squashed(self.actions(hidden).unflatten(-1, (self.chunk, self.arm_width)))
