"""Statistics of a control loop."""

from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

MISSED_SHARE = 0.05
"""Share of the control steps that may be skipped on a busy computer before the run counts as failed."""


_times = partial(array, "d")
"""Makes an array of 8-byte times: an hour of commands at 1 kHz takes 29 MB."""


@dataclass
class LoopStatistics:
    """Counts and times of a control loop since it was built. Times in seconds, one entry per control step."""

    control_dt: float
    command_dt: float
    steps: int = 0
    """Control steps started."""
    acted: int = 0
    """Control steps that executed an action."""
    operated: int = 0
    """Control steps that executed the operator's action; also counted in `acted`."""
    waiting: int = 0
    """Control steps before the policy's first chunk, and a step cut short by the end of the episode."""
    commands: int = 0
    """Commands sent; in a dry run, computed."""
    overruns: int = 0
    """Command ticks missed because the loop was late."""
    missed_steps: int = 0
    """Control steps missed because the loop was late."""
    missed_frames: int = 0
    """Control steps whose observation was dropped because the policy was busy."""
    held: int = 0
    """Control steps in which the robot held its position for lack of a valid action."""
    late_chunks: int = 0
    """Control steps that used an earlier observation's chunk because their own was late."""
    elapsed_s: float = 0.0
    """Time from the first control step to the last."""
    delay_s: array = field(default_factory=_times)
    """Delay of each control step behind its scheduled time."""
    command_delay_s: array = field(default_factory=_times)
    """Delay of each command behind its scheduled time."""
    latency_s: array = field(default_factory=_times)
    """Time from each request to its chunk."""
    slack_s: array = field(default_factory=_times)
    """Time left in each control step when its chunk arrived; negative if the chunk was late."""
    limited_steps: int = 0
    """Control steps whose target a limit changed; not those of the operator, which `operated` counts."""
    limited: Counter[str] = field(default_factory=Counter)
    """Control steps whose target a limit changed, by kind of limit."""
    deferred: Counter[str] = field(default_factory=Counter)
    """Control steps whose target is reached late, by cause: `motion` (velocity, acceleration or jerk), `tool` (tool speed
    or workspace), `kept` (no motion to the target stays within the limits, so the earlier motion continues)."""
    stops: list[str] = field(default_factory=list)
    """Reason of each controlled stop."""
    stop_s: list[float] = field(default_factory=list)
    """Time from the cause of each controlled stop to rest."""

    def to_dict(self, last_steps: int | None = None) -> dict[str, Any]:
        """A JSON-ready summary; times as percentiles in milliseconds, over the last `last_steps` steps or all."""
        commands = None if last_steps is None else round(last_steps * self.control_dt / self.command_dt)
        names = ("delay", "command_delay", "latency", "slack")
        counts = (
            "steps",
            "acted",
            "operated",
            "idle",
            "commands",
            "overruns",
            "missed_steps",
            "missed_frames",
            "held",
            "late_chunks",
            "limited_steps",
        )
        return {
            "rate_hz": self.rate_hz,
            **{name: getattr(self, name) for name in counts},
            **{
                f"{name}_ms": percentiles_ms(getattr(self, f"{name}_s"), commands if "command" in name else last_steps)
                for name in names
            },
            "limited": dict(self.limited),
            "deferred": dict(self.deferred),
            "stops": list(self.stops),
            "stop_ms": [1e3 * time_s for time_s in self.stop_s],
        }

    @property
    def idle(self) -> int:
        """Control steps that should have had an action and had none: a failure of the loop or the policy."""
        return self.steps - self.acted - self.waiting

    @property
    def failure(self) -> str | None:
        """Why the run failed although nothing stopped it; None if it did not fail."""
        if self.idle:
            return f"no action in {self.idle} of {self.steps - self.waiting} control steps, {self.held} of them held"
        begun = self.steps + self.missed_steps
        if self.missed_steps > MISSED_SHARE * begun:
            return f"{self.missed_steps} of {begun} control steps were skipped because the loop was late"
        return None

    @property
    def rate_hz(self) -> float:
        """Measured control steps per second."""
        return (self.steps - 1) / self.elapsed_s if self.elapsed_s > 0 else 0.0


def percentiles_ms(times_s: Sequence[float], last: int | None = None) -> dict[str, float]:
    """Minimum, p50, p90, p99 and maximum in milliseconds of times [s], or of the last `last` of them; empty without times."""
    if not times_s:
        return {}
    values = np.percentile(1e3 * np.asarray(times_s[-last:] if last else times_s[:]), [0, 50, 90, 99, 100])
    return dict(zip(("min", "p50", "p90", "p99", "max"), map(float, values), strict=True))
