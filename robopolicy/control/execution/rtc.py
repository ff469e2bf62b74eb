"""Real-time chunking (Black et al. 2025, arXiv 2506.07339): each new chunk continues the plan being executed.

The policy receives the plan with each observation. Its chunk begins exactly with the actions that pass during inference. An
action head that was trained with prefixes (arXiv 2512.05964) continues these; one that can be guided (`flow`) also agrees with
the plan's later actions, with a weight that decreases over the chunk. Any remaining difference is blended as `freeze` does,
which the paper does not do.
"""

from dataclasses import dataclass

from robopolicy.components import register, require
from robopolicy.control.execution.base import LatencyOptions
from robopolicy.control.execution.freeze import Freeze


@dataclass(frozen=True)
class RealTimeOptions(LatencyOptions):
    """Options of `rtc`; with a latency of several steps, chunks are taken at most that often."""


@register("execution", "rtc", RealTimeOptions)
class RealTimeChunking(Freeze):
    """Keeps the frozen actions, which are the same in the plan and the new chunk, and blends the rest into the chunk."""

    continues = True

    def __init__(self, options: RealTimeOptions, chunk: int, control_dt: float) -> None:
        self.frozen = options.latency_steps(control_dt)
        require(
            2 * self.frozen <= chunk,
            f"execution rtc: {self.frozen} steps of latency with chunks of {chunk} actions: the plan ends before the next "
            f"chunk arrives; train chunks of {2 * self.frozen} or more",
        )
