"""The action head `regression`: predicts arm columns directly, as RoboVLMs' head."""

from dataclasses import dataclass
from typing import Literal

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional

from robopolicy.components import expect, register
from robopolicy.model.action_heads.base import HeadOptions, PerceptronHead
from robopolicy.model.losses import masked_mean, weigh_columns
from robopolicy.types import ActionSpec


@dataclass(frozen=True)
class RegressionOptions(HeadOptions):
    """Options of the action head `regression`."""

    huber_delta: float = 1.0
    """Where the loss `arm` turns from quadratic to linear, in normalized action units."""
    bound: Literal["tanh", "clamp"] = "tanh"
    """How outputs are kept in [-1, 1], the demos' range: by tanh, as in RoboVLMs, or linear in the loss, clamped when decoded.
    If demos often act at the ends of the range, tanh saturates and its gradient vanishes."""

    def __post_init__(self) -> None:
        super().__post_init__()
        expect(self, "action_head", "> 0", "huber_delta")


@register("action_head", "regression", RegressionOptions)
class RegressionHead(PerceptronHead):
    """The arm trained with the Huber loss; the gripper by a logit, trained with binary cross-entropy."""

    def __init__(self, options: RegressionOptions, hidden_width: int, action: ActionSpec) -> None:
        super().__init__(options, hidden_width, action, arm_outputs=action.arm_width)
        self.huber_delta, self.bound = options.huber_delta, options.bound

    def arm_loss(self, hidden: Tensor, labels: Tensor, valid: Tensor, drawn: Tensor) -> Tensor:
        """Mean Huber loss per valid arm column."""
        outputs = self._outputs(hidden)
        arm = torch.where(valid, (outputs.tanh() if self.bound == "tanh" else outputs).float(), 0.0)
        huber = functional.huber_loss(arm, labels, reduction="none", delta=self.huber_delta)
        return masked_mean(weigh_columns(huber, self.arm_weights), valid)

    def decode_arm(self, hidden: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """See `PerceptronHead`."""
        outputs = self._outputs(hidden)
        return outputs.tanh() if self.bound == "tanh" else outputs.clamp(-1.0, 1.0)

    def _outputs(self, hidden: Tensor) -> Tensor:
        return rearrange(self.actions(hidden), "... (k a) -> ... k a", k=self.chunk)
