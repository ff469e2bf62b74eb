"""The same policy and seeds in `eval`'s worlds and in `run --robot sim --realtime false`: how many outcomes are equal?

    python eval/simulated_clock.py runs/lift --episodes 50 [--command-hz 1000] [--json FILE]

Both act within the robot's limits. The worlds judge one action per control step; the run goes through the control loop with
its smoother, the robot's guard, and commands at `--command-hz`.
"""

import argparse
import time
from pathlib import Path
from typing import Any

from bench_table import bar, show

from robopolicy.cli.simulator import open_worlds
from robopolicy.components import build
from robopolicy.control.execution import execution_from
from robopolicy.control.executor import ChunkExecutor
from robopolicy.control.inference import SteppedInference
from robopolicy.control.loop import ControlLoop
from robopolicy.control.robots.base import RobotContext
from robopolicy.control.stream import PolicyStream
from robopolicy.experiment import load_policy
from robopolicy.sim.evaluation import evaluate
from robopolicy.sim.robots.sim import SimOptions
from robopolicy.sim.tasks import make_task


def main() -> None:
    """Print and write both outcomes of each seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("--task", default="lift")
    parser.add_argument("--episodes", type=int, default=50)
    parser.add_argument("--seed", type=int, default=10000)
    parser.add_argument("--command-hz", type=float, default=1000.0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    policy = load_policy(options.run)
    seeds = range(options.seed, options.seed + options.episodes)
    worlds = open_worlds(policy, options.task, len(seeds), {})
    result = evaluate(policy, worlds, seeds, execution_from(policy.spec.execution))
    worlds.close()
    in_worlds = {outcome["seed"]: outcome["success"] for outcome in result.outcomes}
    began_s = time.perf_counter()
    driven = [drive(policy, options.task, seed, options.command_hz) for seed in seeds]
    rows = [{"where": "eval", "success": sum(in_worlds.values()), "episodes": len(seeds)}]
    rows.append(
        {"where": "run, simulated clock", "success": sum(run["success"] for run in driven), "episodes": len(seeds)}
    )
    equal = sum(run["success"] == in_worlds[seed] for seed, run in zip(seeds, driven, strict=True))
    print(f"{time.perf_counter() - began_s:.0f} s for the runs; unequal seeds: ", end="")
    print([seed for seed, run in zip(seeds, driven, strict=True) if run["success"] != in_worlds[seed]])
    bars = [bar("equal outcomes", equal, round(0.96 * len(seeds)), "higher")]
    show(rows, bars, options.json)


def drive(policy: Any, task: str, seed: int, command_hz: float) -> dict[str, Any]:
    """One episode through the control loop, as `robopolicy run` drives it."""
    spec = policy.spec
    robot = build(
        SimOptions(task=task, seed=seed, command_hz=command_hz, realtime=False), RobotContext(cameras=spec.cameras)
    )
    inference = SteppedInference(robot, PolicyStream(policy, frame_stride=spec.frame_stride), cameras=spec.cameras)
    executor = ChunkExecutor(spec.chunk, robot.control_dt, execution_from(spec.execution), action_spec=spec.action)
    loop = ControlLoop(robot, inference, executor, spec.action, clock=robot.simulated_clock)
    loop.go_home()
    loop.run(make_task(task).max_episode_steps * robot.control_dt, lambda: robot.success or robot.failed)
    figures = {"success": robot.success, "stopped": loop.stopped, "limited_steps": loop.statistics.limited_steps}
    robot.close()
    return figures


if __name__ == "__main__":
    main()
