"""Time on a robot computer: the clock, a fixed grid of ticks, priority, and an interpreter that keeps its pauses short."""

import gc
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol, runtime_checkable

SWITCH_INTERVAL_S = 0.0005
"""How long the policy's thread may keep the interpreter while a command is due [s]."""


@runtime_checkable
class Clock(Protocol):
    """The time that a loop runs by."""

    def now(self) -> float:
        """Seconds since some fixed moment."""
        ...

    def sleep_until(self, t_s: float) -> None:
        """Return at t_s, or at once if it has passed."""
        ...


class SystemClock:
    """The machine's monotonic clock, which all its processes share."""

    def now(self) -> float:
        """Seconds since the machine started."""
        return time.monotonic()

    def sleep_until(self, t_s: float) -> None:
        """Return at t_s, or at once if it has passed."""
        if (left := t_s - time.monotonic()) > 0:
            time.sleep(left)


def request_realtime(priority: int) -> bool:
    """Ask the operating system to run this thread before all ordinary ones (SCHED_FIFO); False where it refuses."""
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(priority))
    except (AttributeError, OSError):
        return False
    return True


class FixedGrid:
    """Ticks at origin + n * period, whatever happens in between; ticks that were missed are skipped, never made up for.

    Args:
        clock: the time.
        period_s: time between two ticks [s]; the first is one period from now.
    """

    def __init__(self, clock: Clock, period_s: float) -> None:
        self.clock, self.period_s = clock, period_s
        self.origin_s = clock.now() + period_s
        self.index = -1

    @property
    def t_s(self) -> float:
        """Time of the present tick [s]."""
        return self.origin_s + self.index * self.period_s

    def wait(self) -> int:
        """Sleep until the next tick and give how many periods it is from the last: 1, or more where some were missed."""
        self.index += 1
        self.clock.sleep_until(self.t_s)
        missed = max(int((self.clock.now() - self.t_s) / self.period_s), 0)
        self.index += missed
        return 1 + missed


@contextmanager
def undisturbed() -> Iterator[None]:
    """Keep the interpreter's own pauses short: what is alive is left out of garbage collection, threads switch fast."""
    interval_s = sys.getswitchinterval()
    gc.collect()
    gc.freeze()
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    try:
        yield
    finally:
        sys.setswitchinterval(interval_s)
        gc.unfreeze()
