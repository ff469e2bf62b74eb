"""`robopolicy eval`: success rates in closed loop, in the simulator or in any gymnasium environment."""

import os
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from jsonargparse import ArgumentParser, Namespace

from robopolicy.cli import say
from robopolicy.cli.evaluation_text import print_evaluation, print_paired, read_others, report_runs
from robopolicy.cli.outputs import check_file, check_folder, write_json
from robopolicy.cli.parsing import (
    POLICY,
    REQUIRED,
    Option,
    at_least,
    execution_of,
    execution_options,
    of_group,
    opened,
    parse,
    verb_parser,
)
from robopolicy.cli.simulator import (
    SIMULATOR,
    check_simulator,
    filming,
    open_worlds,
    simulator_facts,
    simulator_options,
)
from robopolicy.components import ConfigError, values_of
from robopolicy.control.execution import ExecutionOptions
from robopolicy.experiment import read_provenance
from robopolicy.experiment.model_card import update_results
from robopolicy.report.evaluation import write_evaluation_report, write_side_by_side
from robopolicy.rollout.env_map import EnvMap, task_name
from robopolicy.rollout.env_worlds import open_worlds as open_copies
from robopolicy.rollout.episodes import Episode
from robopolicy.rollout.evaluate import check_instruction, evaluate_in_worlds
from robopolicy.rollout.statistics import Evaluation, refuse_seen_seeds
from robopolicy.sim.randomization import Randomization
from robopolicy.types import TOKENS_KEY, Policy

if TYPE_CHECKING:  # imports MuJoCo, which --env does not need
    from robopolicy.sim.evaluation import Shard

Evaluated: TypeAlias = tuple[Evaluation, Sequence[Episode]]
"""One run's result, and its episodes."""


ENVIRONMENT: tuple[Option, ...] = (
    ("--env", str | None, None, "third-party environment: MODULE:ID, ID or MODULE:FACTORY"),
    ("--env-map", str | None, None, "YAML: how its names and signals map to the policy's"),
    ("--env-python", str | None, None, "interpreter that has the environment's packages"),
    ("--env-kwargs", str | None, None, "arguments of its constructor: {name: value}, or a demo file with env_args"),
)
"""Options of the verbs that run third-party environments."""


def evaluate(arguments: Sequence[str]) -> int:
    """Measure policies in closed loop; returns the exit code."""
    options = parse(_parser(), arguments)
    _check_options(options)
    options.policy = [of_group(run, options.group) for run in options.policy]
    from robopolicy.sim.evaluation import open_shard

    with open_shard() as shard:
        made = [_evaluated(run, options, shard) for run in options.policy]
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
        *ENVIRONMENT,
        ("--env-copies", int | None, None, "copies at once; default: 8, or one per core"),
        ("--episodes", int, 100, "episodes, one per seed"),
        ("--seed", int, 10000, "seed of the first episode; later ones have consecutive seeds"),
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
    """Check the options, and that results can be written, before any episode runs."""
    check_simulator(options)
    at_least(options, 0, "videos")
    if options.videos and not options.report:
        raise ConfigError(f"--videos {options.videos} without a page to show them in; give --report FOLDER")
    if options.report and len(set(options.policy)) < len(options.policy):
        raise ConfigError("--report shows each policy once; a run folder is given twice")
    if options.json:
        check_file("--json", options.json)
    if options.report:
        check_folder("--report", options.report)
    check_environment(options)
    if options.env and (options.physics != "auto" or options.randomization != Randomization() or options.task_options):
        raise ConfigError(
            "--physics, --randomization and --task-options are the simulator's; --env makes its own worlds; "
            "its constructor's arguments are --env-kwargs"
        )
    if options.env and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError("--env runs in one process of torchrun; for several copies use --env-copies")
    if options.env_copies is not None:
        at_least(options, 1, "env_copies")


def check_environment(options: Namespace) -> None:
    """Refuse a task together with `--env`, and the options of `--env` without it.

    Raises:
        ConfigError: in one line that names the option.
    """
    if options.env and options.task:
        raise ConfigError(f"--task {options.task} and --env {options.env}; give one of them")
    for name in ("env_map", "env_kwargs", "env_python", "env_copies"):
        if options.get(name) is not None and not options.env:
            raise ConfigError(f"--{name.replace('_', '-')} without --env; give --env MODULE:ID")


def read_env_map(options: Namespace, policy: Policy) -> EnvMap:
    """The map of `--env-map`, with `--env-kwargs`, for this policy.

    Raises:
        EnvMapError: the map is wrong, or names no instruction for a policy that reads one.
    """
    env_map = EnvMap.read(options.env_map)
    if options.env_kwargs:
        env_map = env_map.with_kwargs(options.env_kwargs)
    check_instruction(policy, env_map)
    return env_map


# -- one run -------------------------------------------------------------------------------------------------------------


def _evaluated(run: str, options: Namespace, shard: "Shard") -> Evaluated | None:
    """One run's result, printed and written, and its episodes; None in all processes of torchrun but the first."""
    from robopolicy.sim.physics import require_device

    device = options.device if options.env else shard.device(options.device)
    require_device(device)
    policy, trained = opened(options, run, device), read_provenance(run)
    task = task_name(options.env) if options.env else options.task or trained.get("task")
    if task is None:
        raise ConfigError("the policy's demos name no task; give --task, or --env for another environment")
    others, execution = read_others(options, task), execution_of(options, policy.spec.execution)
    facts = {"policy": run, "execution": values_of(execution), "training": trained}
    episodes: list[Episode] = []
    if options.env:
        result = _in_environment(policy, options, execution, facts, episodes)
    else:
        result = _in_simulator(policy, task, options, execution, facts, episodes, shard)
    if result is None:
        return None
    _finish(run, options, result, others)
    return result, episodes


def _in_environment(
    policy: Policy,
    options: Namespace,
    execution: ExecutionOptions,
    facts: Mapping[str, Any],
    sink: list[Episode],
) -> Evaluation:
    """The result in copies of a third-party environment; arguments as for `_in_simulator`."""
    env_map = read_env_map(options, policy)
    described = {name: value for name, value in asdict(env_map).items() if name != "folder"}
    facts = {**facts, "environment": {"env": options.env, "python": options.env_python, "map": described}}
    seeds, film = range(options.seed, options.seed + options.episodes), options.videos > 0
    copies = {"python": options.env_python, "num_envs": options.env_copies, "film": film}
    with closing(open_copies(options.env, policy, seeds, env_map=env_map, **copies)) as worlds:
        return evaluate_in_worlds(policy, worlds, seeds, execution, provenance=facts, record=film, sink=sink)


def _in_simulator(
    policy: Policy,
    task: str,
    options: Namespace,
    execution: ExecutionOptions,
    facts: Mapping[str, Any],
    sink: list[Episode],
    shard: "Shard",
) -> Evaluation | None:
    """Run this process's share of the episodes; the first process returns the result of all of them, the others None.

    Args:
        policy: the policy to evaluate.
        task: task of the simulator.
        options: options of the command line.
        execution: how chunks become actions.
        facts: provenance of the result.
        sink: list to which the episodes are appended.
        shard: rank of this process, and the number of processes.
    """
    from robopolicy.sim.evaluation import evaluate_shard

    if TOKENS_KEY in policy.spec.observation:
        raise ConfigError(
            f"{facts['policy']} was trained on encoded tokens, which a simulator doesn't give; give --backbone auto, or the "
            "folder or name of the backbone that made them"
        )
    seeds, film = range(options.seed, options.seed + options.episodes), options.videos > 0
    trained = facts["training"]
    refuse_seen_seeds(seeds, trained.get("demo_seeds", ()) if trained.get("task") in (task, None) else ())
    count = max(1, min(options.num_envs, len(shard.part(seeds))))
    worlds = simulator_options(options, shard.device(options.device))
    facts = {**facts, **simulator_facts(options)}
    with closing(open_worlds(policy, task, count, worlds, filming(policy) if film else ())) as env:
        return evaluate_shard(policy, env, seeds, execution, shard, provenance=facts, record=film, sink=sink)


def _finish(
    run: str,
    options: Namespace,
    result: Evaluation,
    others: Sequence[Mapping[int, bool]],
) -> None:
    """Print one run's result, write its files, and update the results in the run's README."""
    if len(options.policy) > 1:
        say(f"policy    {run}")
    print_evaluation(result)
    if len(options.policy) == len(others) == 1:
        print_paired(result, others[0], Path(options.against[0]).name)
    for path in _result_files(run, options, result.task):
        write_json(path, result.to_dict())
        say(f"result    {path}")
    update_results(run)


def _write_page(options: Namespace, done: Sequence[Evaluated]) -> None:

    shown = [(result.to_dict(), episodes) for result, episodes in done]
    if len(shown) == 1:
        page = write_evaluation_report(Path(options.report), *shown[0], videos=options.videos)
    else:
        page = write_side_by_side(Path(options.report), dict(zip(options.policy, shown, strict=True)), options.videos)
    say(f"report    {page}")


def _result_files(run: str, options: Namespace, task: str) -> list[Path]:
    """Files to write one run's result to: that of --json, and one in the run folder, where `robopolicy report` finds it."""
    alone = len(options.policy) == 1
    asked = [Path(options.json)] if options.json and alone else []
    folder = Path(run)
    known = [Path(given).resolve() for given in (options.json, options.report) if given and alone]
    if any(path.is_relative_to(folder.resolve()) for path in known) or not os.access(folder, os.W_OK):
        return asked
    return [*asked, folder / "eval" / f"{task}-{datetime.now():%Y-%m-%dT%H-%M-%S-%f}.json"]
