"""The report of `robopolicy check` on one file, and its text for the terminal."""

import re
import shlex
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from robopolicy.demos.actions import describe_action_spec
from robopolicy.demos.findings import Finding, KeySummary, copied_share
from robopolicy.types import ActionSpec, printable

SHOWN = 8
"""Largest number of lines shown of one kind; the others are only counted."""
NUMBER = re.compile(r"\d+(\.\d+)?")
"""A number in a message. Messages that differ only in numbers count as one kind, such as pauses of several demos."""
ALIKE_SHOWN = 3
"""Largest number of messages shown of one kind."""


@dataclass
class FileReport:
    """Contents and problems of one file or folder."""

    path: Path
    format_name: str
    disk_bytes: int
    names: list[str]
    rate_hz: float | None = None
    environment: str | None = None
    filter_keys: dict[str, list[str]] = field(default_factory=dict)
    lengths: dict[str, int] = field(default_factory=dict)
    """Steps of each readable demo."""
    keys: dict[str, KeySummary] = field(default_factory=dict)
    """`actions` and every observation key."""
    instruction_of: dict[str, str | None] = field(default_factory=dict)
    """The instruction of each readable demo."""
    action_spec: ActionSpec | None = None
    """None if no demo is readable, or if their actions differ in width."""
    actions: dict[str, np.ndarray] = field(default_factory=dict)
    """(T, width) of each readable demo."""
    openings: dict[str, np.ndarray] = field(default_factory=dict)
    """`gripper_openings` of each readable demo that has any."""
    sheet: dict[str, list[np.ndarray]] = field(default_factory=dict)
    """Per camera, one row of images (frames, height, width, 3) for each of a few demos."""
    findings: list[Finding] = field(default_factory=list)

    @property
    def instructions(self) -> Counter[str | None]:
        """Number of demos with each instruction; None: without one."""
        return Counter(self.instruction_of.values())

    @property
    def problems(self) -> list[Finding]:
        """Findings that make the exit code 1."""
        return [finding for finding in self.findings if finding.severity == "problem"]

    @property
    def notes(self) -> list[Finding]:
        """Findings that are notes only."""
        return [finding for finding in self.findings if finding.severity == "note"]

    @property
    def good(self) -> list[str]:
        """Demos without a problem of their own."""
        unfit = {finding.demo for finding in self.problems}
        return [name for name in self.names if name not in unfit]

    @property
    def edit_commands(self) -> list[str]:
        """Commands of `robopolicy edit` that fix findings, one for each option."""
        values: dict[str, dict[str, None]] = {}
        for finding in self.findings:
            option, value = finding.edit or (("--drop", finding.demo) if finding.severity == "problem" else ("", None))
            if value is not None:
                values.setdefault(option, {})[value] = None
        out = self.path.with_name(f"{self.path.name.removesuffix('.hdf5')}.edited.hdf5")
        return [
            shlex.join(["robopolicy", "edit", str(self.path), option, *found, "--out", str(out)])
            for option, found in values.items()
            if option != "--drop" or len(found) < len(self.names)
        ]


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
        lines.append(("rate", f"{report.action_spec.rate_hz:g} Hz" if report.action_spec.rate_hz else "not declared"))
        lines.append(("actions", describe_action_spec(report.action_spec)))
        if (copied := copied_share(list(report.actions.values()), report.action_spec)) is not None:
            lines.append(
                ("copycat", f"the last action explains {max(copied, 0.0):.0%} of the variance of the arm's next one")
            )
    texts = [f"{text!r} x {count}" for text, count in report.instructions.most_common(SHOWN) if text]
    more = f", {len(report.instructions) - SHOWN} more" if len(report.instructions) > SHOWN else ""
    lines.append(("instructions", ", ".join(texts) + more if texts else "none"))
    masks = ", ".join(f"{key} {len(names)}" for key, names in report.filter_keys.items())
    lines.append(("filter keys", masks or "none; training splits the demos itself"))
    return lines


def finding_lines(findings: list[Finding]) -> list[str]:
    """One line for each message, with the demos that it applies to; the first few messages of each kind."""
    demos: dict[str, list[str]] = {}
    for finding in findings:
        demos.setdefault(finding.text, []).append(finding.demo or "")
    alike: dict[str, list[str]] = {}
    for text, names in demos.items():
        named = [name for name in names if name]
        more = f" and {len(named) - SHOWN} more" if len(named) > SHOWN else ""
        line = f"{', '.join(named[:SHOWN])}{more}: {text}" if named else text
        alike.setdefault(NUMBER.sub("#", text), []).append(line)
    lines: list[str] = []
    for kind in alike.values():
        more = len(kind) - ALIKE_SHOWN
        lines += kind if more <= 1 else [*kind[:ALIKE_SHOWN], f"and {more} more messages like this one"]
    more = len(lines) - 4 * SHOWN
    return lines if more <= 0 else [*lines[: 4 * SHOWN], f"and {more} more"]


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
    unit, scale = ("GB", 1e9) if count >= 1e9 else ("MB", 1e6)
    return f"{count / scale:.2f} {unit}" if count >= 1e5 else f"{count / 1e3:.1f} kB"
