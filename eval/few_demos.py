"""What a config reaches with few demos, untouched or with one change at a time; of other people's tasks, or of ours.

    python eval/few_demos.py --data push.hdf5 --demos 10 --env metaworld:push-v3 --env-map eval/maps/metaworld.yaml \
        --env-python simulators/bin/python [--variants "" memory.kind=none training.passes=400,action_head.chunk=1]
    python eval/few_demos.py --data lift.hdf5 --task lift --config configs/lift_lowdim.yaml

A variant is a list of `option=value`; the empty one is the config as it is. Each is trained once per `--train-seeds` on one
core and evaluated on the same seeds, by the package's own verbs, which are printed as they run. The interval counts training
seeds and episodes.
"""

import argparse
import json
import os
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any


def run(*arguments: str | Path) -> None:
    """One verb of the package, in a process of its own and on one core.

    Raises:
        CalledProcessError: it fails.
    """
    command = [sys.executable, "-m", "robopolicy", *map(str, arguments)]
    print("$", shlex.join(["robopolicy", *command[3:]]), flush=True)
    one_core = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run(command, check=True, env=one_core, stdout=subprocess.DEVNULL)


def measure(options: argparse.Namespace, number: int, variant: str) -> dict[str, Any]:
    """Train one variant with every seed and evaluate the runs together."""
    pairs = re.split(r",(?![^\[]*\])", variant)  # not the commas of a list
    changes = [part for pair in filter(None, pairs) for part in f"--{pair}".split("=", 1)]
    runs = [options.runs / f"{number}-{seed}" for seed in options.train_seeds]
    train_s = []
    for seed, folder in zip(options.train_seeds, runs, strict=True):
        started = time.perf_counter()
        config = ("--config", options.config, "--data.files", options.data, "--data.train_demos", str(options.demos))
        run("train", *config, "--training.seed", str(seed), "--run-dir", folder, *changes)
        train_s.append(round(time.perf_counter() - started, 1))
    environment = []
    for name in ("task", "env", "env_map", "env_python", "env_kwargs"):
        if value := getattr(options, name):
            environment += [f"--{name.replace('_', '-')}", value]
    result = options.runs / f"{number}.json"
    if options.env:
        environment += ["--env-copies", "1"]
    episodes = ("--episodes", str(options.episodes), "--seed", str(options.seed))
    run("eval", *runs, *environment, *episodes, "--json", result)
    measured = json.loads(result.read_text())
    outcomes = [
        "".join("01"[episode["success"]] for episode in each["outcomes"]) for each in measured.get("runs", [measured])
    ]
    mean = measured.get("mean", measured.get("success_rate"))
    return {
        "variant": variant,
        "mean": mean,
        "interval": measured["interval"],
        "train_s": train_s,
        "outcomes": outcomes,
    }


def main() -> None:
    """Measure each variant and print a line for it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="demo file")
    parser.add_argument("--demos", type=int, default=10, help="demos to train on, the first of the file")
    parser.add_argument("--task", help="task of our simulator; or --env")
    parser.add_argument("--env", help="as for `robopolicy eval`, like the next three")
    parser.add_argument("--env-map")
    parser.add_argument("--env-python")
    parser.add_argument("--env-kwargs")
    parser.add_argument("--config", type=Path, default=Path("configs/robomimic_lowdim.yaml"), help="what is measured")
    parser.add_argument("--variants", nargs="+", default=[""], help="option=value,... of each variant")
    parser.add_argument("--train-seeds", type=int, nargs="+", default=[0, 1, 2], help="one training each")
    parser.add_argument("--episodes", type=int, default=50, help="episodes of each training")
    parser.add_argument("--seed", type=int, default=10_000, help="seed of the first episode")
    parser.add_argument("--runs", type=Path, default=Path("runs/few_demos"), help="folder for the run folders")
    parser.add_argument("--json", type=Path, help="write the results here")
    options = parser.parse_args()
    rows = []
    for number, variant in enumerate(options.variants):
        rows.append(measure(options, number, variant))
        rates = " ".join(f"{each.count('1')} / {len(each)}" for each in rows[-1]["outcomes"])
        print(f"{options.task or options.env} {options.demos} demos  {variant or 'untouched'}  {rates}", flush=True)
        if options.json is not None:
            options.json.write_text(json.dumps({"demos": options.demos, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
