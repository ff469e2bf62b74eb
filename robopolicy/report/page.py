"""The parts of every page: style, tables, and writing a file whole."""

import html
from collections.abc import Sequence
from pathlib import Path

from robopolicy.files import write_file

STYLE = """
body{font:15px/1.45 system-ui,sans-serif;max-width:62rem;margin:2rem auto;padding:0 1rem;color:#1d2733}
h1{font-size:1.5rem} h2{font-size:1.1rem;margin-top:2rem} .big{font-size:2.6rem;font-weight:650}
table{border-collapse:collapse} td,th{padding:.25rem .8rem;border-bottom:1px solid #dde3ea;text-align:left}
td.n,th.n{text-align:right;font-variant-numeric:tabular-nums} .bar{fill:#3566b8}
figure{display:inline-block;margin:.4rem} figcaption{font-size:.8rem;color:#5a6775}
video{border-radius:4px;image-rendering:pixelated} svg{overflow:visible} svg text{font-size:12px;fill:#5a6775}
.grid{stroke:#dde3ea} pre{font-size:.8rem;overflow-x:auto}
"""


def write_page(path: Path, title: str, parts: Sequence[str]) -> Path:
    """Write one self-contained HTML file."""
    head = f"<!doctype html><html lang=en><meta charset=utf-8><title>{html.escape(title)}</title><style>{STYLE}</style>"
    write_file(path, f"{head}<h1>{html.escape(title)}</h1>{''.join(parts)}</html>")
    return path


def table(head: Sequence[str], rows: Sequence[Sequence[object]], numbers_from: int = 1) -> str:
    """An HTML table; columns from `numbers_from` on are set to the right."""

    def cells(tag: str, values: Sequence[object]) -> str:
        return "".join(
            f"<{tag}{' class=n' if column >= numbers_from else ''}>{html.escape(str(value))}</{tag}>"
            for column, value in enumerate(values)
        )

    body = "".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    return f"<table><tr>{cells('th', head)}</tr>{body}</table>"


def percent(share: float) -> str:
    """A share as whole per cents."""
    return f"{100 * share:.0f} %"


def percent_range(bounds: Sequence[float]) -> str:
    """An interval as whole per cents."""
    return f"{100 * bounds[0]:.0f}-{100 * bounds[1]:.0f} %"
