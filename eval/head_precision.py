"""Closed-loop success of one policy streamed in float32, bfloat16 and int8, on the same seeds.

python eval/head_precision.py RUN [--task lift] [--episodes 200] [--seed 30000] [--json FILE]
"""

import argparse
import json
import shlex
import sys
from pathlib import Path

import torch

import robopolicy
from robopolicy.rollout.statistics import paired_test
from robopolicy.sim.env import RobotVectorEnv
from robopolicy.sim.evaluation import evaluate


def main() -> None:
    """Evaluate each precision and compare it with float32, scene by scene."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="run folder of a policy")
    parser.add_argument("--task", default="lift")
    parser.add_argument("--episodes", type=int, default=200)
    parser.add_argument("--seed", type=int, default=30000, help="seed of the first episode")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    options = parser.parse_args()
    torch.set_num_threads(1)
    policy = robopolicy.load_policy(options.run)
    seeds = range(options.seed, options.seed + options.episodes)
    env = RobotVectorEnv(options.task, 64, cameras=policy.cameras)
    rows, outcomes = [], {}
    for precision in ("float32", "bf16", "int8"):
        policy.freeze(precision)
        result = evaluate(policy, env, seeds, policy.config.execution)
        outcomes[precision] = {outcome["seed"]: outcome["success"] for outcome in result.outcomes}
        test = paired_test(outcomes["float32"], outcomes[precision])
        low, high = result.interval
        print(
            f"{precision:<8} {result.successes:>4} / {result.episodes} = {result.success_rate:6.1%}  "
            f"(95 % interval {low:.1%} - {high:.1%})  paired with float32: {test}",
            flush=True,
        )
        rows.append(
            {"precision": precision, "successes": result.successes, "episodes": result.episodes}
            | {"interval": result.interval, "paired_with_float32": test}
        )
    env.close()
    if options.json:
        command = shlex.join(["python", f"eval/{Path(sys.argv[0]).name}", *sys.argv[1:]])
        options.json.write_text(json.dumps({"command": command, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
