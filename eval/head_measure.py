"""What the benchmarks of the head share: a table with bars, the best CPU time of a call, the machine's matmul rate."""

import time
from collections.abc import Callable, Mapping
from statistics import median
from typing import Any

import torch
from bench_table import bar

ROUNDS = 4


class Report:
    """Rows of a table, and bars that are passed or not."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self.bars: list[dict[str, Any]] = []

    def row(self, section: str, name: str, ms: float, note: str = "") -> None:
        """One measurement [ms], printed at once."""
        if not self.rows or self.rows[-1]["section"] != section:
            print(f"\n{section}")
        print(f"  {name:<58}{ms:>12.3f} ms   {note}", flush=True)
        self.rows.append({"section": section, "name": name, "ms": ms, "note": note})

    def bar(self, name: str, value: float, goal: float, better: str) -> None:
        """One goal."""
        self.bars.append(bar(name, value, goal, better))


def best_ms(calls: Mapping[str, Callable[[], Any]], seconds: float = 0.3, rounds: int = ROUNDS) -> dict[str, float]:
    """The least CPU time of each call [ms], all taken in turn `rounds` times for about `seconds` each."""
    best = dict.fromkeys(calls, float("inf"))
    for call in calls.values():
        call()
    for _ in range(rounds):
        for name, call in calls.items():
            spent = 0.0
            while spent < seconds:
                start = time.thread_time()
                call()
                taken = time.thread_time() - start
                best[name] = min(best[name], taken * 1e3)
                spent += taken
    return best


def cold_ms(calls: Mapping[str, Callable[[], Any]], times: int = 60) -> dict[str, float]:
    """The median CPU time of each call [ms] with caches full of other data, as when a robot calls every 50 ms."""
    other, spent = torch.zeros(32 << 20), {name: list[float]() for name in calls}  # 128 MiB
    for _ in range(times):
        for name, call in calls.items():
            other.add_(1)
            start = time.thread_time()
            call()
            spent[name].append((time.thread_time() - start) * 1e3)
    return {name: median(found) for name, found in spent.items()}


def packed_rate() -> float:
    """Best rate of one thread over large matrices [FLOP/ms], by oneDNN's packed product."""
    size = 2048
    left, right = torch.randn(size, size), torch.randn(size, size)
    with torch.no_grad():
        packed = torch.ops.mkldnn._reorder_linear_weight(right, size)
        call = {"packed": lambda: torch.ops.mkldnn._linear_pointwise(left, packed, None, "none", [], "")}
        return 2 * size**3 / best_ms(call)["packed"]
