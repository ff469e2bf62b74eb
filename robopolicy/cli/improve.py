"""`robopolicy improve`: improves a policy by recurrent PPO in closed loop."""

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, Namespace

from robopolicy.cli import say
from robopolicy.cli.evaluate import ENVIRONMENT, check_environment, read_env_map
from robopolicy.cli.outputs import check_folder
from robopolicy.cli.parsing import REQUIRED, at_least, field_options, made_from, parse, verb_parser
from robopolicy.cli.simulator import (
    SELECTION_SEED,
    SIMULATOR,
    film,
    open_training_worlds,
    options_on_host,
    success_in_simulator,
)
from robopolicy.components import ConfigError
from robopolicy.experiment import read_provenance
from robopolicy.model.policy import ChunkPolicy
from robopolicy.rollout.env_worlds import open_worlds
from robopolicy.rollout.evaluate import evaluate_in_worlds
from robopolicy.training.improve import ImproveConfig, Surroundings
from robopolicy.training.improve import improve as run_improve
from robopolicy.training.reinforce import PPOConfig


def improve(arguments: Sequence[str]) -> int:
    """Improve a policy by recurrent PPO; returns the exit code."""
    options = parse(_parser(), arguments)
    at_least(options, 1, "num_envs", "eval_episodes")
    check_environment(options)
    check_folder("--run-dir", options.run_dir)
    config = made_from(ImproveConfig, options)
    surroundings = _environment(options) if options.env else _simulator(options)
    folder, resume, device = options.run_dir, options.resume, options.device
    try:
        run_improve(options.policy, surroundings, folder, config, options.ppo, resume=resume, device=device)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"interrupted; {folder} continues from its last checkpoint with --resume") from None
    say(f"policy    {folder}")
    return 0


def _parser() -> ArgumentParser:
    parser = verb_parser(
        "improve",
        "Improve a policy that sometimes succeeds by reinforcement learning: recurrent PPO on the policy's own memory, in a "
        "simulator task or a gymnasium environment.",
        ("policy", str, REQUIRED, "run folder of the policy to start from"),
        ("--run-dir", str, REQUIRED, "folder for the improved policy and its logs"),
        ("--task", str | None, None, "task of the simulator; default: the demos' own"),
        *ENVIRONMENT,
        ("--resume", bool, False, "continue from the last checkpoint in --run-dir"),
        ("--eval-episodes", int, 50, "episodes of each evaluation"),
        *field_options(ImproveConfig),
        ("ppo", PPOConfig, None, ""),
        *SIMULATOR,
    )
    parser.set_defaults(num_envs=128)  # with more worlds, each world's step takes less time
    return parser


def _environment(options: Namespace) -> Surroundings:
    """Training and evaluation in copies of a third-party environment."""
    if options.videos:
        raise ConfigError(f"--videos {options.videos} with --env: videos are made in the simulator only; leave it out")
    seeds = range(SELECTION_SEED, SELECTION_SEED + options.eval_episodes)

    def worlds(policy: ChunkPolicy, count: int = options.num_envs) -> Any:
        first, env_map = range(SELECTION_SEED, SELECTION_SEED + count), read_env_map(options, policy)
        return open_worlds(options.env, policy, first, env_map=env_map, python=options.env_python, num_envs=count)

    def success_rate(policy: ChunkPolicy, folder: Path) -> float:
        with closing(worlds(policy, min(options.num_envs, len(seeds)))) as copies:
            return evaluate_in_worlds(policy, copies, seeds).success_rate

    return Surroundings(worlds, success_rate, {"task": None, "environment": options.env})


def _simulator(options: Namespace) -> Surroundings:
    """Training and evaluation in the simulator."""
    task, simulator = options.task or read_provenance(options.policy).get("task"), options_on_host(options)
    if task is None:
        raise ConfigError("the policy's demos name no task; give --task, or --env for another environment")
    success_rate = success_in_simulator(task, options.eval_episodes, simulator)

    def measured(policy: ChunkPolicy, folder: Path) -> float:
        if options.videos:
            film(policy, task, options.videos, simulator, folder)
        return success_rate(policy)

    return Surroundings(
        lambda policy: open_training_worlds(policy, task, options.num_envs, options), measured, {"task": task}
    )
