"""`robopolicy improve`: improves a policy by recurrent PPO in closed loop."""

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import ArgumentParser, Namespace

from robopolicy.cli.outputs import check_folder
from robopolicy.cli.parsing import REQUIRED, field_options, parse, require, verb_parser
from robopolicy.cli.practice import film, make_worlds, success_in_simulator
from robopolicy.cli.simulator import SIMULATOR
from robopolicy.cli.train import SELECTION_SEED
from robopolicy.components import ConfigError

if TYPE_CHECKING:
    from robopolicy.model.policy import ChunkPolicy
    from robopolicy.training.improve import Surroundings


def improve(arguments: Sequence[str]) -> int:
    """Improve a policy by recurrent PPO; returns the exit code."""
    options = parse(_improve_parser(), arguments)
    require(options, 1, "num_envs", "eval_episodes")
    if bool(options.env) == bool(options.task) and options.env:
        raise ConfigError(f"--task {options.task} and --env {options.env}; give one of them")
    for name in ("env_map", "env_kwargs", "env_python"):
        if options[name] is not None and not options.env:
            raise ConfigError(f"--{name.replace('_', '-')} without --env; give --env MODULE:ID")
    check_folder("--run-dir", options.run_dir)
    from robopolicy.experiment import read_provenance
    from robopolicy.training.improve import ImproveConfig
    from robopolicy.training.improve import improve as run_improve

    config = ImproveConfig(**{field.name: options[field.name] for field in fields(ImproveConfig)})
    task = options.task or (None if options.env else read_provenance(options.policy).get("task"))
    if task is None and not options.env:
        raise ConfigError("the policy's demos name no task; give --task, or --env for another environment")
    surroundings = _environment(options) if options.env else _simulator(options, str(task))
    try:
        folder = run_improve(
            options.policy,
            surroundings,
            options.run_dir,
            config,
            options.ppo,
            resume=options.resume,
            device=options.device,
        )
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"interrupted; {options.run_dir} continues from its last checkpoint with --resume"
        ) from None
    print(f"policy    {folder}")
    return 0


def _improve_parser() -> ArgumentParser:
    from robopolicy.training.improve import ImproveConfig
    from robopolicy.training.reinforce import PPOConfig

    parser = verb_parser(
        "improve",
        "Improve a policy that succeeds now and then by practice: recurrent PPO on the policy's own memory, in the worlds of a "
        "simulator task or of a gymnasium environment.",
        ("policy", str, REQUIRED, "run folder of the policy to start from"),
        ("--run-dir", str, REQUIRED, "folder for the improved policy and its logs"),
        ("--task", str | None, None, "task of the simulator; default: the demos' own"),
        ("--env", str | None, None, "third-party environment, as for eval"),
        ("--env-map", str | None, None, "as for eval"),
        ("--env-kwargs", str | None, None, "as for eval"),
        ("--env-python", str | None, None, "as for eval"),
        ("--resume", bool, False, "continue from the last checkpoint in --run-dir"),
        ("--eval-episodes", int, 50, "episodes of each evaluation"),
        *field_options(ImproveConfig),
        ("ppo", PPOConfig, None, ""),
        *SIMULATOR,
    )
    parser.set_defaults(num_envs=128)  # the more worlds, the less a step of each costs
    return parser


def _environment(options: Namespace) -> "Surroundings":
    """Copies of a third-party environment."""
    from robopolicy.rollout.env_map import EnvMap
    from robopolicy.rollout.env_worlds import open_worlds
    from robopolicy.rollout.evaluate import check_instruction, evaluate_in_worlds
    from robopolicy.training.improve import Surroundings

    if options.videos:
        raise ConfigError(f"--videos {options.videos} with --env: only the simulator's worlds are filmed; leave it out")
    env_map = EnvMap.read(options.env_map)
    if options.env_kwargs:
        env_map = env_map.with_kwargs(options.env_kwargs)
    seeds = range(SELECTION_SEED, SELECTION_SEED + options.eval_episodes)

    def worlds(policy: "ChunkPolicy", count: int) -> Any:
        check_instruction(policy, env_map)
        first = range(SELECTION_SEED, SELECTION_SEED + count)
        return open_worlds(options.env, policy, first, env_map=env_map, python=options.env_python, num_envs=count)

    def success_rate(policy: "ChunkPolicy", folder: Path) -> float:
        copies = worlds(policy, min(options.num_envs, len(seeds)))
        try:
            return evaluate_in_worlds(policy, copies, seeds).success_rate
        finally:
            copies.close()

    facts = {"task": None, "environment": options.env}
    return Surroundings(lambda policy: worlds(policy, options.num_envs), success_rate, facts)


def _simulator(options: Namespace, task: str) -> "Surroundings":
    """Worlds of the simulator."""
    from robopolicy.training.improve import Surroundings

    success_rate = success_in_simulator(options, task, options.eval_episodes)

    def measured(policy: "ChunkPolicy", folder: Path) -> float:
        if options.videos:
            film(policy, task, options.videos, options, folder)
        return success_rate(policy)

    def worlds(policy: "ChunkPolicy") -> Any:
        return make_worlds(policy, task, options.num_envs, options, policy.spec.cameras)

    return Surroundings(worlds, measured, {"task": task})
