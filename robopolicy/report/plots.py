"""Plots as inline SVG: readable axes and distinguishable colors."""

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

COLORS = tuple(f"var(--c{place})" for place in range(6))
"""Colors that the page's style defines, for light and dark."""
LEFT, TOP, BOTTOM, SIDE = 50, 10, 36, 16
"""Margins for the labels of the axes, and around a whole drawing [pixels]."""


@dataclass(frozen=True)
class Series:
    """One line of a plot."""

    name: str
    points: Sequence[tuple[float, float]]
    color: str = COLORS[0]
    dashed: bool = False
    thin: bool = False
    """Draw it thin and pale, as one of several lines behind their mean, and leave it out of the legend."""


def line_plot(series: Sequence[Series], x_label: str, log: bool, width: int = 520, height: int = 200) -> str:
    """Lines over a common axis that includes 0; with `log`, values must be positive."""
    points = [point for each in series for point in each.points]
    right = max(x for x, _ in points) or 1.0
    ticks = _log_ticks([y for _, y in points]) if log else _ticks(*_bounds([y for _, y in points]))
    scale = math.log10 if log else float
    low, high = scale(ticks[0]), scale(ticks[-1])

    def place(x: float, y: float) -> tuple[float, float]:
        return LEFT + x / right * width, (1 - (scale(y) - low) / (high - low)) * height

    parts = []
    for tick in ticks:
        _, y = place(0.0, tick)
        parts.append(f"<line class=grid x1={LEFT} x2={LEFT + width} y1={y:.1f} y2={y:.1f} />")
        parts.append(f"<text x={LEFT - 8} y={y + 4:.1f} text-anchor=end>{tick:g}</text>")
    for tick in _ticks(0.0, right):
        x, _ = place(tick, ticks[0])
        parts.append(f"<text x={x:.1f} y={height + 16} text-anchor=middle>{tick:g}</text>")
    parts.append(f"<text x={LEFT + width / 2} y={height + 32} text-anchor=middle>{html.escape(x_label)}</text>")
    for each in series:
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(*point) for point in each.points))
        look = "stroke-width:1;opacity:.4" if each.thin else "stroke-width:1.8"
        dash = ";stroke-dasharray:6 4" if each.dashed else ""
        parts.append(f"<polyline points='{line}' fill=none style='stroke:{each.color};{look}{dash}' />")
    svg = _svg(parts, LEFT + width + 16, height)
    legend = " &nbsp; ".join(
        f"<span style='color:{each.color}'>{'- -' if each.dashed else '&mdash;'} {html.escape(each.name)}: "
        f"{each.points[-1][1]:.4g}</span>"
        for each in series
        if not each.thin and each.name
    )
    return f"<figure>{svg}{f'<figcaption>{legend}</figcaption>' if legend else ''}</figure>"


def interval_plot(rows: Mapping[str, tuple[float, Sequence[float]]], width: int = 420) -> str:
    """Success rates with their intervals, one below the other on an axis from 0 to 100 %, each with its name above."""
    parts, height = [], 40 * len(rows)
    for tick in range(0, 101, 25):
        x = width * tick / 100
        parts.append(f"<line class=grid x1={x} x2={x} y1=0 y2={height} />")
        parts.append(f"<text x={x} y={height + 16} text-anchor=middle>{tick} %</text>")
    for row, (name, (rate, (low, high))) in enumerate(rows.items()):
        y = 40 * row + 28
        style = f"stroke:{COLORS[0]};fill:{COLORS[0]};stroke-width:3"
        parts.append(f"<line x1={width * low:.1f} x2={width * high:.1f} y1={y} y2={y} style='{style}' />")
        parts.append(f"<circle cx={width * rate:.1f} cy={y} r=5 style='{style}' />")
        parts.append(f"<text x=4 y={y - 12}>{html.escape(name)}</text>")
    return f"<figure>{_svg(parts, width + 24, height)}</figure>"


def histogram(
    values: Sequence[int] | np.ndarray,
    x_label: str,
    edges: np.ndarray | None = None,
    width: int = 480,
    height: int = 140,
) -> str:
    """A histogram of the values with these bin edges; without edges, of whole numbers in at most 30 bars."""
    if edges is None:
        low, high = int(min(values)), int(max(values))
        step = max(1, -(-(high - low + 1) // 30))
        edges = np.arange(low, high + step + 1, step)
    counts, _ = np.histogram(values, bins=edges)
    names = [f"{edge:.3g}" if edges.dtype.kind == "f" else str(edge) for edge in edges]
    wide = width / len(counts)
    bars = "".join(
        f"<rect class=bar x={i * wide:.1f} y={height - height * n / counts.max():.1f} width={wide - 1:.1f} "
        f"height={height * n / counts.max():.1f}><title>from {names[i]}: {n}</title></rect>"
        for i, n in enumerate(counts)
    )
    shown = range(0, len(counts), max(1, len(counts) * 80 // width))
    labels = "".join(f"<text x={i * wide:.1f} y={height + 16}>{names[i]}</text>" for i in shown)
    labels += f"<text x={width / 2} y={height + 32} text-anchor=middle>{html.escape(x_label)}</text>"
    labels += f"<text x={width + 8} y=12>{counts.max()} at most</text>"
    return f"<figure>{_svg([bars, labels], width + 90, height)}</figure>"


def _svg(parts: Sequence[str], width: int, height: int) -> str:
    """A drawing with room for labels on all sides."""
    wide, high = width + 2 * SIDE, height + TOP + BOTTOM
    return f"<svg width={wide} height={high} viewBox='{-SIDE} {-TOP} {wide} {high}'>{''.join(parts)}</svg>"


def _bounds(values: Sequence[float]) -> tuple[float, float]:
    """Range that contains 0 and the values; not empty."""
    low, high = min(0.0, *values), max(0.0, *values)
    return low, high if high > low else low + 1.0


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers from `low` to `high` or just beyond, at most seven."""
    rough = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [step * place for place in range(first, last + 1)]


def _log_ticks(values: Sequence[float]) -> list[float]:
    """1, 2 and 5 times each power of ten around the values; only powers of ten if that would be too many."""
    first, last = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    ticks = [factor * 10.0**power for power in range(first, last + 1) for factor in (1, 2, 5)]
    inside = [i for i, tick in enumerate(ticks) if min(values) <= tick <= max(values)]
    start = max((i for i, tick in enumerate(ticks) if tick <= min(values)), default=0)
    end = next(i for i, tick in enumerate(ticks) if tick >= max(values))
    if len(inside) > 6:
        return [10.0**power for power in range(first, last + 1)]
    return ticks[start : max(end, start + 1) + 1]
