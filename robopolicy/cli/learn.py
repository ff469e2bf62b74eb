"""`robopolicy dagger` and `robopolicy improve`: a policy gets better in closed loop, from an expert or from reward."""

import importlib
import logging
import math
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import ArgumentParser, Namespace

from robopolicy.cli.outputs import check_folder
from robopolicy.cli.parsing import parse, parse_experiment, require, verb_parser
from robopolicy.cli.simulator import add_simulator, simulator_options
from robopolicy.cli.train import SELECTION_SEED
from robopolicy.components import ConfigError

if TYPE_CHECKING:
    from robopolicy.model.policy import ChunkPolicy
    from robopolicy.rollout.episodes import Actor, EpisodeWorlds
    from robopolicy.sim.env import RobotVectorEnv
    from robopolicy.types import Demo, Policy

LOG = logging.getLogger(__name__)

HANDS_FREE = ("reach", "recall", "recall_long")
"""Tasks of the simulator that are solved without the gripper."""


DAGGER_SEED = 500_000_000
"""First seed of the episodes that `dagger` relabels."""
SEEDS_PER_RUN, SEEDS_PER_ROUND = 10_000_000, 100_000
"""Seeds set aside for one training seed, and for one round."""


# -- dagger --------------------------------------------------------------------------------------------------------------


def dagger(arguments: Sequence[str]) -> int:
    """Train on demos, then again and again on what an expert says of the policy's own states; returns the exit code."""
    parser = verb_parser(
        "dagger",
        "Train on demos; then, in each round, run the policy in the simulator, label every state it visits with the expert's "
        "action, and train on everything so far. Every option of the config can be given.",
    )
    parser.add_argument("--run-dir", type=str, required=True, help="folder for the rounds: policies and demo files")
    parser.add_argument("--rounds", type=int, default=3, help="rollouts, each followed by training")
    parser.add_argument("--episodes", type=int, default=50, help="episodes of each rollout")
    parser.add_argument(
        "--expert",
        type=str | None,
        default=None,
        help="who labels: a run folder, such as of a teacher that reads privileged keys, or MODULE:FACTORY, called with the "
        "worlds; default: the task's scripted expert",
    )
    parser.add_argument(
        "--expert-share",
        type=str,
        default="0",
        help="share of the steps that the expert acts, over the rounds: a number, linear:1:0, exponential:1:0.5, "
        "piecewise:0=1,2=0.5",
    )
    parser.add_argument("--round-steps", type=int | None, default=None, help="optimizer steps of each later training")
    parser.add_argument(
        "--keep-rounds", type=int | None, default=None, help="newest rounds to train on beside the first demos; all"
    )
    parser.add_argument(
        "--eval-episodes", type=int, default=50, help="episodes to evaluate each round's policy on; 0: none"
    )
    parser.add_argument("--resume", action="store_true", help="continue what --run-dir holds")
    add_simulator(parser)
    options, config = parse_experiment(parser, arguments)
    require(options, 1, "episodes", "num_envs")
    require(options, 0, "eval_episodes")
    if options.episodes > SEEDS_PER_ROUND:
        raise ConfigError(f"--episodes is {options.episodes}; expected at most {SEEDS_PER_ROUND}")
    if config.task is None:
        raise ConfigError("which task? Give --task, such as --task lift")
    if missing := [name for name in config.data.files if "://" not in name and not Path(name).exists()]:
        raise ConfigError(f"{missing[0]}: no such demo file (--data.files)")
    check_folder("--run-dir", options.run_dir)
    run_dir = Path(options.run_dir)
    if run_dir.exists() and any(run_dir.iterdir()) and not options.resume:
        raise ConfigError(f"{run_dir} is not empty; continue it with --resume, or give another --run-dir")
    from robopolicy.training.online import Rounds
    from robopolicy.training.online import dagger as run_dagger
    from robopolicy.training.schedules import read_schedule

    share = read_schedule(options.expert_share, "--expert-share", high=1.0)
    rounds = Rounds(options.rounds, options.round_steps, options.keep_rounds)
    roll_out = _Relabeling(options, config.task, config.training.seed, lambda n: share(n - 1, options.rounds - 1))
    evaluate = _success_in_simulator(options, config.task, config.training.eval_episodes)
    measure = _success_in_simulator(options, config.task, options.eval_episodes)
    try:
        folder = run_dagger(
            config,
            run_dir,
            rounds,
            roll_out,
            evaluate=evaluate if config.training.eval_every else None,
            measure=(lambda policy: {"success_rate": measure(policy), "episodes": options.eval_episodes})
            if options.eval_episodes
            else None,
        )
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"interrupted; continue {run_dir} with --resume") from None
    print(f"policy    {folder}")
    return 0


class _Relabeling:
    """Rolls out a round: the policy acts, the expert labels, failed episodes are kept as well."""

    def __init__(self, options: Namespace, task: str, seed: int, share: "Callable[[int], float]") -> None:
        self.options, self.task, self.share = options, task, share
        self.first_seed = DAGGER_SEED + SEEDS_PER_RUN * (seed % 40)
        if options.expert is not None:  # a mistake is said before the first training
            check_expert(options.expert, task)

    def __call__(self, policy: "ChunkPolicy", number: int, written: Sequence[int]) -> "Iterator[Sequence[Demo]]":
        from robopolicy.training.online import relabeled_episodes

        first = self.first_seed + SEEDS_PER_ROUND * number
        seeds = [seed for seed in range(first, first + self.options.episodes) if seed not in {*written}]
        if not seeds:
            return
        cameras = policy.spec.cameras
        teacher = open_teacher(self.options.expert)
        if teacher is not None:
            cameras = tuple(dict.fromkeys((*cameras, *teacher.spec.cameras)))
        env = make_worlds(policy, self.task, min(self.options.num_envs, len(seeds)), self.options, cameras)
        try:
            expert = make_expert(self.options.expert, teacher, env)
            share, lengths, successes = self.share(number), [], 0
            for episode in relabeled_episodes(policy, env, seeds, expert, expert_share=share):
                lengths.append(episode.steps)
                successes += episode.success
                yield episode.demos
            LOG.info(
                "round %d   share of the expert %.2f   success %d / %d   mean length %.0f steps",
                *(number, share, successes, len(lengths), sum(lengths) / len(lengths)),
            )
        finally:
            env.close()


def check_expert(name: str, task: str) -> None:
    """Refuse a run folder of another task, and what is neither a run folder nor MODULE:FACTORY.

    Raises:
        ConfigError: in one line.
    """
    if Path(name).is_dir():
        from robopolicy.experiment import read_provenance

        trained = read_provenance(name).get("task")
        if trained is not None and trained != task:
            raise ConfigError(
                f"--expert {name} was trained on {trained}; --task is {task}; give an expert of this task"
            )
    elif ":" not in name:
        raise ConfigError(f"--expert {name}: neither a run folder nor MODULE:FACTORY")


def open_teacher(name: str | None) -> "Policy | None":
    """The policy in the run folder `name`; None if it is no folder."""
    if name is None or not Path(name).is_dir():
        return None
    from robopolicy.experiment import open_policy

    return open_policy(name)


def make_expert(name: str | None, teacher: "Policy | None", env: "RobotVectorEnv") -> "Actor":
    """Who labels the states in these worlds.

    Raises:
        ConfigError: the module, or the factory in it, is missing.
    """
    from robopolicy.rollout.actor import PolicyActor
    from robopolicy.sim.collection import ActionNoise, ExpertActor

    if teacher is not None:
        return PolicyActor(teacher, env.num_envs, env.control_dt)
    if name is None:
        return ExpertActor(env, ActionNoise.off())
    module, _, factory = name.partition(":")
    sys.path.append(os.getcwd())
    try:
        make = getattr(importlib.import_module(module), factory)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"--expert {name}: {error}; expected MODULE:FACTORY, called with the worlds") from None
    finally:
        sys.path.remove(os.getcwd())
    made = make(env)
    return made if hasattr(made, "act") else CallableExpert(made)


class CallableExpert:
    """A function (obs, instructions) -> actions (N, width) as an actor without memory."""

    def __init__(self, function: Callable[[Any, Any], Any]) -> None:
        self.function = function

    def reset(self, done: Any, seeds: Sequence[int]) -> None:
        """It remembers nothing."""

    def act(self, obs: Any, instructions: Sequence[str]) -> tuple[Any, Any]:
        """The function's actions, as label and as action."""
        action = self.function(obs, instructions)
        return action, action


# -- improve -------------------------------------------------------------------------------------------------------------


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
        raise ConfigError("which task? The policy's demos don't say; give --task, or --env for another environment")
    open_worlds, evaluate = _in_env(options) if options.env else _in_simulator(options, str(task))
    try:
        folder = run_improve(
            options.policy,
            open_worlds,
            options.run_dir,
            config,
            options.ppo,
            evaluate=evaluate,
            resume=options.resume,
            facts={"task": task, "environment": options.env} if options.env else {"task": task},
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
    )
    parser.add_argument("policy", type=str, help="run folder of the policy to start from")
    parser.add_argument("--run-dir", type=str, required=True, help="folder for the improved policy and its logs")
    parser.add_argument("--task", type=str | None, default=None, help="task of the simulator; default: the demos' own")
    parser.add_argument("--env", type=str | None, default=None, help="third-party environment, as for eval")
    parser.add_argument("--env-map", type=str | None, default=None, help="as for eval")
    parser.add_argument("--env-kwargs", type=str | None, default=None, help="as for eval")
    parser.add_argument("--env-python", type=str | None, default=None, help="as for eval")
    parser.add_argument("--resume", action="store_true", help="continue from the last checkpoint in --run-dir")
    parser.add_argument("--eval-episodes", type=int, default=50, help="episodes of each evaluation")
    add_class_options(parser, ImproveConfig)
    parser.add_class_arguments(PPOConfig, "ppo")
    add_simulator(parser)
    return parser


def add_class_options(parser: ArgumentParser, kind: type) -> None:
    """Add a dataclass's fields as options of the verb itself, `max_minutes` as `--max-minutes`."""
    from jsonargparse import ArgumentParser as Plain

    described = Plain()
    described.add_class_arguments(kind, "of")
    helps = {action.dest.removeprefix("of."): action.help for action in described._actions}
    for field in fields(kind):
        flag = f"--{field.name.replace('_', '-')}"
        parser.add_argument(flag, type=field.type, default=field.default, help=helps.get(field.name))  # type: ignore[arg-type]


def _in_env(options: Namespace) -> "tuple[Callable[[ChunkPolicy], EpisodeWorlds], Callable[[ChunkPolicy], float]]":
    """Worlds of a third-party environment for a policy, and its success rate in others."""
    from robopolicy.rollout.env_map import EnvMap
    from robopolicy.rollout.env_worlds import open_worlds
    from robopolicy.rollout.evaluate import check_instruction, evaluate_in_worlds

    env_map = EnvMap.read(options.env_map)
    if options.env_kwargs:
        env_map = env_map.with_kwargs(options.env_kwargs)
    seeds = range(SELECTION_SEED, SELECTION_SEED + options.eval_episodes)

    def worlds(policy: "ChunkPolicy", count: int) -> Any:
        check_instruction(policy, env_map)
        number = range(SELECTION_SEED, SELECTION_SEED + count)
        return open_worlds(options.env, policy, number, env_map=env_map, python=options.env_python, num_envs=count)

    def success_rate(policy: "ChunkPolicy") -> float:
        copies = worlds(policy, min(options.num_envs, len(seeds)))
        try:
            return evaluate_in_worlds(policy, copies, seeds).success_rate
        finally:
            copies.close()

    return lambda policy: worlds(policy, options.num_envs), success_rate


def _in_simulator(
    options: Namespace, task: str
) -> "tuple[Callable[[ChunkPolicy], EpisodeWorlds], Callable[[ChunkPolicy], float]]":
    """Worlds of the simulator for a policy, and its success rate in others."""

    def worlds(policy: "ChunkPolicy") -> Any:
        return make_worlds(policy, task, options.num_envs, options, policy.spec.cameras)

    return worlds, _success_in_simulator(options, task, options.eval_episodes)


# -- worlds of the simulator ---------------------------------------------------------------------------------------------


def make_worlds(
    policy: "ChunkPolicy", task: str, count: int, options: Namespace, cameras: Sequence[str]
) -> "RobotVectorEnv":
    """Worlds on the CPU with these cameras, at the size of the policy's images.

    Raises:
        ConfigError: the policy's actions are not the task's.
    """
    from robopolicy.sim.env import RobotVectorEnv

    if options.physics == "warp":
        raise ConfigError("--physics warp: learning in closed loop steps its worlds with batch; leave --physics out")
    size = policy.spec.observation[policy.spec.cameras[0]].shape[0] if policy.spec.cameras else 64
    env = RobotVectorEnv(task, count, cameras=tuple(cameras), image_size=size, **_on_host(options))
    try:
        check_actions(policy, task, math.prod(env.single_action_space.shape or ()))
    except ConfigError:
        env.close()
        raise
    return env


def _on_host(options: Namespace) -> dict[str, Any]:
    return {**simulator_options(options, "cpu"), "device": "cpu", "physics": "batch"}


def _success_in_simulator(options: Namespace, task: str, episodes: int) -> "Callable[[ChunkPolicy], float]":
    """A policy's success rate on seeds that neither demos, practice nor reported evaluations use."""
    from robopolicy.cli.evaluate import evaluate_policy
    from robopolicy.rollout.actor import own_execution

    def success_rate(policy: "ChunkPolicy") -> float:
        seeds = range(SELECTION_SEED, SELECTION_SEED + episodes)
        return evaluate_policy(policy, task, seeds, own_execution(policy), simulator=_on_host(options)).success_rate

    return success_rate


def check_actions(policy: "ChunkPolicy", task: str, width: int) -> None:
    """Refuse a policy whose actions are not the task's.

    Raises:
        ConfigError: another number of columns, or no gripper for a task that needs one.
    """
    spec = policy.action_spec
    if spec.width != width:
        raise ConfigError(f"the policy gives {spec.width} action columns; task {task} takes {width}: 6 arm, 1 gripper")
    if task not in HANDS_FREE and not spec.gripper_width and not spec.continuous_gripper:
        raise ConfigError(
            f"the policy moves no gripper (its action columns: {spec.arm_width} arm, {len(spec.constant)} constant), which "
            f"task {task} needs; train on demos in which the gripper opens and closes"
        )
