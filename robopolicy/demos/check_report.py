"""The report of the verb `check` on one file, before it is printed or drawn."""

import shlex
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from robopolicy.demos.findings import Finding, KeySummary
from robopolicy.types import ActionSpec


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
    """None where no demo is readable, or their actions differ in width."""
    actions: dict[str, np.ndarray] = field(default_factory=dict)
    """(T, width) of each readable demo."""
    openings: dict[str, np.ndarray] = field(default_factory=dict)
    """`gripper_openings` of each readable demo that holds any."""
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
        """For each option of `robopolicy edit`, the command that removes what it can of the findings."""
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
