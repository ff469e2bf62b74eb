"""`robopolicy eval`: how good a policy is in closed loop."""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import Namespace

from robopolicy.cli.outputs import check_file, check_folder, write_json
from robopolicy.cli.parsing import add_precision, parse, require, verb_parser
from robopolicy.cli.simulator import add_simulator, check_simulator, simulator_facts, simulator_options
from robopolicy.config import ConfigError, ExecutionConfig

if TYPE_CHECKING:
    from robopolicy.model.packed import Precision
    from robopolicy.rollout.episodes import Episode
    from robopolicy.rollout.statistics import Evaluation
    from robopolicy.sim.env import RobotVectorEnv
    from robopolicy.sim.sharding import Shard


def evaluate(arguments: Sequence[str]) -> int:
    """Measure a policy in closed loop; gives the exit code."""
    parser = verb_parser("eval", "Run a policy on unseen seeds of a simulator task and report its success rate.")
    parser.add_argument("policy", type=str, help="run folder, or an exported folder")
    parser.add_argument("--task", type=str | None, default=None, help="task of the simulator; default: the demos' own")
    parser.add_argument("--episodes", type=int, default=100, help="episodes, one per seed")
    parser.add_argument("--seed", type=int, default=10000, help="seed of the first episode; the others follow it")
    add_simulator(parser)
    add_precision(parser)
    parser.add_argument("--json", type=str | None, default=None, help="where to write the result as JSON")
    parser.add_argument("--report", type=str | None, default=None, help="folder for the HTML report and its videos")
    parser.add_argument("--videos", type=int, default=0, help="successes and failures each to show in the report")
    parser.add_argument(
        "--against", type=str | None, default=None, help="JSON of another evaluation, for a paired test"
    )
    for field in fields(ExecutionConfig):
        parser.add_argument(
            f"--execution.{field.name}",
            type=field.type | None,  # type: ignore[operator]
            default=None,
            help="as trained if not given",
        )
    options = parse(parser, arguments)
    _check_options(options)

    from robopolicy.sim.sharding import open_shard

    with open_shard() as shard:
        return _evaluate(options, shard)


def _check_options(options: Namespace) -> None:
    """Find out before the episodes what would lose their result after them."""
    check_simulator(options)
    require(options, 0, "videos")
    if options.videos and not options.report:
        raise ConfigError(f"--videos {options.videos} without a page to show them in; give --report FOLDER")
    if options.json:
        check_file("--json", options.json)
    if options.report:
        check_folder("--report", options.report)


def _evaluate(options: Namespace, shard: "Shard") -> int:
    """This process's share of the episodes; the first one prints and writes what came out of all."""
    from robopolicy.rollout.statistics import refuse_seen_seeds
    from robopolicy.sim.backend import require_device
    from robopolicy.sim.evaluation import evaluate_shard

    device = shard.device(options.device)
    require_device(device)
    policy, trained, provenance = _open_policy(options.policy, device, options.precision)
    task = options.task or provenance.get("task")
    if task is None:
        raise ConfigError("which task? The policy's demos don't say; give --task")
    rival = _read_rival(Path(options.against), task) if options.against else None
    given = {field.name: options.execution[field.name] for field in fields(ExecutionConfig)}
    execution = ExecutionConfig(**{**trained, **{k: v for k, v in given.items() if v is not None}})
    seeds = range(options.seed, options.seed + options.episodes)
    if rival is not None and not rival.keys() & set(seeds):
        raise ConfigError(f"--against {options.against} shares no seed with {seeds[0]} .. {seeds[-1]}; give its --seed")
    trained_on = provenance.get("demo_seeds", ()) if provenance.get("task") in (task, None) else ()
    facts = {"policy": str(options.policy), "execution": vars(execution), "training": provenance}
    facts |= simulator_facts(options)
    episodes: list[Episode] = []
    refuse_seen_seeds(seeds, trained_on)
    film = options.videos > 0
    make_env = _world_maker(policy, task, film, simulator_options(options, device))
    result = evaluate_shard(
        policy,
        make_env,
        seeds,
        execution,
        shard,
        num_envs=options.num_envs,
        provenance=facts,
        record=film,
        sink=episodes,
    )
    if result is None:
        return 0
    print_evaluation(result)
    if rival:
        _print_paired(result, rival, Path(options.against).name)
    for path in _result_files(options, task):
        write_json(path, result.to_dict())
        print(f"result    {path}")
    if options.report:
        from robopolicy.report import write_evaluation_report

        page = write_evaluation_report(Path(options.report), result.to_dict(), episodes, videos=options.videos)
        print(f"report    {page}")
    return 0


def _result_files(options: Namespace, task: str) -> list[Path]:
    """Where the result is kept: at --json, and where `robopolicy report` looks for it, in the run folder."""
    asked = [Path(options.json)] if options.json else []
    run = Path(options.policy)
    known = [Path(given).resolve() for given in (options.json, options.report) if given]
    if any(path.is_relative_to(run.resolve()) for path in known) or not os.access(run, os.W_OK):
        return asked
    return [*asked, run / "eval" / f"{task}-{datetime.now():%Y-%m-%dT%H-%M-%S}.json"]


def evaluate_policy(
    policy: Any,
    task: str,
    seeds: Sequence[int],
    execution: ExecutionConfig,
    *,
    num_envs: int = 64,
    trained_on: Sequence[int] = (),
    provenance: dict[str, Any] | None = None,
    film: bool = False,
    sink: "list[Episode] | None" = None,
    simulator: Mapping[str, Any] | None = None,
) -> "Evaluation":
    """Closed-loop evaluation in worlds that show what the policy looks at.

    Args:
        policy: what `robopolicy.load_policy` gives.
        task: Task of the simulator.
        seeds: One episode each.
        execution: Which action of which chunk is executed when.
        num_envs: Worlds at once, at most.
        trained_on: Seeds of the policy's demos; an overlap is refused.
        provenance: Kept in the result.
        film: Record the episodes with the front camera, also for policies that see no picture.
        sink: Where to append episodes as they end.
        simulator: `device`, `physics` and `randomization` of the worlds.
    """
    from robopolicy.rollout.statistics import refuse_seen_seeds
    from robopolicy.sim.evaluation import evaluate as closed_loop

    refuse_seen_seeds(seeds, trained_on)
    env = _world_maker(policy, task, film, simulator or {})(min(num_envs, len(seeds)))
    try:
        return closed_loop(policy, env, seeds, execution, provenance=provenance, record=film, sink=sink)
    finally:
        env.close()


def _world_maker(policy: Any, task: str, film: bool, simulator: Mapping[str, Any]) -> "Callable[[int], RobotVectorEnv]":
    """How to make so many worlds that show what the policy looks at."""
    from robopolicy.sim.env import RobotVectorEnv

    cameras = tuple(policy.cameras) or (("front",) if film else ())
    sizes = [policy.obs[camera].shape[0] for camera in policy.cameras]
    return partial(RobotVectorEnv, task, cameras=cameras, image_size=sizes[0] if sizes else 64, **simulator)


def _open_policy(
    folder: str, device: str, precision: "Precision" = "float32"
) -> tuple[Any, dict[str, Any], dict[str, Any]]:
    """A run's policy or an exported one, its own execution settings, and where it comes from."""
    from robopolicy.control.runtime import MANIFEST

    if (Path(folder) / MANIFEST).is_file():
        from robopolicy.control.server import open_policy

        exported: Any
        exported, spec = open_policy(folder, precision=precision)
        return exported, dict(exported.manifest.get("execution", {})), dict(spec.provenance)
    from robopolicy.model.checkpoint import load_policy, read_provenance

    policy = load_policy(folder, device, precision)
    return policy, vars(policy.config.execution), read_provenance(folder)


def print_evaluation(result: "Evaluation") -> None:
    """The result in a few lines, with units."""
    low, high = (round(100 * bound) for bound in result.interval)
    print(
        f"success   {result.successes} / {result.episodes} = {100 * result.success_rate:.0f} %  "
        f"(95 % interval {low}-{high} %)   mean length {result.mean_steps:.0f} steps of {result.control_dt} s"
    )
    for instruction, (solved, tried) in result.per_instruction.items():
        print(f"          {solved:4d} / {tried:<4d} {instruction}")
    if result.in_a_row:
        shares = "  ".join(f"{count}: {100 * share:.0f} %" for count, share in enumerate(result.in_a_row, start=1))
        print(f"in a row  {shares}   {result.figures['solved']:.2f} on average")
    if result.failed_seeds:
        shown = ", ".join(map(str, result.failed_seeds[:20]))
        print(f"failed    seeds {shown}{' ...' if len(result.failed_seeds) > 20 else ''}")
    for fault, seeds in result.faults.items():
        print(f"BROKEN    {len(seeds)} episodes count as failures: {fault} of the simulation, seeds {list(seeds)[:20]}")
    rate = result.env_steps / result.wall_s
    print(
        f"time      {result.wall_s:.1f} s: inference {result.inference_s:.1f} s, sim {result.physics_s:.1f} s; "
        f"{rate:.0f} env steps/s"
    )


def _read_rival(path: Path, task: str) -> dict[int, bool]:
    """Success by seed in the evaluation at `path`, which must be of the same task.

    Raises:
        ConfigError: the file holds no evaluation, or one of another task.
    """
    try:
        values = json.loads(path.read_text())
        outcomes = {int(outcome["seed"]): bool(outcome["success"]) for outcome in values["outcomes"]}
    except OSError as error:
        raise ConfigError(f"--against {path}: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"--against {path}: no evaluation written by robopolicy eval --json") from error
    if values.get("task") != task:
        raise ConfigError(f"--against {path} is of task {values.get('task')}, not {task}; its seeds are other scenes")
    return outcomes


def _print_paired(result: "Evaluation", rival: Mapping[int, bool], name: str) -> None:
    from robopolicy.rollout.statistics import paired_test

    test = paired_test({outcome["seed"]: outcome["success"] for outcome in result.outcomes}, rival)
    print(
        f"paired    {test['seeds']} shared seeds: only this {test['only_first']}, only {name} {test['only_second']}, "
        f"p = {test['p_value']:.3f} (McNemar, exact)"
    )
