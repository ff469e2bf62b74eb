"""Success and smoothness of the ways to execute a policy's chunks, on the same unseen seeds.

    python eval/strategies.py RUN --task lift [--episodes 100] [--json FILE]
    python eval/strategies.py RUN --task pillar --latency 0 1 2 4 6

Jerk is the root mean square of the third difference of the tool's position over all episodes [m/s3]; speed that of the
first [m/s]. At each new chunk, the jump is the root mean square of the change from the last executed action to the next, and
the change that of what the chunk changes in the next action [action units, the gripper left out]. A plan moves from action to
action by itself: a jump without a change is the plan's own. ACT's temporal ensemble is the peer: it is known to smooth and to
cost success. With --latency, the ways to bridge inference that takes this many control steps are compared instead; a policy
that draws its chunks does so in all of them, and with --best-of N takes the best of N. Left is the share of the successes that
pass a pillar on its left.
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
from robopolicy.control.execution.rtc import RealTimeOptions
from robopolicy.control.executor import ChunkExecutor
from robopolicy.rollout.actor import PolicyActor
from robopolicy.rollout.episodes import Episode, Timing, run_episodes
from robopolicy.rollout.statistics import summarize
from robopolicy.sim.env import RobotVectorEnv

CONTROL_DT = 0.05
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
    parser.add_argument("--latency", type=int, nargs="*", help="control steps of simulated inference")
    parser.add_argument("--replan-every", type=int, default=4, help="of the ways compared with --latency")
    parser.add_argument(
        "--best-of", type=int, default=1, help="chunks drawn at a time in the ways compared with --latency"
    )
    parser.add_argument("--json", type=Path, help="write the result here")
    options = parser.parse_args()
    policy = load_policy(options.policy)
    seeds = range(options.seed, options.seed + options.episodes)
    rows = []
    common = {"sample": policy.spec.samples, "replan_every": options.replan_every, "best_of": options.best_of}
    ways = WAYS if options.latency is None else bridged(policy, options.latency, common)
    for name, execution in ways.items():
        if execution.replan_every <= policy.chunk:
            rows.append(row(name, policy, options.task, seeds, execution))
            print(rows[-1], flush=True)
    show(rows, [], options.json)


def bridged(policy: Any, latencies: list[int], options: dict[str, Any]) -> dict[str, ExecutionOptions]:
    """The ways to bridge each latency, all with these options."""
    ways: dict[str, ExecutionOptions] = {}
    for steps in latencies:
        common = {**options, "simulated_latency_steps": steps}
        waits = {**common, "latency_s": steps * CONTROL_DT}
        ways[f"receding, latency {steps}"] = RecedingOptions(**common)
        ways[f"freeze, latency {steps}"] = FreezeOptions(**waits)
        if policy.spec.prefix >= max(steps, 1):
            ways[f"rtc, latency {steps}"] = RealTimeOptions(**waits)
    return ways


def row(name: str, policy: Any, task: str, seeds: range, execution: ExecutionOptions) -> dict[str, Any]:
    """One way on all seeds."""
    sizes = [policy.obs[camera].shape[0] for camera in policy.cameras]
    env = RobotVectorEnv(task, min(64, len(seeds)), cameras=policy.cameras, image_size=sizes[0] if sizes else 64)
    actor = PolicyActor(policy, env.num_envs, env.control_dt, execution)
    jumps = measured_jumps(actor.runner.execution.executor)
    with torch.inference_mode():
        episodes = list(run_episodes(env, actor, seeds, record=True))
    result = summarize(task, episodes, env.control_dt, Timing(), 0.0, {})
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
        "jump": float(torch.cat(jumps)[:, 0].square().mean().sqrt()) if jumps else 0.0,
        "change": float(torch.cat(jumps)[:, 1].square().mean().sqrt()) if jumps else 0.0,
        "left_%": left_share(episodes),
    }


def measured_jumps(executor: ChunkExecutor) -> list[torch.Tensor]:
    """A list that grows by jumps and changes (episodes, 2, A) of the arm whenever the executor takes chunks into plans."""
    jumps: list[torch.Tensor] = []
    merge = executor._merge
    arm = list(executor._spec.arm_columns)

    def measuring(scores: torch.Tensor, take: torch.Tensor, late: torch.Tensor) -> None:
        planned = take & (executor._count[..., 0] > 0) & (executor._observed_s > -torch.inf)
        before = executor._plan[..., 0, :]
        merge(scores, take, late)
        after = executor._plan[..., 0, :]
        jumps.append(torch.stack([after - executor._last, after - before], dim=-2)[planned][..., arm])

    executor._merge = measuring  # type: ignore[method-assign]
    return jumps


def left_share(episodes: list[Episode]) -> float:
    """Of the successes past a pillar, the percentage that passed it on the left; nan without a pillar."""
    sides = []
    for episode in episodes:
        obs = episode.demos[0].obs
        if episode.success and "to_pillar" in obs:
            beside = np.abs(obs["to_pillar"][:, 0]).argmin()
            sides.append(obs["to_pillar"][beside, 1] < 0)
    return 100 * float(np.mean(sides)) if sides else float("nan")


def root_mean_square(paths: list[np.ndarray], order: int, control_dt: float) -> float:
    """Of the `order`-th derivative of positions (T, 3), over all steps of all paths."""
    rates = np.concatenate([np.diff(path, order, axis=0) for path in paths if len(path) > order]) / control_dt**order
    return float(np.sqrt((rates.astype(np.float64) ** 2).sum(-1).mean()))


if __name__ == "__main__":
    main()
