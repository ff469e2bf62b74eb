"""The conformance kit of the simulator's tasks; each check takes a task's name and options."""

from collections.abc import Callable
from typing import Any

import numpy as np

from robopolicy.control.replay import REFERENCE
from robopolicy.sim.env import RobotVectorEnv
from robopolicy.sim.expert import expert_actions
from robopolicy.sim.scene import Scene, build_scene
from robopolicy.sim.tasks import Task, make_task
from robopolicy.testing._assert import require, require_error

SEEDS = 12
SUCCESS = 0.9
"""Least share of episodes that the scripted expert solves."""


def its_steps_are_positive(name: str, **options: Any) -> None:
    """An episode has a time limit, and its goal must hold for a step or more."""
    task = make_task(name, **options)
    require(task.max_episode_steps >= 1 and task.hold_steps >= 1, "max_episode_steps and hold_steps must be >= 1")


def an_episode_is_determined_by_its_random_generator(name: str, **options: Any) -> None:
    """Two draws from one seed are equal, and seeds differ; a draw from elsewhere would change scenes from run to run."""
    task, scene = _built(name, options)
    starts = []
    for seed in range(SEEDS):
        one, other = (task.sample(scene, np.random.default_rng(seed)) for _ in range(2))
        require(one.instructions == other.instructions, f"seed {seed} gives other instructions the second time")
        for field in ("goals", "qpos", "mocap_pos"):
            same = np.array_equal(getattr(one, field), getattr(other, field))
            require(same, f"seed {seed} gives another {field} the second time")
        starts.append(one.qpos.tobytes() + one.mocap_pos.tobytes())
    require(len(set(starts)) > 1, "every seed gives the same start")


def a_start_fits_the_scene(name: str, **options: Any) -> None:
    """`qpos` and `mocap_pos` have the model's sizes and are finite; there is an instruction for each stage's goal."""
    task, scene = _built(name, options)
    for seed in range(SEEDS):
        setup = task.sample(scene, np.random.default_rng(seed))
        require(setup.qpos.shape == scene.home_qpos.shape, f"qpos {setup.qpos.shape}; expected {scene.home_qpos.shape}")
        expected = scene.home_mocap.shape
        require(setup.mocap_pos.shape == expected, f"mocap_pos {setup.mocap_pos.shape}; expected {expected}")
        finite = np.isfinite(setup.qpos).all() and np.isfinite(setup.mocap_pos).all()
        require(finite, f"the start of seed {seed} is not finite")
        require(setup.goals.ndim == 2, f"goals {setup.goals.shape}; expected (stages, parts)")
        require(len(setup.instructions) == len(setup.goals), "instructions and goals differ in number")


def no_episode_is_decided_at_its_start(name: str, **options: Any) -> None:
    """A step without motion neither solves nor loses the task."""
    env = RobotVectorEnv(name, SEEDS, task_options=options)
    obs, _ = env.reset(seed=0)
    spec = env.actions
    still = np.zeros((SEEDS, spec.width), np.float32)
    if spec.kind == "absolute":
        still[:, list(spec.joint_columns)] = obs[REFERENCE]  # the joint targets that hold the pose
    else:
        still[:, list(spec.gripper_columns)] = -1.0  # open
    _, _, terminated, _, info = env.step(still)
    require(not terminated.any(), f"{terminated.sum()} of {SEEDS} episodes end in their first step")
    require(not info["success"].any(), f"{info['success'].sum()} of {SEEDS} episodes are solved in their first step")


def the_expert_solves_it(name: str, **options: Any) -> None:
    """The scripted expert (`Task.intent`) succeeds in nearly every episode, within the time limit."""
    env = RobotVectorEnv(name, SEEDS, task_options=options)
    env.reset(seed=0)
    success, ended = np.zeros(SEEDS, bool), np.zeros(SEEDS, bool)
    for _ in range(env.max_episode_steps):
        _, _, terminated, truncated, info = env.step(expert_actions(env))
        success |= info["success"] & ~ended
        ended |= terminated | truncated
        if ended.all():
            break
    require(success.mean() >= SUCCESS, f"the expert solves {success.sum()} of {SEEDS} episodes")


def an_unknown_option_is_refused(name: str, **options: Any) -> None:
    """A misspelled option must not be ignored."""
    require_error(lambda: make_task(name, **options, no_such_option=1), "an unknown option")


def _built(name: str, options: dict[str, Any]) -> tuple[Task, Scene]:
    task = make_task(name, **options)
    return task, build_scene(task.parts, robot=task.robot)


CHECKS: tuple[Callable[..., None], ...] = (
    its_steps_are_positive,
    an_episode_is_determined_by_its_random_generator,
    a_start_fits_the_scene,
    no_episode_is_decided_at_its_start,
    the_expert_solves_it,
    an_unknown_option_is_refused,
)
