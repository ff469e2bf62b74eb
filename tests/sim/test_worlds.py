"""Worlds driven without gymnasium's manners, as a robot's simulator or a rollout drives them."""

import numpy as np
import pytest

from robopolicy.sim.env import RobotVectorEnv
from robopolicy.sim.expert import expert_actions
from robopolicy.sim.physics import Fault


@pytest.fixture
def env() -> RobotVectorEnv:
    made = RobotVectorEnv("chain", 2)
    made.reset(seed=0)
    return made


def test_judging_counts_a_step_and_reads_the_present(env):
    """Guards against: a simulated robot that steps the physics itself and is not judged like other worlds."""
    env.physics.step(np.repeat(env.scene.home_qpos[None, :9], 2, 0))
    assert env.judge().tolist() == [False, False]
    assert env.state.step.tolist() == [1, 1]
    np.testing.assert_array_equal(env.state.qpos, env.physics.qpos)


def test_observing_shows_what_the_physics_shows_now(env):
    """Guards against: a stale observation between two control steps, or one that counts as a step."""
    env.physics.qpos[1, env.scene.object_slice.start] += 0.01
    before = env.state.objects[1, 0, 0]
    assert env.observe()["cube_red"][1, 0] == pytest.approx(before)
    assert env.state.step.tolist() == [0, 0]


def test_goal_instruction_and_expert_change_together(env):
    """Guards against: an expert that follows the old goal under a new instruction, recorded as a demonstration of it."""
    told = env.instructions
    while env.instructions == told:
        _, _, terminated, _, _ = env.step(expert_actions(env))
        assert not terminated.any()
    world = [new != old for new, old in zip(env.instructions, told, strict=True)].index(True)
    drawn = env.draw([0, 1])
    assert env.instruction_id[world] == drawn.sentence[world, 1]
    np.testing.assert_array_equal(env.state.goal[world], drawn.goals[world, 1])
    assert env.solved[world] == 1
    assert not env.succeeded.any()


def test_a_fault_fails_the_episode_for_good_until_its_reset(env, tmp_path, monkeypatch):
    """Guards against: an episode that continues as if nothing had happened, after the engine reset a broken world."""
    monkeypatch.chdir(tmp_path)  # where MuJoCo writes its log
    env.physics.qvel[1, 0] = np.nan
    still = np.array([[0.0, 0, 0, 0, 0, 0, -1]] * 2)
    for _ in range(2):
        _, _, terminated, _, info = env.step(still)
        assert terminated.tolist() == [False, True]
        assert info["fault"].tolist() == [0, Fault.PHYSICS]
        assert not info["success"].any()
    env.reset(seed=[0, 1], options={"reset_mask": np.array([False, True])})
    _, _, terminated, _, info = env.step(still)
    assert not terminated.any()
    assert not info["fault"].any()
