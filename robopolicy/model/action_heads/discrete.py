"""The action head `discrete`: classifies each arm column into bins, as in RT-1."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional

from robopolicy.components import option, register, require
from robopolicy.model.action_heads.base import HeadOptions, PerceptronHead
from robopolicy.model.losses import masked_mean, weigh_columns
from robopolicy.types import ActionSpec


@dataclass(frozen=True)
class DiscreteOptions(HeadOptions):
    """Options of the action head `discrete`."""

    bins: int = 256
    """Bins of equal width per arm column over [-1, 1]."""
    temperature: float = option(1.0, "> 0")
    """Divisor of the logits when sampling."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.bins >= 2, f"--action_head.bins must be >= 2, got {self.bins}")


@register("action_head", "discrete", DiscreteOptions)
class DiscreteHead(PerceptronHead):
    """Classifies each arm column into one of `bins` bins over [-1, 1], with cross-entropy; decodes to the bin's center."""

    samples: ClassVar[bool] = True

    def __init__(self, options: DiscreteOptions, hidden_width: int, action: ActionSpec) -> None:
        super().__init__(options, hidden_width, action, arm_outputs=action.arm_width * options.bins)
        self.bins = options.bins
        self.temperature = options.temperature

    def logits(self, hidden: Tensor) -> Tensor:
        """(*B, K, A, bins) at each hidden vector (*B, H)."""
        return rearrange(self.actions(hidden), "... (k a b) -> ... k a b", k=self.chunk, b=self.bins)

    def arm_loss(self, hidden: Tensor, labels: Tensor, valid: Tensor, drawn: Tensor) -> Tensor:
        """Mean cross-entropy per valid arm column [nats]; labels outside [-1, 1] belong to the outermost bins."""
        logits = torch.where(valid[..., None], self.logits(hidden).float(), 0.0)
        bin_index = ((labels + 1) * (self.bins / 2)).long().clamp(0, self.bins - 1)
        entropy = -functional.log_softmax(logits, dim=-1).gather(-1, bin_index[..., None]).squeeze(-1)
        return masked_mean(weigh_columns(entropy, self.arm_weights), valid)

    def decode_arm(self, hidden: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """See `PerceptronHead`."""
        logits = self.logits(hidden)
        if generator is None:
            bin_index = logits.argmax(dim=-1)
        else:
            probabilities = functional.softmax(logits / self.temperature, dim=-1)
            drawn = torch.multinomial(probabilities.reshape(-1, self.bins), 1, generator=generator)
            bin_index = drawn.reshape(logits.shape[:-1])
        return (2 * bin_index + 1).to(logits.dtype) / self.bins - 1
