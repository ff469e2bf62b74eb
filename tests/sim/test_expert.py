"""The scripted experts: that they succeed, and that they find back from where others got lost."""

import numpy as np
import pytest

from robopolicy.components import kinds
from robopolicy.rollout.statistics import wilson_interval
from robopolicy.sim.env import RobotVectorEnv
from robopolicy.sim.expert import ActionNoise, collect, expert_actions

NOISE = np.array([0.3] * 3 + [0.02] * 3)
"""Disturbance of the executed action, as `collect` makes it."""


def success_rate(task: str, episodes: int, first_seed: int, noise: np.ndarray | float = 0.0) -> tuple[float, float]:
    """Share of solved episodes, and their mean length in control steps."""
    env = RobotVectorEnv(task, episodes)
    env.reset(seed=first_seed)
    rng = np.random.default_rng(0)
    success, ended, lengths = np.zeros((3, episodes))
    for step in range(env.max_episode_steps):
        actions = expert_actions(env)
        disturbed = rng.random((episodes, 1)) < 0.7
        actions[:, :6] += noise * disturbed * rng.normal(size=(episodes, 6))
        _, _, terminated, truncated, info = env.step(actions)
        new = (terminated | truncated) & (ended == 0)
        success[new], lengths[new] = info["success"][new], step + 1
        ended += new
        if ended.all():
            break
    return float(success.mean()), float(lengths.mean())


@pytest.mark.parametrize("task", kinds("task"))
def test_expert_solves_its_task(task):
    """Guards against: demonstrations that fail or drag on."""
    rate, length = success_rate(task, episodes=12, first_seed=50)
    assert rate == 1.0
    assert length < {"chain": 210, "recall_long": 100, "sequence": 100, "count": 110, "swap": 70, "handover": 400}.get(
        task, 65
    )


@pytest.mark.slow
@pytest.mark.parametrize("task", kinds("task"))
def test_expert_solves_five_hundred_seeds(task):
    """Guards against: an expert whose success rate drops on seeds that nobody looked at."""
    assert success_rate(task, episodes=500, first_seed=0)[0] >= (0.97 if task == "drawer" else 0.99)


@pytest.mark.slow
@pytest.mark.parametrize("task", ["reach", "lift", "place", "stack", "drawer", "recall"])
def test_both_kinds_of_physics_are_as_easy_for_the_expert(task):
    """Guards against: a simulator that is easier or harder on a GPU, which would make its success rates another thing."""
    pytest.importorskip("mujoco_warp", reason="this physics needs the extra 'sim'")
    rates = []
    for kind in ("batch", "warp"):
        env = RobotVectorEnv(task, 128, physics=kind)
        episodes = list(collect(env, range(512), ActionNoise(std=0.1, push_share=0.0), record=False))
        assert not any(episode.faults for episode in episodes)
        rates.append(sum(episode.success for episode in episodes))
    intervals = [wilson_interval(successes, 512) for successes in rates]
    print(task, rates)
    assert max(low for low, _ in intervals) <= min(high for _, high in intervals)


@pytest.mark.slow
@pytest.mark.parametrize("task", ["reach", "lift", "place", "stack", "drawer", "recall"])
def test_expert_finds_back_after_disturbances(task):
    """Guards against: disturbed demonstrations (DART) that fail and are thrown away."""
    assert success_rate(task, episodes=500, first_seed=0, noise=NOISE)[0] >= 0.97


def test_expert_recovers_from_a_missed_grasp():
    """Guards against: labels for a policy's own mistakes (DAgger) that don't lead out of them."""
    env = RobotVectorEnv("lift", 4)
    env.reset(seed=0)
    for step in range(12):  # go beside the cube with closed fingers
        actions = expert_actions(env)
        actions[:, 6] = 1.0
        actions[:, 1] += 0.6 if step > 8 else 0.0
        env.step(actions)
    success = np.zeros(4, bool)
    for _ in range(60):
        _, _, _, _, info = env.step(expert_actions(env))
        success |= info["success"]
    assert success.all()


def test_expert_is_a_function_of_the_present_alone():
    """Guards against: a hidden counter, which would give a relabeled state another action than the same state in a demo."""
    env = RobotVectorEnv("stack", 2)
    env.reset(seed=0)
    for _ in range(9):
        env.step(expert_actions(env))
    np.testing.assert_array_equal(expert_actions(env), expert_actions(env))
    other = RobotVectorEnv("stack", 2)
    other.reset(seed=0)
    other.physics.qpos[:] = env.physics.qpos
    other.physics.qvel[:] = env.physics.qvel
    other.observe()
    np.testing.assert_array_equal(expert_actions(env), expert_actions(other))


@pytest.mark.parametrize("task", kinds("task"))
def test_expert_actions_are_in_the_action_space(task):
    """Guards against: labels beyond the action space, which stretch the normalization of all others."""
    env = RobotVectorEnv(task, 3)
    env.reset(seed=0)
    for _ in range(5):
        actions = expert_actions(env)
        assert actions.dtype == np.float32
        assert env.action_space.contains(actions)
        for column, first, second in env.actions.gripper_ends:
            assert set(actions[:, column]) <= {first, second}
        env.step(actions)
