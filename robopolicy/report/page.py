"""Common parts of all pages: style, tables, figures, and writing the file."""

import base64
import html
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from robopolicy.demos.formats._video import encode_png
from robopolicy.files import write_file
from robopolicy.rollout.statistics import wilson_interval

STYLE = """
:root{color-scheme:light dark;--text:#1d2733;--page:#fff;--faint:#5a6775;--grid:#dde3ea;
--c0:#3566b8;--c1:#c2571a;--c2:#1c7c43;--c3:#8a4fb0;--c4:#b3372f;--c5:#5a6775}
@media(prefers-color-scheme:dark){:root{--text:#dbe2ea;--page:#14181d;--faint:#97a3b0;--grid:#333c47;
--c0:#78a6f0;--c1:#f0985c;--c2:#5fc488;--c3:#c497e6;--c4:#f0837b;--c5:#a9b4bf}}
body{font:15px/1.45 system-ui,sans-serif;max-width:62rem;margin:2rem auto;padding:0 1rem;color:var(--text);
background:var(--page);overflow-wrap:anywhere}
h1{font-size:1.5rem} h2{font-size:1.1rem;margin-top:2rem} .big{font-size:2.6rem;font-weight:650}
.wide{overflow-x:auto;overflow-wrap:normal} table{border-collapse:collapse}
td,th{padding:.25rem .8rem .25rem 0;border-bottom:1px solid var(--grid);text-align:left;vertical-align:top}
td.n,th.n{text-align:right;font-variant-numeric:tabular-nums} td.n{white-space:nowrap} .bar{fill:var(--c0)}
figure{display:inline-block;margin:.4rem .8rem .4rem 0;max-width:100%;overflow-x:auto;vertical-align:top}
figcaption{font-size:.8rem;color:var(--faint)} img,video{display:block;max-width:100%;height:auto}
img,video{border-radius:4px;image-rendering:pixelated} svg{max-width:100%;height:auto;min-width:20rem}
svg text{font-size:12px;fill:var(--faint)} .grid{stroke:var(--grid)}
.problem{color:var(--c4)} .note{color:var(--c1)} .good{color:var(--c2)} pre{font-size:.8rem;overflow-x:auto}
@media(max-width:40rem){body{margin:1rem auto} td,th{padding-right:.5rem;font-size:.85rem} .big{font-size:2rem}}
"""


def write_page(path: Path, title: str, parts: Sequence[str]) -> Path:
    """Write one self-contained HTML file."""
    head = (
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
        f"<link rel=icon href='data:,'><title>{html.escape(title)}</title><style>{STYLE}</style>"
    )
    write_file(path, f"{head}<h1>{html.escape(title)}</h1>{''.join(parts)}</html>")
    return path


def table(head: Sequence[str], rows: Sequence[Sequence[object]], numbers_from: int = 1) -> str:
    """An HTML table; columns from `numbers_from` on are aligned to the right."""

    def cells(tag: str, values: Sequence[object]) -> str:
        return "".join(
            f"<{tag}{' class=n' if column >= numbers_from else ''}>{html.escape(str(value))}</{tag}>"
            for column, value in enumerate(values)
        )

    body = "".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    return f"<div class=wide><table><tr>{cells('th', head)}</tr>{body}</table></div>"


def image_figure(image: np.ndarray, caption: str, width: int | None = None) -> str:
    """An image (height, width, 3) uint8 embedded in the page, with a caption; `width` is its width on the page [pixels]."""
    data, text = base64.b64encode(encode_png(image)).decode(), html.escape(caption)
    size = "" if width is None else f" width={width}"
    return (
        f"<figure><img{size} alt='{text}' src='data:image/png;base64,{data}'><figcaption>{text}</figcaption></figure>"
    )


def percent(share: float) -> str:
    """A fraction in whole percent."""
    return f"{100 * share:.0f} %"


def percent_range(bounds: Sequence[float]) -> str:
    """An interval in whole percent."""
    return f"{100 * bounds[0]:.0f}-{100 * bounds[1]:.0f} %"


def success_table(tried: Mapping[str, Mapping[str, Sequence[int]]]) -> str:
    """Success by instruction with Wilson's intervals, one column for each policy.

    Args:
        tried: policy -> instruction -> (solved, episodes).
    """
    names = dict.fromkeys(name for each in tried.values() for name in each)
    rows = [(name or "without instruction", *(_share(each.get(name)) for each in tried.values())) for name in names]
    return f"<h2>By instruction</h2>{table(('instruction', *tried), rows)}"


def _share(counts: Sequence[int] | None) -> str:
    if counts is None:
        return ""
    solved, episodes = counts
    interval = percent_range(wilson_interval(solved, episodes))
    return f"{solved} / {episodes} = {percent(solved / episodes)} ({interval})"
