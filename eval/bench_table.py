"""What every benchmark prints and writes: rows, bars, and the machine."""

import json
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any


def bar(name: str, value: float, goal: float, better: str = "higher") -> dict[str, Any]:
    """One goal and whether it is met."""
    passed = value >= goal if better == "higher" else value <= goal
    return {"name": name, "value": float(value), "goal": float(goal), "better": better, "passed": bool(passed)}


def machine() -> dict[str, Any]:
    """What this ran on."""
    versions = {}
    for package in ("torch", "onnxruntime", "websockets", "numpy"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "gpu": _gpu(),
        "load": os.getloadavg()[0],
        "python": platform.python_version(),
        **versions,
    }


def show(rows: Sequence[Mapping[str, Any]], bars: Sequence[Mapping[str, Any]], out: Path | None) -> None:
    """Print the table and the bars, and write them as JSON where asked."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    lines = [columns, *([_cell(row.get(column, "")) for column in columns] for row in rows)]
    widths = [max(len(line[place]) for line in lines) for place in range(len(columns))]
    for line in lines:
        print("  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip())
    finish(rows, bars, out)


def finish(rows: Sequence[Mapping[str, Any]], bars: Sequence[Mapping[str, Any]], out: Path | None) -> None:
    """As `show`, for rows that are printed already."""
    for goal in bars:
        sign = ">=" if goal["better"] == "higher" else "<="
        verdict = "passed" if goal["passed"] else "MISSED"
        print(f"{verdict}  {goal['name']}: {goal['value']:.3g} ({sign} {goal['goal']:.3g})")
    if out is not None:
        command = " ".join(["python", *sys.argv])
        result = {
            "date": date.today().isoformat(),
            "machine": machine(),
            "command": command,
            "rows": list(rows),
            "bars": list(bars),
        }
        out.write_text(json.dumps(result, indent=1) + "\n")
        print(out)


def _cell(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _processor() -> str:
    info = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in info if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _gpu() -> str | None:
    try:
        import torch
    except ImportError:
        return None
    return torch.cuda.get_device_name() if torch.cuda.is_available() else None
