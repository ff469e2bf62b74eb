"""The report of `robopolicy check` as an HTML page: facts, a histogram of each action column, contact sheets of the cameras."""

from collections.abc import Sequence
from html import escape
from pathlib import Path

import numpy as np

from robopolicy.demos.check_report import FileReport, finding_lines, key_range, summary_lines
from robopolicy.report.page import image_figure, table, write_page
from robopolicy.report.plots import histogram

BINS = 40
IMAGE_PX = 128
"""Images on the contact sheet are subsampled to at most this height."""


def write_check_page(reports: Sequence[FileReport], target: Path) -> Path:
    """Write one page for all files; its folder is created if needed."""
    return write_page(target, "robopolicy check", [_section(report) for report in reports])


def _section(report: FileReport) -> str:
    findings = [
        f"<p class={kind}>{kind}: {escape(line)}</p>"
        for kind, found in (("problem", report.problems), ("note", report.notes))
        for line in finding_lines(found)
    ]
    keys = [
        (key, " x ".join(map(str, known.shape)) or 1, known.dtype, key_range(known))
        for key, known in report.keys.items()
    ]
    return (
        f"<h2>{escape(str(report.path))}</h2>{table(('fact', 'value'), summary_lines(report), numbers_from=2)}"
        f"{''.join(findings) or '<p class=good>nothing found</p>'}"
        f"{''.join(f'<p><code>{escape(command)}</code></p>' for command in report.edit_commands)}"
        f"<h3>keys</h3>{table(('key', 'shape', 'type', 'range'), keys, numbers_from=4)}"
        f"{_histograms(report)}{_sheets(report)}"
    )


def _histograms(report: FileReport) -> str:
    spec = report.action_spec
    if spec is None:
        return ""
    names = dict.fromkeys((*spec.gripper_columns, *spec.continuous_gripper), "gripper")
    names |= dict.fromkeys(spec.constant, "constant")
    columns = np.concatenate(list(report.actions.values())).T
    figures = [
        histogram(values, f"{names.get(i, 'arm')} {i}", np.histogram_bin_edges(values, BINS), 160, 60)
        for i, values in enumerate(columns.astype(np.float64))
    ]
    return f"<h3>actions</h3>{''.join(figures)}"


def _sheets(report: FileReport) -> str:
    """For each camera, a row of images from each of a few demos."""
    parts: list[str] = []
    for camera, demos in report.sheet.items():
        step = -(-demos[0].shape[1] // IMAGE_PX)
        parts += [image_figure(np.concatenate(list(images[:, ::step, ::step]), axis=1), camera) for images in demos]
    return "".join(parts)
