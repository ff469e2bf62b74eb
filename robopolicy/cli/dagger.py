"""`robopolicy dagger`: trains a policy on the states that it visits itself, labeled by an expert."""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Literal

from jsonargparse import ArgumentParser, Namespace

from robopolicy.cli import say
from robopolicy.cli.outputs import check_folder
from robopolicy.cli.parsing import REQUIRED, at_least, imported, parse_experiment, verb_parser
from robopolicy.cli.simulator import SIMULATOR, open_training_worlds, options_on_host, success_in_simulator
from robopolicy.components import ConfigError
from robopolicy.experiment import open_policy, read_provenance
from robopolicy.experiment.config import ExperimentConfig
from robopolicy.model.policy import ChunkPolicy
from robopolicy.rollout.actor import PolicyActor
from robopolicy.rollout.episodes import Actor
from robopolicy.sim.env import RobotVectorEnv
from robopolicy.sim.expert import ActionNoise, ExpertActor
from robopolicy.training.online import Rounds, relabeled_episodes
from robopolicy.training.online import dagger as run_dagger
from robopolicy.training.schedules import read_schedule
from robopolicy.types import Demo, Policy

LOG = logging.getLogger(__name__)

DAGGER_SEED = 500_000_000
"""First seed of the episodes that `dagger` relabels."""
SEEDS_PER_RUN, SEEDS_PER_ROUND = 10_000_000, 100_000
"""Number of episode seeds reserved for each training seed, and for each round."""


def dagger(arguments: Sequence[str]) -> int:
    """Train on demos, then in rounds on the policy's own states, labeled by an expert; returns the exit code."""
    options, config = parse_experiment(_parser(), arguments)
    task = _checked_task(options, config)
    share = read_schedule(options.expert_share, "--expert-share", high=1.0)
    first_seed = DAGGER_SEED + SEEDS_PER_RUN * (config.training.seed % 40)

    def roll_out(policy: ChunkPolicy, number: int, written: Sequence[int]) -> Iterator[Sequence[Demo]]:
        first = first_seed + SEEDS_PER_ROUND * number
        seeds = sorted({*range(first, first + options.episodes)} - {*written})
        return _relabeled(options, task, policy, seeds, share(number - 1, options.rounds - 1))

    def measure(policy: ChunkPolicy) -> dict[str, Any]:
        success_rate = success_in_simulator(task, options.eval_episodes, simulator)
        return {"success_rate": success_rate(policy), "episodes": options.eval_episodes}

    simulator = options_on_host(options)
    while_training = success_in_simulator(task, config.training.eval_episodes, simulator)
    try:
        folder = run_dagger(
            config,
            Path(options.run_dir),
            Rounds(options.rounds, options.round_steps, options.keep_rounds, options.round_weights),
            roll_out,
            evaluate=while_training if config.training.eval_every else None,
            measure=measure if options.eval_episodes else None,
        )
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"interrupted; continue {options.run_dir} with --resume") from None
    say(f"policy    {folder}")
    return 0


def _parser() -> ArgumentParser:
    return verb_parser(
        "dagger",
        "Train on demos; then, in each round, run the policy in the simulator, label every state it visits with the expert's "
        "action, and train on everything so far. Every option of the config can be given.",
        ("--run-dir", str, REQUIRED, "folder for the rounds: policies and demo files"),
        ("--rounds", int, 3, "rounds of collecting and training"),
        ("--episodes", int, 50, "episodes collected in each round"),
        (
            "--expert",
            str | None,
            None,
            "source of the labels: a run folder (for example of a teacher that reads privileged keys), or MODULE:FACTORY, "
            "where FACTORY is called with the worlds; default: the task's scripted expert",
        ),
        (
            "--expert-share",
            str,
            "linear:0.75:0.25",
            "fraction of the turns (of about 20 steps) in which the expert acts, as a schedule over the rounds: a number, "
            "linear:1:0, exponential:1:0.5 or piecewise:0=1,2=0.5",
        ),
        (
            "--round-steps",
            int | None,
            None,
            "optimizer steps of each training run after the first; default: as many as in the first",
        ),
        (
            "--round-weights",
            Literal["new", "last"],
            "new",
            "new: each training run starts from random weights; last: from the previous round's, for fewer --round-steps",
        ),
        ("--keep-rounds", int | None, None, "newest rounds to train on, besides the first demos; default: all"),
        ("--eval-episodes", int, 50, "episodes to evaluate each round's policy on; 0: none"),
        ("--resume", bool, False, "continue the run in --run-dir"),
        *SIMULATOR,
    )


def _checked_task(options: Namespace, config: ExperimentConfig) -> str:
    """The task, after a check of all options, so that mistakes are reported before the first training run.

    Raises:
        ConfigError: an option is wrong.
    """
    at_least(options, 1, "episodes", "num_envs")
    at_least(options, 0, "eval_episodes")
    if options.episodes > SEEDS_PER_ROUND:
        raise ConfigError(f"--episodes is {options.episodes}; expected at most {SEEDS_PER_ROUND}")
    if config.task is None:
        raise ConfigError("no task; give --task, such as --task lift")
    check_folder("--run-dir", options.run_dir)
    run_dir = Path(options.run_dir)
    if run_dir.exists() and any(run_dir.iterdir()) and not options.resume:
        raise ConfigError(f"{run_dir} is not empty; continue it with --resume, or give another --run-dir")
    if options.expert is not None:
        _check_expert(options.expert, config.task)
    return config.task


def _relabeled(
    options: Namespace, task: str, policy: ChunkPolicy, seeds: Sequence[int], share: float
) -> Iterator[Sequence[Demo]]:
    """The demos of one episode per seed: policy and expert take turns, the expert labels each step; failures are kept."""
    if not seeds:
        return
    teacher = open_policy(options.expert) if options.expert and Path(options.expert).is_dir() else None
    cameras = () if teacher is None else teacher.spec.cameras
    with closing(open_training_worlds(policy, task, min(options.num_envs, len(seeds)), options, cameras)) as env:
        steps = successes = 0
        for episode in relabeled_episodes(
            policy, env, seeds, _expert(options.expert, teacher, env), expert_share=share
        ):
            steps, successes = steps + episode.steps, successes + episode.success
            yield episode.demos
    LOG.info(
        "rollout   share of the expert %.2f   success %d / %d   mean length %.0f steps",
        *(share, successes, len(seeds), steps / len(seeds)),
    )


def _check_expert(name: str, task: str) -> None:
    """Check that `--expert` is a run folder of this task, or MODULE:FACTORY.

    Raises:
        ConfigError: it is neither, or was trained on another task.
    """
    if Path(name).is_dir():
        trained = read_provenance(name).get("task")
        if trained not in (None, task):
            raise ConfigError(
                f"--expert {name} was trained on {trained}; --task is {task}; give an expert of this task"
            )
    elif ":" not in name:
        raise ConfigError(f"--expert {name}: neither a run folder nor MODULE:FACTORY")


def _expert(name: str | None, teacher: Policy | None, env: RobotVectorEnv) -> Actor:
    """The expert for these worlds: a trained policy, the task's scripted expert, or the one that MODULE:FACTORY makes.

    Raises:
        ConfigError: the module, or the factory in it, is missing.
    """
    if teacher is not None:
        return PolicyActor(teacher, env.num_envs, env.control_dt)
    if name is None:
        return ExpertActor(env, ActionNoise())
    made = imported("--expert", name, "the worlds")(env)
    return made if hasattr(made, "act") else FunctionExpert(made)


class FunctionExpert:
    """A function (obs, instructions) -> actions (N, width) as an actor without memory."""

    def __init__(self, function: Callable[[Any, Any], Any]) -> None:
        self.function = function

    def reset(self, done: Any, seeds: Sequence[int]) -> None:
        """Do nothing."""

    def act(self, obs: Any, instructions: Sequence[str]) -> tuple[Any, Any]:
        """(label, action), both the function's actions (N, width)."""
        action = self.function(obs, instructions)
        return action, action
