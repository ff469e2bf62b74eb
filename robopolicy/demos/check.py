"""Checks a set of demos: reports contents and problems, and writes a file of the demos without problems."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.progress import track

from robopolicy.demos.actions import gripper_openings
from robopolicy.demos.check_report import FileReport
from robopolicy.demos.findings import (
    Finding,
    KeySummary,
    action_findings,
    demo_notes,
    demo_problems,
    holds_last_action,
    set_findings,
)
from robopolicy.demos.formats import DemoReader, action_spec_of, convert, open_demos
from robopolicy.demos.formats.base import is_image
from robopolicy.demos.outliers import SetComparison
from robopolicy.demos.remote import local_path
from robopolicy.types import DemoFormatError

SHEET_DEMOS, SHEET_FRAMES = 6, 6
"""Number of demos on the contact sheet, and of images per demo."""


@np.errstate(all="ignore")  # untrusted files may hold values that overflow
def check_file(path: str | Path, progress: bool = False) -> FileReport:
    """Read a file or folder of demos completely, and report its contents and problems.

    Args:
        path: demos of any known format.
        progress: show a progress bar.

    Raises:
        DemoFormatError: it can't be opened as demos at all.
    """
    path = local_path(path)
    comparison = SetComparison()
    with open_demos(path) as reader:
        files = path.rglob("*") if path.is_dir() else [path]
        disk_bytes = sum(file.stat().st_size for file in files if file.is_file())
        report = FileReport(path, reader.format_name, disk_bytes, list(reader.names))
        report.rate_hz = reader.action_spec.rate_hz if reader.action_spec else reader.action_facts.get("rate_hz")
        report.filter_keys = {key: list(names) for key, names in reader.filter_keys.items()}
        report.environment = (reader.attributes.get("env_args") or {}).get("env_name") or None
        report.findings = [Finding("note", text) for text in reader.notes]
        seen: dict[bytes, str] = {}
        for name in track(report.names, description="reading", transient=True, disable=not progress):
            _add_demo(report, reader, name, seen, comparison)
        if len({rows.shape[1] for rows in report.actions.values()}) == 1:
            report.action_spec = action_spec_of(reader, report.actions.values())
    report.findings += set_findings(report.keys, len(report.lengths), report.instructions, report.filter_keys)
    if report.action_spec is not None:
        report.findings += action_findings(report.actions, report.action_spec, report.instruction_of, report.openings)
        report.findings += comparison.findings(report.actions, report.action_spec, report.instruction_of)
    return report


def compare_files(reports: Sequence[FileReport]) -> None:
    """Add a note to each file that can't be used for training together with the first."""
    for report in reports[1:]:
        name, first, other = reports[0].path.name, reports[0].action_spec, report.action_spec
        if first is None or other is None:
            continue
        if first.width != other.width:
            text = f"actions have {other.width} columns, those of {name} {first.width}; train on them separately"
            report.findings.append(Finding("note", text))
        if first.rate_hz and other.rate_hz and first.rate_hz != other.rate_hz:
            text = f"unequal clocks: {other.rate_hz:g} Hz here, {first.rate_hz:g} Hz in {name}"
            report.findings.append(Finding("note", text))


def salvage(report: FileReport, target: str | Path) -> list[str]:
    """Write the demos without problems to a native file; returns the conversion's notes.

    Raises:
        DemoFormatError: every demo has a problem.
        FileExistsError: `target` exists.
    """
    if not report.good:
        raise DemoFormatError(f"{report.path.name}: none of its {len(report.names)} demos is without a problem")
    return convert(report.path, target, names=report.good)


def _add_demo(
    report: FileReport, reader: DemoReader, name: str, seen: dict[bytes, str], comparison: SetComparison
) -> None:
    """Read a demo and add it to the report; `seen` holds the fingerprints of the demos before it."""
    try:
        demo = reader.read(name)
        clock = reader.clock(name)
    except DemoFormatError as error:
        text = str(error).removeprefix(report.path.name).removeprefix(f", {name}").lstrip(":, ")
        report.findings.append(Finding("problem", text, name))
        return
    report.lengths[name] = len(demo)
    report.instruction_of[name] = demo.instruction
    report.actions[name] = demo.actions
    comparison.add(demo)
    if (openings := gripper_openings(demo.obs)) is not None:
        report.openings[name] = openings
    problems = list(demo_problems(demo, clock, report.rate_hz))
    tokens = {} if demo.tokens is None else {"tokens": demo.tokens}
    for key, values in {"actions": demo.actions, **tokens, **demo.obs}.items():
        problems += _add_key(report.keys, key, values)
    first_equal = seen.setdefault(_fingerprint(demo.actions, *(demo.obs[key] for key in sorted(demo.obs))), name)
    if first_equal != name:
        problems.append(f"the same actions and observations as {first_equal}")
    notes = [*demo_notes(demo), *(f"obs/{key} holds the action before" for key in holds_last_action(demo))]
    report.findings += [Finding("problem", text, name) for text in problems]
    report.findings += [Finding("note", text, name) for text in notes]
    for key, values in demo.obs.items():
        if is_image(values) and len(report.sheet.setdefault(key, [])) < SHEET_DEMOS:
            report.sheet[key].append(values[np.linspace(0, len(values) - 1, SHEET_FRAMES).round().astype(int)])


def _add_key(keys: dict[str, KeySummary], key: str, values: np.ndarray) -> list[str]:
    """Add the values to the key's summary; returns a list with a problem if they don't fit it, else an empty one."""
    if values.dtype.kind not in "biuf" or not values.size:
        return [f"{key} has type {values.dtype} and shape {values.shape}; expected numbers"]
    known = keys.setdefault(key, KeySummary.of(values))
    if known.shape != values.shape[1:]:
        return [f"{key} has shape {values.shape[1:]} a step; in the demos before it is {known.shape}"]
    known.add(values)
    return []


def _fingerprint(*arrays: np.ndarray) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    for values in arrays:
        digest.update(np.ascontiguousarray(values).reshape(-1).view(np.uint8).data)
    return digest.digest()
