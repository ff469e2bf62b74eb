"""The main job, whole: collect demos of `lift` with images and instructions, train from pixels, measure in closed loop.

`make demo` runs it. The stages are the package's own verbs; this script only times them and writes `summary.json`. A demo
that is interrupted continues where it stopped when it is run again (`wall_s` then counts the last run of that stage).
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
RESULT = "evaluation.json"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run all stages; returns the exit code."""
    options = _parser().parse_args(arguments)
    options.run_dir.mkdir(parents=True, exist_ok=True)
    times = options.run_dir / "wall_s.json"
    wall_s: dict[str, float] = json.loads(times.read_text()) if times.exists() else {}
    for verb, (words, made) in _stages(options).items():
        if verb in wall_s:
            print(f"$ robopolicy {verb}: done before; rm -r {options.run_dir} to start again", flush=True)
            continue
        if made is not None and made.exists():  # interrupted there
            words = [*words, "--resume"]
        print(f"$ robopolicy {verb} {' '.join(words)}", flush=True)
        began = time.perf_counter()
        if code := robopolicy([verb, *words]):
            return code
        wall_s[verb] = round(time.perf_counter() - began, 1)
        times.write_text(json.dumps(wall_s))
    _summarize(options.run_dir, wall_s)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run-dir", type=Path, default=Path("runs/demo"), help="folder for demos, policy and results")
    parser.add_argument("--demos", type=int, default=400, help="demonstrations to collect")
    parser.add_argument("--episodes", type=int, default=100, help="unseen-seed episodes to evaluate")
    parser.add_argument("--max-steps", type=int, default=None, help="optimizer steps; default: the config's")
    parser.add_argument(
        "--device", default="cpu", help="of the worlds, and of the policy in the evaluation: cpu or cuda"
    )
    return parser


def _stages(options: argparse.Namespace) -> dict[str, tuple[list[str], Path | None]]:
    """Verb -> its arguments, and the file that it leaves when it is interrupted."""
    run = options.run_dir
    demos, policy = run / "lift.hdf5", run / "policy"
    steps = [] if options.max_steps is None else ["--max-steps", str(options.max_steps)]
    device = [] if options.device == "cpu" else ["--device", options.device]
    collect = f"--task lift --episodes {options.demos} --cameras front wrist --out".split()
    evaluate = f"--task lift --episodes {options.episodes} --seed {FIRST_EVALUATION_SEED} --videos 4 --json".split()
    return {
        "collect": ([*collect, str(demos), *device], demos),
        "train": (
            ["--config", CONFIG, "--data.files", str(demos), "--run-dir", str(policy), *steps],
            policy / "resume.ckpt",
        ),
        "eval": ([str(policy), *evaluate, str(run / RESULT), "--report", str(run / "report"), *device], None),
    }


def _summarize(run: Path, wall_s: dict[str, float]) -> None:
    """Write `summary.json`, and print it."""
    found = json.loads((run / RESULT).read_text())
    summary = {key: found[key] for key in ("success_rate", "successes", "episodes", "interval")}
    summary |= {"wall_s": wall_s, "per_instruction": found["per_instruction"]}
    (run / "summary.json").write_text(json.dumps(summary, indent=2))
    low, high = (100 * bound for bound in summary["interval"])
    print(f"success   {summary['successes']} / {summary['episodes']} (95 % interval {low:.0f}-{high:.0f} %)")
    print(f"wall      {', '.join(f'{verb} {seconds:.0f} s' for verb, seconds in wall_s.items())}")
    print(f"report    {run / 'report' / 'report.html'}")


if __name__ == "__main__":
    sys.exit(main())
