"""A check's report as text for the terminal."""

from collections import Counter

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from robopolicy.demos.actions import describe_action_spec
from robopolicy.demos.check_report import FileReport
from robopolicy.demos.findings import Finding, KeySummary, copied_share
from robopolicy.types import printable

SHOWN = 8
"""Lines of one kind that are shown before the rest is counted."""


def print_report(report: FileReport, console: Console) -> None:
    """Print one file's report."""
    console.print(Text(printable(str(report.path)), style="bold"))
    for label, value in summary_lines(report):
        console.print(Text(printable(f"  {label:<12} {value}")))
    console.print(_key_table(report.keys))
    for title, findings, style in (("problems", report.problems, "red"), ("notes", report.notes, "yellow")):
        for line in finding_lines(findings):
            console.print(Text(printable(f"  {title[:-1]:<8} {line}"), style=style))
    for command in report.edit_commands:
        console.print(Text(printable(f"  edit     {command}"), style="cyan"))
    good, all_demos = len(report.good), len(report.names)
    verdict = f"nothing wrong in {all_demos} demos" if not report.problems else f"{good} of {all_demos} demos are good"
    console.print(Text(f"  {verdict}\n", style="red" if report.problems else "green"))


def summary_lines(report: FileReport) -> list[tuple[str, str]]:
    """Label and value of each fact about the file as a whole."""
    lengths = np.array(list(report.lengths.values()) or [0])
    lines = [
        ("format", report.format_name + (f", environment {report.environment}" if report.environment else "")),
        ("disk", _size(report.disk_bytes)),
        ("demos", f"{len(report.names)}, {len(report.lengths)} readable"),
        ("steps", f"{lengths.sum()} ({lengths.min()} - {lengths.max()} a demo, median {np.median(lengths):g})"),
    ]
    if report.action_spec is not None:
        lines += [("rate", f"{report.action_spec.rate_hz:g} Hz" if report.action_spec.rate_hz else "not declared")]
        lines += [("actions", describe_action_spec(report.action_spec))]
        copied = copied_share(list(report.actions.values()), report.action_spec)
        if copied is not None:
            lines.append(("copycat", f"the last action predicts {max(copied, 0.0):.0%} of the arm's next"))
    texts = [f"{text!r} x {count}" for text, count in report.instructions.most_common(SHOWN) if text]
    more = f", {len(report.instructions) - SHOWN} more" if len(report.instructions) > SHOWN else ""
    lines.append(("instructions", ", ".join(texts) + more if texts else "none"))
    masks = ", ".join(f"{key} {len(names)}" for key, names in report.filter_keys.items())
    lines.append(("filter keys", masks or "none; training splits the demos itself"))
    return lines


def finding_lines(findings: list[Finding]) -> list[str]:
    """One line for each text, with the demos it was found in."""
    demos: dict[str, list[str]] = {}
    for finding in findings:
        demos.setdefault(finding.text, []).append(finding.demo or "")
    lines = []
    for text, names in demos.items():
        named = [name for name in names if name]
        more = f" and {len(named) - SHOWN} more" if len(named) > SHOWN else ""
        lines.append(f"{', '.join(named[:SHOWN])}{more}: {text}" if named else text)
    if len(lines) > 4 * SHOWN:
        kinds = Counter(line.rpartition(": ")[2][:40] for line in lines[4 * SHOWN :])
        lines = [*lines[: 4 * SHOWN], f"and {kinds.total()} more"]
    return lines


def key_range(known: KeySummary) -> str:
    """Smallest and largest value, and how many dimensions never change."""
    still = f", {len(known.constant)} constant" if known.constant and known.shape else ""
    return f"{known.low.min():.4g} .. {known.high.max():.4g}{still}"


def _key_table(keys: dict[str, KeySummary]) -> Table:
    table = Table(box=None, padding=(0, 1, 0, 2))
    for title in ("key", "shape", "type", "range"):
        table.add_column(title, style="dim" if title == "type" else None)
    for key, known in keys.items():
        name = key if key in ("actions", "tokens") else f"obs/{key}"
        table.add_row(Text(printable(name)), " x ".join(map(str, known.shape)) or "1", known.dtype, key_range(known))
    return table


def _size(count: int) -> str:
    return (
        f"{count / 1e9:.2f} GB"
        if count >= 1e9
        else f"{count / 1e6:.2f} MB"
        if count >= 1e5
        else f"{count / 1e3:.1f} kB"
    )
