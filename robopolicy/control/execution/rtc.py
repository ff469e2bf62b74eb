"""Real-time chunking (Black et al. 2025, arXiv 2506.07339): each new chunk continues the plan being executed.

The policy receives the plan with each observation. Its chunk begins with exact copies of the planned actions that are
executed during inference. An action head that was trained with prefixes (arXiv 2512.05964) continues them; one that supports
guidance (`flow`) is also guided towards the plan's later actions, with a weight that decreases over the chunk. Any remaining
difference is blended as in `freeze`; the paper does not do this.
"""

from dataclasses import dataclass

from robopolicy.components import register, require
from robopolicy.control.execution.base import LatencyOptions
from robopolicy.control.execution.freeze import Freeze


@dataclass(frozen=True)
class RealTimeOptions(LatencyOptions):
    """Options of `rtc`; with a latency of n > 1 control steps, a chunk is merged at most every n steps."""


@register("execution", "rtc", RealTimeOptions)
class RealTimeChunking(Freeze):
    """Keeps the frozen actions, which plan and new chunk have in common, and blends the rest of the plan into the chunk."""

    continues = True

    def __init__(self, options: RealTimeOptions, chunk: int, control_dt: float) -> None:
        self.frozen = options.latency_steps(control_dt)
        require(
            2 * self.frozen <= chunk,
            f"execution rtc: {self.frozen} steps of latency with chunks of {chunk} actions: the plan ends before the next "
            f"chunk arrives; train chunks of {2 * self.frozen} or more",
        )
