"""Fine-tuning against training from scratch: a policy of lift and place, trained further with 10 demonstrations of stack.

    python eval/finetune.py [--runs runs/finetune] [--seeds 0 1 2] [--steps 500] [--episodes 100] [--lr LR] [--json FILE]

The policies see the hand, the named cube and where it should be brought, which mean the same in all three tasks, and no
instruction. Per training seed three runs of `configs/robomimic_lowdim.yaml`: `pretrained` on 200 demonstrations (100 of lift,
100 of place), `finetuned` from it with the 10 of stack (statistics kept, a third of the config's learning rate), and
`scratch` with the same 10 and as many steps from random weights. All three are evaluated on the same episodes of stack, with
seeds that no demonstration used. A run or an evaluation that is there already is not repeated.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from bench_table import bar, show
from tasks import run

from robopolicy.rollout.training_seeds import compare_runs, success_by_seed, summarize_runs

DEMOS = {"lift": (100, 0), "place": (100, 0), "stack": (10, 2000)}
"""Task -> number of demonstrations, and the seed of the first."""
FIRST_SEED = 1_200_000
KEYS = "[gripper,ee_pose,target_offset,goal_offset]"
CONFIG = ("configs/robomimic_lowdim.yaml", "--data.obs_keys", KEYS, "--text.kind", "none")
PRETRAINING_STEPS = 4000


def main() -> None:
    """Train, evaluate, and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/finetune"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=500, help="of the runs on stack")
    parser.add_argument("--episodes", type=int, default=100)
    parser.add_argument("--lr", type=float, default=3e-4, help="learning rate of the fine-tuning; the config's is 1e-3")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    options.runs.mkdir(parents=True, exist_ok=True)
    files = {task: options.runs / f"{task}.hdf5" for task in DEMOS}
    for task, (count, seed) in DEMOS.items():
        if not files[task].exists():
            run("collect", "--task", task, "--episodes", str(count), "--seed", str(seed), "--out", str(files[task]))
    found: dict[str, list[dict[str, Any]]] = {"finetuned": [], "scratch": [], "pretrained": []}
    for seed in options.seeds:
        begun = options.runs / f"pretrained-{seed}"
        train(begun, [files["lift"], files["place"]], seed, PRETRAINING_STEPS)
        found["pretrained"].append(evaluation(begun, options.episodes))
        from_start = ("--start", str(begun), "--optimizer.lr", str(options.lr))
        for kind, more in (("finetuned", from_start), ("scratch", ())):
            folder = options.runs / f"{kind}-{seed}"
            train(folder, [files["stack"]], seed, options.steps, *more)
            found[kind].append(evaluation(folder, options.episodes))
    outcomes = {kind: [success_by_seed(each) for each in results] for kind, results in found.items()}
    rows: list[dict[str, Any]] = []
    for kind, each in outcomes.items():
        summary = summarize_runs(each)
        rows.append({"case": kind, "mean": summary.mean, "interval": summary.interval, "rates": summary.rates})
    bars = []
    for other in ("scratch", "pretrained"):
        difference, name = compare_runs(outcomes["finetuned"], outcomes[other]), f"finetuned - {other}"
        rows.append({"case": name, "mean": difference.mean, "interval": difference.interval, "p": difference.p_value})
        bars.append(bar(f"{name}, low end of the 95 % interval", difference.interval[0], 0.0))
    show(rows, bars, options.json)


def train(folder: Path, files: list[Path], seed: int, steps: int, *more: str) -> None:
    """Train into the folder, unless it holds a policy."""
    if not (folder / "policy.safetensors").exists():
        words = [
            "--seed",
            str(seed),
            "--training.passes",
            "null",
            "--training.min_steps",
            "null",
            "--training.max_steps",
            str(steps),
            *more,
        ]
        run("train", "--config", *CONFIG, "--data.files", *map(str, files), "--run-dir", str(folder), *words)


def evaluation(folder: Path, episodes: int) -> dict[str, Any]:
    """The result on stack's unseen seeds."""
    result = folder / "stack.json"
    if not result.exists():
        words = ["--episodes", str(episodes), "--seed", str(FIRST_SEED), "--json", str(result)]
        run("eval", str(folder), "--task", "stack", *words)
    return json.loads(result.read_text())


if __name__ == "__main__":
    main()
