"""The main job, whole: collect demos of `lift` with images and instructions, train from pixels, measure in closed loop.

`make demo` runs it. The stages are the package's own verbs; this script only times them and writes `summary.json`. A demo
that was interrupted continues where it stood (`wall_s` then counts the last try of that stage).
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from robopolicy.cli import main as robopolicy

CONFIG = "configs/lift_pixels.yaml"
FIRST_EVALUATION_SEED = 100_000


def main(arguments: Sequence[str] | None = None) -> int:
    """Run all stages; gives the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run-dir", type=Path, default=Path("runs/demo"), help="folder for demos, policy and results")
    parser.add_argument("--demos", type=int, default=400, help="demonstrations to collect")
    parser.add_argument("--episodes", type=int, default=100, help="unseen-seed episodes to evaluate")
    parser.add_argument("--max-steps", type=int, default=None, help="optimizer steps; default: the config's")
    parser.add_argument(
        "--device", default="cpu", help="of the worlds, and of the policy in the evaluation: cpu or cuda"
    )
    options = parser.parse_args(arguments)
    run = options.run_dir
    run.mkdir(parents=True, exist_ok=True)
    demos, policy, result, report = run / "lift.hdf5", run / "policy", run / "evaluation.json", run / "report"
    steps = [] if options.max_steps is None else ["--max-steps", str(options.max_steps)]
    device = [] if options.device == "cpu" else ["--device", options.device]
    stages = {
        "collect": [
            "--task",
            "lift",
            "--episodes",
            str(options.demos),
            "--cameras",
            "front",
            "wrist",
            "--out",
            str(demos),
            *device,
        ],
        "train": ["--config", CONFIG, "--data.files", str(demos), "--run-dir", str(policy), *steps],
        "eval": [
            str(policy),
            *("--task", "lift", "--episodes", str(options.episodes), "--seed", str(FIRST_EVALUATION_SEED)),
            *("--json", str(result), "--report", str(report), "--videos", "4"),
            *device,
        ],
    }
    made = {"collect": demos, "train": policy / "resume.ckpt"}
    times = run / "wall_s.json"
    wall_s: dict[str, float] = json.loads(times.read_text()) if times.exists() else {}
    for verb, words in stages.items():
        if verb in wall_s:
            print(f"$ robopolicy {verb}: done before; rm -r {run} to start again", flush=True)
            continue
        if verb in made and made[verb].exists():  # interrupted there
            words = [*words, "--resume"]
        print(f"$ robopolicy {verb} {' '.join(words)}", flush=True)
        began = time.perf_counter()
        code = robopolicy([verb, *words])
        if code != 0:
            return code
        wall_s[verb] = round(time.perf_counter() - began, 1)
        times.write_text(json.dumps(wall_s))
    found = json.loads(result.read_text())
    summary = {key: found[key] for key in ("success_rate", "successes", "episodes", "interval")}
    summary |= {"wall_s": wall_s, "per_instruction": found["per_instruction"]}
    (run / "summary.json").write_text(json.dumps(summary, indent=2))
    low, high = summary["interval"]
    print(
        f"success   {summary['successes']} / {summary['episodes']} (95 % interval {100 * low:.0f}-{100 * high:.0f} %)"
    )
    print(f"wall      {', '.join(f'{verb} {seconds:.0f} s' for verb, seconds in wall_s.items())}")
    print(f"report    {report / 'report.html'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
