"""The action head `gaussian`: a diagonal Gaussian over the chunk, which samples."""

from dataclasses import dataclass
from math import log, pi
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from robopolicy.components import Options, option, register
from robopolicy.model.losses import gripper_losses, masked_mean, split_labels
from robopolicy.types import ActionSpec, Chunk


@dataclass(frozen=True)
class GaussianOptions(Options):
    """Options of the action head `gaussian`."""

    chunk: int = option(8, ">= 1")
    """K, actions predicted per frame."""
    min_std: float = option(0.02, "> 0")
    """Least standard deviation, in normalized action units."""


@register("action_head", "gaussian", GaussianOptions)
class GaussianHead(nn.Module):
    """Mean and standard deviation of every arm column, a logit for every gripper; see `model.action_heads.ActionHead`."""

    loss_names: ClassVar[tuple[str, ...]] = ("arm", "gripper")
    samples: ClassVar[bool] = True
    uses_prefix: ClassVar[bool] = False

    def __init__(self, options: GaussianOptions, hidden_width: int, action: ActionSpec) -> None:
        super().__init__()
        self.chunk, self.min_std = options.chunk, options.min_std
        self.arm_width, self.gripper_width = action.arm_width, action.gripper_width
        self.out = nn.Linear(hidden_width, self.chunk * (2 * self.arm_width + self.gripper_width))

    def losses(self, hidden: Tensor, labels: Tensor, valid: Tensor) -> dict[str, Tensor]:
        """`arm`: mean negative log likelihood of a valid column [nats]; `gripper`: mean cross-entropy."""
        arm, gripper, mask = split_labels(labels, valid, self.arm_width, self.gripper_width)
        mean, std, logit = self._gaussian(hidden.float())
        error = (arm - mean) / std
        density = -0.5 * error.square() - std.log() - 0.5 * log(2 * pi)
        return {"arm": masked_mean(-density, mask), "gripper": gripper_losses(logit, gripper, mask)[0]}

    def decode(
        self, hidden: Tensor, *, generator: torch.Generator | None = None, prefix: Tensor | None = None
    ) -> Chunk:
        """The mean, or a sample with a generator; clamped, since a normalized action is within [-1, 1]."""
        if prefix is not None:
            raise ValueError("the action head gaussian uses no prefix; call it without one")
        mean, std, logit = self._gaussian(hidden)
        if generator is not None:
            noise = torch.randn(mean.shape, generator=generator, device=mean.device, dtype=mean.dtype)
            mean = mean + std * noise
        return Chunk(arm=mean.clamp(-1, 1), gripper_logit=logit)

    def _gaussian(self, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Means and standard deviations (*B, K, A), gripper logits (*B, K, G)."""
        outputs = self.out(hidden).unflatten(-1, (self.chunk, -1))
        mean, spread, logit = outputs.split([self.arm_width, self.arm_width, self.gripper_width], dim=-1)
        return torch.tanh(mean), functional.softplus(spread) + self.min_std, logit
