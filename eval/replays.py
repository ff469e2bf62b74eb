"""Collected demos executed again at speed 1 by `robopolicy run --replay`: what the limits changed, and what still succeeds.

    python eval/replays.py [TASK ...] [--demos 50] [--runs runs/replays] [--json FILE]

Each demo is one call of the verb on the simulated robot with a simulated clock, so that it passes through the control loop,
the smoother and the robot's guard. An intervention is a joint target that the limits changed by more than 1e-9 rad.
"""

import argparse
import contextlib
import io
import json
import sys
from pathlib import Path
from typing import Any

from bench_table import bar, show

from robopolicy.cli import main as robopolicy

TASKS = ("reach", "lift", "place", "stack", "drawer", "recall")
FIRST_SEED = 1_450_000


def main() -> int:
    """Print and write one row for each task."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="*", default=TASKS, metavar="TASK", help=f"default: {' '.join(TASKS)}")
    parser.add_argument("--demos", type=int, default=50)
    parser.add_argument("--runs", type=Path, default=Path("runs/replays"), help="folder for the demos")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    options.runs.mkdir(parents=True, exist_ok=True)
    rows, bars = [], []
    for task in options.tasks:
        row = replay(task, options.demos, options.runs)
        print(row, flush=True)
        rows.append(row)
        bars.append(bar(f"{task}: limited steps", row["limited_steps"], 0, better="lower"))
        bars.append(bar(f"{task}: success", row["success"], round(0.96 * options.demos)))
    show(rows, bars, options.json)
    return 0


def replay(task: str, count: int, folder: Path) -> dict[str, Any]:
    """Collect `count` demos of a task and execute each of them again."""
    demos, figures = folder / f"{task}.hdf5", folder / "figures.json"
    if not demos.exists():
        collected = ["--task", task, "--episodes", str(count), "--seed", str(FIRST_SEED), "--out", str(demos)]
        if robopolicy(["collect", *collected]):
            sys.exit(1)
    row = {"task": task, "demos": count, "success": 0, "followed": 0, "limited_steps": 0, "steps": 0}
    for number in range(count):
        words = ["--replay", str(demos), "--demo", f"demo_{number}", "--robot", "sim", "--realtime", "false"]
        figures.unlink(missing_ok=True)
        with contextlib.redirect_stdout(io.StringIO()):
            robopolicy(["run", *words, "--json", str(figures)])
        found = json.loads(figures.read_text())
        row["success"] += found["success"]
        row["followed"] += found["replay"]["followed"]
        row["limited_steps"] += found["limited_steps"]
        row["steps"] += found["steps"]
    return row


if __name__ == "__main__":
    sys.exit(main())
