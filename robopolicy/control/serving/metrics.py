"""Counters and timings of the server, in Prometheus' text exposition format 0.0.4."""

import threading
from collections import Counter
from collections.abc import Sequence

PREFIX = "robopolicy_"

TIME_BUCKETS_S = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0)
BATCH_BUCKETS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0)


class Histogram:
    """How often a value fell at or below each bound."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(self.bounds) + 1)
        self.total = 0.0

    def add(self, value: float | int) -> None:
        """Count one value."""
        place = next((i for i, bound in enumerate(self.bounds) if value <= bound), len(self.bounds))
        self.counts[place] += 1
        self.total += value

    def lines(self, name: str) -> list[str]:
        """Cumulative buckets, sum and count."""
        running, lines = 0, [f"# TYPE {name} histogram"]
        for bound, count in zip((*map(str, self.bounds), "+Inf"), self.counts, strict=True):
            running += count
            lines.append(f'{name}_bucket{{le="{bound}"}} {running}')
        return [*lines, f"{name}_sum {self.total}", f"{name}_count {running}"]


class Metrics:
    """Counters and timings of a server; safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        names = ("connections", "connections_total", "errors_total", "requests_total")
        self._counts: Counter[str] = Counter(dict.fromkeys(names, 0))
        self._histograms = {
            "infer_seconds": Histogram(TIME_BUCKETS_S),
            "request_seconds": Histogram(TIME_BUCKETS_S),
            "batch_size": Histogram(BATCH_BUCKETS),
        }

    def count(self, name: str, amount: int = 1) -> None:
        """Add to a counter, whose name ends in `_total`, or move a gauge up or down."""
        with self._lock:
            self._counts[name] += amount

    def observe(self, name: str, value: float | int) -> None:
        """Add a value to a histogram."""
        with self._lock:
            self._histograms[name].add(value)

    def value(self, name: str) -> int:
        """Current value of a counter or gauge."""
        with self._lock:
            return self._counts[name]

    def text(self) -> str:
        """The page that Prometheus reads."""
        with self._lock:
            lines: list[str] = []
            for name, value in sorted(self._counts.items()):
                kind = "counter" if name.endswith("_total") else "gauge"
                lines += [f"# TYPE {PREFIX}{name} {kind}", f"{PREFIX}{name} {value:g}"]
            for name, histogram in self._histograms.items():
                lines += histogram.lines(PREFIX + name)
        return "\n".join(lines) + "\n"
