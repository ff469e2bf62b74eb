"""A check's report as one self-contained HTML page: the facts, a histogram of each action column, contact sheets."""

import base64
from collections.abc import Sequence
from html import escape
from pathlib import Path

import numpy as np

from robopolicy.demos.check_report import FileReport, finding_lines, key_range, summary_lines
from robopolicy.demos.formats._video import encode_png
from robopolicy.files import write_file

STYLE = """
:root{color-scheme:light dark;--text:#1d2733;--page:#fff;--faint:#5a6775;--grid:#dde3ea;
--bar:#3566b8;--problem:#b3372f;--note:#8a6100;--good:#1c7c43}
@media(prefers-color-scheme:dark){:root{--text:#dbe2ea;--page:#14181d;--faint:#97a3b0;--grid:#333c47;
--bar:#78a6f0;--problem:#f0837b;--note:#e0b44c;--good:#5fc488}}
body{font:15px/1.45 system-ui,sans-serif;max-width:62rem;margin:2rem auto;padding:0 1rem;color:var(--text);
background:var(--page);overflow-wrap:break-word}
h1{font-size:1.5rem} h2{font-size:1.15rem;margin-top:2.5rem} h3{font-size:1rem}
table{border-collapse:collapse} td,th{padding:.2rem .8rem;border-bottom:1px solid var(--grid);text-align:left}
figure{display:inline-block;margin:.3rem} figcaption{font-size:.75rem;color:var(--faint);text-align:center}
.bar{fill:var(--bar)} .problem{color:var(--problem)} .note{color:var(--note)} .good{color:var(--good)}
img{display:block;image-rendering:pixelated;border-radius:3px}
"""
BINS = 40
IMAGE_PX = 128
"""Images on the contact sheet are subsampled to at most this height."""


def write_page(reports: Sequence[FileReport], target: Path) -> None:
    """Write one page for all files; creates its folder if needed."""
    body = "".join(_section(report) for report in reports)
    write_file(
        target,
        f"<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
        f"<title>robopolicy check</title><style>{STYLE}</style>"
        f"<body><h1>robopolicy check</h1>{body}</body></html>\n",
    )


def histogram(values: np.ndarray, title: str) -> str:
    """One column's values as an inline SVG."""
    counts, edges = np.histogram(values[np.isfinite(values)].astype(np.float64), bins=BINS)
    tallest = max(int(counts.max()), 1)
    bars = "".join(
        f"<rect class=bar x={4 * i} y={60 - height:.1f} width=3 height={height:.1f}><title>{count}</title></rect>"
        for i, count in enumerate(counts)
        if (height := 56 * count / tallest)
    )
    caption = f"{escape(title)}: {edges[0]:.3g} .. {edges[-1]:.3g}"
    return f"<figure><svg width={4 * BINS} height=60>{bars}</svg><figcaption>{caption}</figcaption></figure>"


def _section(report: FileReport) -> str:
    facts = "".join(f"<tr><th>{escape(label)}<td>{escape(value)}" for label, value in summary_lines(report))
    keys = "".join(
        f"<tr><td>{escape(key)}<td>{' x '.join(map(str, known.shape)) or 1}<td>{known.dtype}<td>{key_range(known)}"
        for key, known in report.keys.items()
    )
    findings = "".join(
        f"<p class={kind}>{kind}: {escape(line)}"
        for kind, found in (("problem", report.problems), ("note", report.notes))
        for line in finding_lines(found)
    )
    edits = "".join(f"<p><code>{escape(command)}</code>" for command in report.edit_commands)
    return (
        f"<h2>{escape(str(report.path))}</h2><table>{facts}</table>"
        f"{findings or '<p class=good>nothing found'}{edits}"
        f"<h3>keys</h3><table><tr><th>key<th>shape<th>type<th>range{keys}</table>"
        f"{_histograms(report)}{_sheets(report)}"
    )


def _histograms(report: FileReport) -> str:
    if report.action_spec is None:
        return ""
    rows = np.concatenate(list(report.actions.values()))
    names = {
        column: "gripper" for column in (*report.action_spec.gripper_columns, *report.action_spec.continuous_gripper)
    }
    names |= dict.fromkeys(report.action_spec.constant, "constant")
    figures = (histogram(rows[:, i], f"{names.get(i, 'arm')} {i}") for i in range(rows.shape[1]))
    return f"<h3>actions</h3>{''.join(figures)}"


def _sheets(report: FileReport) -> str:
    html = ""
    for camera, rows in report.sheet.items():
        html += f"<h3>{escape(camera)}</h3>"
        step = -(-rows[0].shape[1] // IMAGE_PX)
        for row in rows:
            strip = encode_png(np.concatenate(list(row[:, ::step, ::step]), axis=1))
            html += f'<img alt="{escape(camera)}" src="data:image/png;base64,{base64.b64encode(strip).decode()}"><br>'
    return html
