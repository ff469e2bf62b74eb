"""Worlds of the simulator in which `dagger` and `improve` let a policy act, and in which they measure it."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jsonargparse import Namespace

from robopolicy.cli.simulator import simulator_options
from robopolicy.cli.train import SELECTION_SEED
from robopolicy.components import ConfigError

if TYPE_CHECKING:
    from robopolicy.model.policy import ChunkPolicy
    from robopolicy.sim.env import RobotVectorEnv


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
    env = RobotVectorEnv(task, count, cameras=tuple(cameras), image_size=size, **on_host(options))
    try:
        check_actions(policy, task, math.prod(env.single_action_space.shape or ()))
    except ConfigError:
        env.close()
        raise
    return env


def on_host(options: Namespace) -> dict[str, Any]:
    """Keyword arguments of `RobotVectorEnv` for worlds on the CPU."""
    return {**simulator_options(options, "cpu"), "device": "cpu", "physics": "batch"}


def success_in_simulator(options: Namespace, task: str, episodes: int) -> "Callable[[ChunkPolicy], float]":
    """A policy's success rate on seeds that neither demos, practice nor reported evaluations use."""
    from robopolicy.cli.evaluate import evaluate_policy
    from robopolicy.rollout.actor import own_execution

    def success_rate(policy: "ChunkPolicy") -> float:
        seeds = range(SELECTION_SEED, SELECTION_SEED + episodes)
        return evaluate_policy(policy, task, seeds, own_execution(policy), simulator=on_host(options)).success_rate

    return success_rate


def film(policy: "ChunkPolicy", task: str, episodes: int, options: Namespace, folder: Path) -> None:
    """Write videos of the first episodes that `success_in_simulator` runs, named by seed and outcome."""
    from robopolicy.report import demo_images, write_video
    from robopolicy.rollout.actor import own_execution
    from robopolicy.rollout.episodes import Episode
    from robopolicy.sim.evaluation import evaluate

    seeds, filmed = range(SELECTION_SEED, SELECTION_SEED + episodes), list[Episode]()
    env = make_worlds(policy, task, episodes, options, policy.spec.cameras or ("front",))
    try:
        evaluate(policy, env, seeds, own_execution(policy), record=True, sink=filmed)
    finally:
        env.close()
    folder.mkdir(parents=True, exist_ok=True)
    for episode in filmed:
        images = [image for demo in episode.demos for image in demo_images(demo)]
        name = f"{episode.seed}_{'success' if episode.success else 'failure'}.mp4"
        write_video(np.stack(images), folder / name, fps=1 / env.control_dt)


def check_actions(policy: "ChunkPolicy", task: str, width: int) -> None:
    """Refuse a policy whose actions are not the task's.

    Raises:
        ConfigError: another number of columns, or no gripper for a task that needs one.
    """
    from robopolicy.sim.tasks import make_task

    spec = policy.action_spec
    if spec.width != width:
        raise ConfigError(f"the policy gives {spec.width} action columns; task {task} takes {width}")
    if make_task(task).needs_gripper and not spec.gripper_width and not spec.continuous_gripper:
        raise ConfigError(
            f"the policy moves no gripper (its action columns: {spec.arm_width} arm, {len(spec.constant)} constant), which "
            f"task {task} needs; train on demos in which the gripper opens and closes"
        )
