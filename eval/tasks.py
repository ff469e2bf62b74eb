"""What `configs/<task>_lowdim.yaml` reaches, untouched: collect, train, measure in closed loop on unseen seeds.

    python eval/tasks.py [CASE ...] [--runs runs/tasks] [--episodes 200] [--json FILE]

Each case is three commands of the package, printed as they run: 200 demonstrations of the scripted expert, the task's own
config, and episodes on seeds that no demonstration used. A case that was measured before (its result lies in the folder)
is not run again. `recall, no memory` must stay at chance, one lid of three; `lift, no instruction` must not pass 45 %.
"""

import argparse
import json
import os
import shlex
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from bench_table import bar, show

from robopolicy.cli import main as robopolicy

DEMOS = 200
FIRST_SEED = 1_200_000
"""Settings were chosen on seeds from 10,000, 300,000, 500,000 and 900,000 on; figures are measured on others."""


@dataclass(frozen=True)
class Case:
    """One policy to train and measure."""

    task: str
    goal: float | None = None
    """Least success rate asked for; None where the figure is only reported."""
    ceiling: float | None = None
    """Largest success rate that an honest task leaves to this policy."""
    chance: float | None = None
    """Success rate that the 95 % interval has to contain."""
    changes: tuple[str, ...] = ()
    """Flags of `train` on top of the config."""
    episodes: int | None = None
    """Episodes, where they differ from `--episodes`."""


NO_INSTRUCTION = ("--text.kind", "none", "--encoder.groups", "{}", "--losses.linear_action", "0")
"""The instruction selects from the groups of a config, so that they go with it."""
CASES = {
    "reach": Case("reach", goal=0.97),
    "lift": Case("lift", goal=0.97),
    "place": Case("place", goal=0.95),
    "stack": Case("stack", goal=0.90),
    "drawer": Case("drawer"),
    "recall": Case("recall", goal=0.90),
    "recall, no memory": Case("recall", chance=1 / 3, changes=("--memory.kind", "none"), episodes=1000),
    "recall_long": Case("recall_long", goal=0.90),
    "lift, no instruction": Case("lift", ceiling=0.45, changes=NO_INSTRUCTION),
    "chain": Case("chain", episodes=100),
}


def main() -> int:
    """Run the cases that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"of: {'; '.join(CASES)}; default: all")
    parser.add_argument("--runs", type=Path, default=Path("runs/tasks"), help="folder for demos, policies and results")
    parser.add_argument("--episodes", type=int, default=200, help="unseen-seed episodes of each case")
    parser.add_argument("--json", type=Path, help="write the table here")
    options = parser.parse_args()
    unknown = [name for name in options.cases if name not in CASES]
    if unknown:
        parser.error(f"no case {unknown[0]!r}; there are: {'; '.join(CASES)}")
    options.runs.mkdir(parents=True, exist_ok=True)
    rows, bars = [], []
    for name in options.cases or CASES:
        row = measure(name, CASES[name], options.runs, options.episodes)
        rows.append(row)
        bars += bars_of(name, CASES[name], row)
        print(row, flush=True)
    show(rows, bars, options.json)
    return 0


def measure(name: str, case: Case, runs: Path, episodes: int) -> dict[str, Any]:
    """Train and measure one case in `runs`, or read what was measured there before."""
    folder = runs / name.replace(", ", "-").replace(" ", "-")
    demos, result, timing = runs / f"{case.task}.hdf5", folder / "evaluation.json", folder / "train_s"
    if not result.exists():
        if not demos.exists():
            run("collect", "--task", case.task, "--episodes", str(DEMOS), "--out", str(demos))
        config = f"configs/{case.task}_lowdim.yaml"
        if not timing.exists():
            began = time.perf_counter()
            run("train", "--config", config, "--data.files", str(demos), "--run-dir", str(folder), *case.changes)
            timing.write_text(f"{time.perf_counter() - began:.0f}")
        count = str(case.episodes or episodes)
        place = ("--task", case.task, "--episodes", count, "--seed", str(FIRST_SEED), "--json", str(result))
        run("eval", str(folder), *place)
    found = json.loads(result.read_text())
    return {
        "case": name,
        "successes": found["successes"],
        "episodes": found["episodes"],
        "success_rate": found["success_rate"],
        "low": found["interval"][0],
        "high": found["interval"][1],
        **found["figures"],
        "train s": float(timing.read_text()),
        "threads": torch.get_num_threads(),
        "load": os.getloadavg()[0],
    }


def run(verb: str, *words: str) -> None:
    """One command of the package; a failure ends everything."""
    print("$ robopolicy", verb, shlex.join(words), flush=True)
    code = robopolicy([verb, *words])
    if code:
        sys.exit(code)


def bars_of(name: str, case: Case, row: dict[str, Any]) -> list[dict[str, Any]]:
    """What the case is held to."""
    bars = []
    if case.goal is not None:
        bars.append(bar(f"{name}: success rate", row["success_rate"], case.goal))
    if case.ceiling is not None:
        bars.append(bar(f"{name}: success rate", row["success_rate"], case.ceiling, better="lower"))
    if case.chance is not None:
        bars.append(bar(f"{name}: low end of the interval", row["low"], case.chance, better="lower"))
        bars.append(bar(f"{name}: high end of the interval", row["high"], case.chance))
    return bars


if __name__ == "__main__":
    sys.exit(main())
