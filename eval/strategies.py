"""Success and smoothness of the ways to execute a policy's chunks, on the same unseen seeds.

    python eval/strategies.py RUN --task lift [--episodes 100] [--json FILE]

Jerk is the root mean square of the third difference of the tool's position over all episodes [m/s3]; speed that of the
first [m/s]. ACT's temporal ensemble is the peer: it is known to smooth and to cost success.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench_table import show

from robopolicy import load_policy
from robopolicy.control.execution import ExecutionOptions
from robopolicy.control.execution.ensemble import EnsembleOptions
from robopolicy.control.execution.freeze import FreezeOptions
from robopolicy.control.execution.receding import RecedingOptions
from robopolicy.rollout.episodes import Episode
from robopolicy.sim.env import RobotVectorEnv
from robopolicy.sim.evaluation import evaluate

WAYS = {
    "receding, every step": RecedingOptions(1),
    "receding, every 2nd": RecedingOptions(2),
    "receding, every 4th": RecedingOptions(4),
    "ensemble, m = 0.01 (ACT)": EnsembleOptions(1, ensemble_decay=0.01),
    "ensemble, m = 0.5": EnsembleOptions(1, ensemble_decay=0.5),
    "freeze, every step": FreezeOptions(1),
    "freeze, every 2nd": FreezeOptions(2),
}


def main() -> None:
    """Evaluate each way and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("policy", help="run folder")
    parser.add_argument("--task", default="lift", help="task of the simulator")
    parser.add_argument("--episodes", type=int, default=100, help="episodes of each way")
    parser.add_argument("--seed", type=int, default=20000, help="seed of the first episode")
    parser.add_argument("--json", type=Path, help="write the result here")
    options = parser.parse_args()
    policy = load_policy(options.policy)
    seeds = range(options.seed, options.seed + options.episodes)
    rows = []
    for name, execution in WAYS.items():
        if execution.replan_every <= policy.chunk:
            rows.append(row(name, policy, options.task, seeds, execution))
            print(rows[-1], flush=True)
    show(rows, [], options.json)


def row(name: str, policy: Any, task: str, seeds: range, execution: ExecutionOptions) -> dict[str, Any]:
    """One way on all seeds."""
    sizes = [policy.obs[camera].shape[0] for camera in policy.cameras]
    env = RobotVectorEnv(task, min(64, len(seeds)), cameras=policy.cameras, image_size=sizes[0] if sizes else 64)
    episodes: list[Episode] = []
    with torch.inference_mode():
        result = evaluate(policy, env, seeds, execution, record=True, sink=episodes)
    paths = [demo.obs["ee_pose"][:, :3] for episode in episodes for demo in episode.demos]
    control_dt = env.control_dt
    env.close()
    low, high = result.interval
    return {
        "execution": name,
        "success_%": 100 * result.success_rate,
        "interval_%": f"{100 * low:.0f}-{100 * high:.0f}",
        "steps": result.mean_steps,
        "speed_m_s": root_mean_square(paths, 1, control_dt),
        "jerk_m_s3": root_mean_square(paths, 3, control_dt),
    }


def root_mean_square(paths: list[np.ndarray], order: int, control_dt: float) -> float:
    """Of the `order`-th derivative of positions (T, 3), over all steps of all paths."""
    rates = np.concatenate([np.diff(path, order, axis=0) for path in paths if len(path) > order]) / control_dt**order
    return float(np.sqrt((rates.astype(np.float64) ** 2).sum(-1).mean()))


if __name__ == "__main__":
    main()
