"""`robopolicy eval`: success rates in closed loop, in our simulator or in any gymnasium environment."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import ArgumentParser, Namespace

from robopolicy.cli.evaluation_text import print_evaluation, print_paired, read_others, report_runs
from robopolicy.cli.outputs import check_file, check_folder, write_json
from robopolicy.cli.parsing import (
    POLICY,
    REQUIRED,
    execution_of,
    execution_options,
    of_group,
    parse,
    require,
    verb_parser,
)
from robopolicy.cli.simulator import SIMULATOR, check_simulator, simulator_facts, simulator_options
from robopolicy.components import ConfigError, values_of
from robopolicy.control.execution import ExecutionOptions
from robopolicy.sim.randomization import RandomizationConfig
from robopolicy.types import TOKENS_KEY

if TYPE_CHECKING:
    from robopolicy.model.packed import Precision
    from robopolicy.rollout.env_map import EnvMap
    from robopolicy.rollout.episodes import Episode
    from robopolicy.rollout.statistics import Evaluation
    from robopolicy.sim.env import RobotVectorEnv
    from robopolicy.sim.sharding import Shard

    Evaluated = tuple[Evaluation, Sequence[Episode]]
    """One run's result, and its episodes."""


def evaluate(arguments: Sequence[str]) -> int:
    """Measure policies in closed loop; returns the exit code."""
    options = parse(_parser(), arguments)
    _check_options(options)
    options.policy = [of_group(run, options.group) for run in options.policy]
    if options.env:
        done = [_evaluate_in_env(run, options) for run in options.policy]
    else:
        from robopolicy.sim.sharding import open_shard

        with open_shard() as shard:
            made = [_evaluate_in_simulator(run, options, shard) for run in options.policy]
        done = [each for each in made if each is not None]  # another process of torchrun has the results
    if options.report and done:
        _write_page(options, done)
    return report_runs(options, [result for result, _ in done])


def _parser() -> ArgumentParser:
    return verb_parser(
        "eval",
        "Run policies on unseen seeds of a simulator task or a gymnasium environment and report the success rate. "
        "Several run folders of one config count as training seeds: mean, spread, and an interval that counts both.",
        ("policy", list[str], REQUIRED, "run folders, or exported folders"),
        ("--task", str | None, None, "task of the simulator; default: the demos' own"),
        ("--env", str | None, None, "third-party environment: MODULE:ID, ID or MODULE:FACTORY"),
        ("--env-map", str | None, None, "YAML: how its names and signals map to the policy's"),
        ("--env-python", str | None, None, "interpreter that has the environment's packages"),
        ("--env-copies", int | None, None, "copies at once; default: 8, or one per core"),
        ("--env-kwargs", str | None, None, "arguments of its constructor: {name: value}, or a demo file with env_args"),
        ("--episodes", int, 100, "episodes, one per seed"),
        ("--seed", int, 10000, "seed of the first episode; the others follow it"),
        *SIMULATOR,
        *POLICY,
        ("--json", str | None, None, "where to write the result as JSON"),
        ("--report", str | None, None, "folder for the HTML report, of several policies side by side"),
        (
            "--videos",
            int,
            0,
            "successes and failures each to show in the report; of several policies, seeds solved by the same ones",
        ),
        (
            "--against",
            list[str],
            [],
            "JSON of other evaluations, for a paired test; several are the training seeds of another config",
        ),
        *execution_options(),
    )


def _check_options(options: Namespace) -> None:
    """Check before the episodes that their result can be written."""
    check_simulator(options)
    require(options, 0, "videos")
    if options.videos and not options.report:
        raise ConfigError(f"--videos {options.videos} without a page to show them in; give --report FOLDER")
    if options.report and len(set(options.policy)) < len(options.policy):
        raise ConfigError("--report shows each policy once; a run folder is given twice")
    if options.json:
        check_file("--json", options.json)
    if options.report:
        check_folder("--report", options.report)
    _check_env_options(options)


def _check_env_options(options: Namespace) -> None:
    """Refuse options of the simulator with --env, and those of --env without it."""
    if options.env:
        if options.task:
            raise ConfigError(f"--task {options.task} and --env {options.env}; give one of them")
        if options.physics != "auto" or options.randomization != RandomizationConfig():
            raise ConfigError("--physics and --randomization are the simulator's; --env makes its own worlds")
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise ConfigError("--env runs in one process of torchrun; for several copies use --env-copies")
        if options.env_copies is not None:
            require(options, 1, "env_copies")
    else:
        for name in ("env_map", "env_kwargs", "env_python", "env_copies"):
            if options[name] is not None:
                raise ConfigError(f"--{name.replace('_', '-')} without --env; give --env MODULE:ID")


# -- one run -------------------------------------------------------------------------------------------------------------


def _evaluate_in_env(run: str, options: Namespace) -> "Evaluated":
    """The result in copies of a third-party environment, printed, written and reported."""
    from robopolicy.rollout.env_map import EnvMap, task_name
    from robopolicy.rollout.env_worlds import open_worlds
    from robopolicy.rollout.evaluate import check_instruction, evaluate_in_worlds

    env_map = EnvMap.read(options.env_map)
    if options.env_kwargs:
        env_map = env_map.with_kwargs(options.env_kwargs)
    policy, trained, provenance = _open_policy(run, options.device, options.precision, options.backbone)
    check_instruction(policy, env_map)
    others = read_others(options, task_name(options.env))
    seeds, film = range(options.seed, options.seed + options.episodes), options.videos > 0
    worlds = open_worlds(
        options.env,
        policy,
        seeds,
        env_map=env_map,
        python=options.env_python,
        num_envs=options.env_copies,
        film=film,
    )
    execution, episodes = execution_of(options, trained), []
    facts = {
        "policy": run,
        "execution": values_of(execution),
        "training": provenance,
        "environment": _env_facts(options, env_map),
    }
    try:
        result = evaluate_in_worlds(policy, worlds, seeds, execution, provenance=facts, record=film, sink=episodes)
    finally:
        worlds.close()
    _finish(run, options, result, others)
    return result, episodes


def _env_facts(options: Namespace, env_map: "EnvMap") -> dict[str, Any]:
    facts = {"env": options.env, "python": options.env_python, "map": asdict(env_map)}
    facts["map"].pop("folder")
    return facts


def _evaluate_in_simulator(run: str, options: Namespace, shard: "Shard") -> "Evaluated | None":
    """This process's share of the episodes; the first process prints and writes the result of all."""
    from robopolicy.rollout.statistics import refuse_seen_seeds
    from robopolicy.sim.evaluation import evaluate_shard
    from robopolicy.sim.physics import require_device

    device = shard.device(options.device)
    require_device(device)
    policy, trained, provenance = _open_policy(run, device, options.precision, options.backbone)
    if TOKENS_KEY in policy.spec.observation:
        raise ConfigError(
            f"{run} was trained on encoded tokens, which a simulator doesn't give; give --backbone auto, or the folder "
            "or name of the backbone that made them"
        )
    task = options.task or provenance.get("task")
    if task is None:
        raise ConfigError("the policy's demos name no task; give --task, or --env for another environment")
    others = read_others(options, task)
    execution = execution_of(options, trained)
    seeds = range(options.seed, options.seed + options.episodes)
    trained_on = provenance.get("demo_seeds", ()) if provenance.get("task") in (task, None) else ()
    refuse_seen_seeds(seeds, trained_on)
    facts = {"policy": run, "execution": values_of(execution), "training": provenance} | simulator_facts(options)
    episodes: list[Episode] = []
    film = options.videos > 0
    make_env = _world_maker(policy, task, film, simulator_options(options, device))
    env = make_env(max(1, min(options.num_envs, len(shard.part(seeds)))))
    try:
        result = evaluate_shard(policy, env, seeds, execution, shard, provenance=facts, record=film, sink=episodes)
    finally:
        env.close()
    if result is None:
        return None
    _finish(run, options, result, others)
    return result, episodes


def _finish(
    run: str,
    options: Namespace,
    result: "Evaluation",
    others: Sequence[Mapping[int, bool]],
) -> None:
    """Print one run's result, and write its files and its line in the run's README."""
    from robopolicy.experiment.model_card import update_results

    if len(options.policy) > 1:
        print(f"policy    {run}")
    print_evaluation(result)
    if len(options.policy) == len(others) == 1:
        print_paired(result, others[0], Path(options.against[0]).name)
    for path in _result_files(run, options, result.task):
        write_json(path, result.to_dict())
        print(f"result    {path}")
    update_results(run)


def _write_page(options: Namespace, done: "Sequence[Evaluated]") -> None:
    from robopolicy.report import write_evaluation_report, write_side_by_side

    shown = [(result.to_dict(), episodes) for result, episodes in done]
    if len(shown) == 1:
        page = write_evaluation_report(Path(options.report), *shown[0], videos=options.videos)
    else:
        page = write_side_by_side(Path(options.report), dict(zip(options.policy, shown, strict=True)), options.videos)
    print(f"report    {page}")


def _result_files(run: str, options: Namespace, task: str) -> list[Path]:
    """Paths of one run's result: --json, and in the run folder, where `robopolicy report` finds it."""
    alone = len(options.policy) == 1
    asked = [Path(options.json)] if options.json and alone else []
    folder = Path(run)
    known = [Path(given).resolve() for given in (options.json, options.report) if given and alone]
    if any(path.is_relative_to(folder.resolve()) for path in known) or not os.access(folder, os.W_OK):
        return asked
    return [*asked, folder / "eval" / f"{task}-{datetime.now():%Y-%m-%dT%H-%M-%S}.json"]


def evaluate_policy(
    policy: Any,
    task: str,
    seeds: Sequence[int],
    execution: ExecutionOptions,
    num_envs: int = 64,
    simulator: Mapping[str, Any] | None = None,
) -> "Evaluation":
    """Closed-loop evaluation in worlds of our simulator that show the policy's keys and cameras; for use while training.

    Args:
        policy: what `robopolicy.load_policy` returns.
        task: task of the simulator.
        seeds: one episode each.
        execution: which action of which chunk is executed when.
        num_envs: worlds at once, at most.
        simulator: further options of the worlds, such as `device` and `physics`.
    """
    from robopolicy.sim.evaluation import evaluate as closed_loop

    env = _world_maker(policy, task, False, simulator or {})(min(num_envs, len(seeds)))
    try:
        return closed_loop(policy, env, seeds, execution)
    finally:
        env.close()


def _world_maker(policy: Any, task: str, film: bool, simulator: Mapping[str, Any]) -> "Callable[[int], RobotVectorEnv]":
    """Makes worlds, as many as asked for, that show the policy's keys and cameras."""
    from robopolicy.sim.env import RobotVectorEnv

    cameras = policy.spec.cameras or (("front",) if film else ())
    sizes = [policy.spec.observation[camera].shape[0] for camera in policy.spec.cameras]
    return partial(RobotVectorEnv, task, cameras=cameras, image_size=sizes[0] if sizes else 64, **simulator)


def _open_policy(
    folder: str, device: str, precision: "Precision" = "float32", backbone: str | None = None
) -> tuple[Any, dict[str, Any], dict[str, Any]]:
    """A run's policy or an exported one, its own execution options, and its provenance."""
    from robopolicy.experiment import open_policy, read_provenance

    policy: Any = open_policy(folder, backbone, device, None if precision == "float32" else precision)
    return policy, dict(policy.spec.execution), read_provenance(folder)
