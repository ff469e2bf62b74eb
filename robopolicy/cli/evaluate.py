"""`robopolicy eval`, `report` and `view`: how good a policy is in closed loop, and how it looks."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import Namespace

from robopolicy.cli.parsing import add_precision, parse, verb_parser
from robopolicy.cli.simulator import add_simulator, simulator_facts, simulator_options
from robopolicy.config import ConfigError, ExecutionConfig

if TYPE_CHECKING:
    from robopolicy.model.packed import Precision
    from robopolicy.sim.env import RobotVectorEnv
    from robopolicy.sim.evaluation import Evaluation
    from robopolicy.sim.rollout import Episode
    from robopolicy.sim.sharding import Shard
    from robopolicy.types import Demo


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
    if options.episodes < 1:
        raise ConfigError(f"--episodes is {options.episodes}; expected 1 or more")

    from robopolicy.sim.sharding import open_shard

    with open_shard() as shard:
        return _evaluate(options, shard)


def _evaluate(options: Namespace, shard: "Shard") -> int:
    """This process's share of the episodes; the first one prints and writes what came out of all."""
    from robopolicy.sim.backend import require_device
    from robopolicy.sim.evaluation import evaluate_shard, refuse_seen_seeds

    device = shard.device(options.device)
    require_device(device)
    policy, trained, provenance = _open_policy(options.policy, device, options.precision)
    task = options.task or provenance.get("task")
    if task is None:
        raise ConfigError("which task? The policy's demos don't say; give --task")
    given = {field.name: options.execution[field.name] for field in fields(ExecutionConfig)}
    execution = ExecutionConfig(**{**trained, **{k: v for k, v in given.items() if v is not None}})
    seeds = range(options.seed, options.seed + options.episodes)
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
    if options.against:
        _print_paired(result, Path(options.against))
    if options.json:
        write_json(Path(options.json), result.to_dict())
    if options.report:
        from robopolicy.report import write_evaluation_report

        page = write_evaluation_report(Path(options.report), result.to_dict(), episodes, videos=options.videos)
        print(f"report    {page}")
    elif options.json:
        print(f"result    {options.json}")
    return 0


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
    from robopolicy.sim.evaluation import evaluate as closed_loop
    from robopolicy.sim.evaluation import refuse_seen_seeds

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
    for name, value in result.figures.items():
        print(f"{name:<10}{value:.2f} on average")
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


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Write JSON whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(values, indent=2))
    partial.replace(path)


def _print_paired(result: "Evaluation", other: Path) -> None:
    from robopolicy.sim.evaluation import paired_test

    try:
        outcomes = json.loads(other.read_text())["outcomes"]
    except (json.JSONDecodeError, KeyError) as error:
        raise ConfigError(f"{other}: no evaluation written by robopolicy eval --json ({error})") from error
    test = paired_test(
        {outcome["seed"]: outcome["success"] for outcome in result.outcomes},
        {outcome["seed"]: outcome["success"] for outcome in outcomes},
    )
    print(
        f"paired    {test['seeds']} shared seeds: only this {test['only_first']}, only {other.name} {test['only_second']}, "
        f"p = {test['p_value']:.3f} (McNemar, exact)"
    )


def report(arguments: Sequence[str]) -> int:
    """Compare runs in one page; gives the exit code."""
    parser = verb_parser(
        "report", "Compare runs: losses and every evaluation found in their folders, in one HTML page."
    )
    parser.add_argument("runs", type=str, nargs="+", help="run folders")
    parser.add_argument("--out", type=str, default="report.html", help="page to write")
    options = parse(parser, arguments)
    from robopolicy.report import write_comparison

    print(f"report    {write_comparison([Path(run) for run in options.runs], Path(options.out))}")
    return 0


def view(arguments: Sequence[str]) -> int:
    """Turn a demo or a recorded episode into a video; gives the exit code."""
    parser = verb_parser("view", "Play a demo: write its pictures as mp4 or GIF, or log it to rerun (extra `view`).")
    parser.add_argument("file", type=str, help="demo file, or a recorded run")
    parser.add_argument("--demo", type=str | None, default=None, help="name of the demo; default: the first")
    parser.add_argument(
        "--out", type=str | None, default=None, help="video to write, .mp4 or .gif; default: beside the file"
    )
    parser.add_argument("--rerun", action="store_true", help="open in the rerun viewer instead")
    options = parse(parser, arguments)
    from robopolicy.report import demo_pictures, show_in_rerun, write_video

    demo = _read_demo(Path(options.file), options.demo)
    if options.rerun:
        show_in_rerun(demo)
        return 0
    out = Path(options.out) if options.out else Path(options.file).with_suffix(f".{demo.name}.mp4")
    print(f"video     {write_video(demo_pictures(demo), out)}")
    return 0


def _read_demo(path: Path, name: str | None) -> "Demo":
    from robopolicy.demos.formats import open_demos

    with open_demos(path) as demos:
        if name is not None and name not in demos.names:
            raise ConfigError(f"{path}: no demo {name!r}; it has {demos.names[0]} .. {demos.names[-1]}")
        return demos.read(name or demos.names[0])
