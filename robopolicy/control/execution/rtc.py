"""Real-time chunking (Black et al. 2025, arXiv 2506.07339): each new chunk continues the plan being executed.

The policy receives the plan with each observation. Its chunk begins exactly with the actions that pass during inference. An
action head that was trained with prefixes (arXiv 2512.05964) continues these; one that can be guided (`flow`) also agrees with
the plan's later actions, less and less.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from robopolicy.components import register, require
from robopolicy.control.execution.base import LatencyOptions, Plans


@dataclass(frozen=True)
class RealTimeOptions(LatencyOptions):
    """Options of `rtc`; with a latency of several steps, chunks are taken at most that often."""


@register("execution", "rtc", RealTimeOptions)
class RealTimeChunking:
    """The newest chunk replaces the plan after the frozen actions, which are the same in both."""

    continues = True

    def __init__(self, options: RealTimeOptions, chunk: int, control_dt: float) -> None:
        self.frozen = options.latency_steps(control_dt)
        require(
            2 * self.frozen <= chunk,
            f"execution rtc: {self.frozen} steps of latency with chunks of {chunk} actions: the plan ends before the next "
            f"chunk arrives; train chunks of {2 * self.frozen} or more",
        )

    def merge(self, plans: Plans) -> tuple[Tensor, Tensor]:
        """The old plan for the frozen steps, then the new chunk."""
        place = torch.arange(plans.covered.shape[-1], device=plans.covered.device) + plans.late  # in the new chunk
        kept = (plans.count > 0) & (place < self.frozen)
        return torch.where(kept[..., None], plans.old, plans.new), torch.where(kept, 1, plans.covered.long())
