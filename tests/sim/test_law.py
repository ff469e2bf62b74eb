"""One control law: what an action does in the simulator's worlds is what it does on the robot."""

import numpy as np
import pytest
import torch

from robopolicy.components import kinds
from robopolicy.control.limits import limit_targets
from robopolicy.control.motion import move
from robopolicy.control.profile import read_profile
from robopolicy.control.smoothing import JointSmoother
from robopolicy.control.targets import Targets, joint_targets
from robopolicy.sim import worlds
from robopolicy.sim.env import RobotVectorEnv
from robopolicy.sim.expert import ActionNoise, collect, expert_actions
from robopolicy.sim.scene import ARM_JOINTS
from robopolicy.sim.worlds import ACTIONS

PROFILE = read_profile("panda")
DT = 0.05


@pytest.fixture
def limited(monkeypatch) -> list[Targets]:
    """The results of every call of `limit_targets` by the worlds."""
    results: list[Targets] = []
    original = worlds.limit_targets
    monkeypatch.setattr(worlds, "limit_targets", lambda *args: results.append(original(*args)) or results[-1])
    return results


@pytest.mark.parametrize(("physics", "count", "tolerance"), [("batch", 10_000, 1e-6), ("warp", 256, 1e-4)])
def test_worlds_and_loop_limit_every_action_alike(limited, physics, count, tolerance):
    """Guards against: a success in the simulator that was earned by other limits than the robot's."""
    if physics == "warp":
        pytest.importorskip("mujoco_warp", reason="this physics needs the extra 'sim'")
    rng, size = np.random.default_rng(0), min(count, 250)
    env = RobotVectorEnv("reach", size, physics=physics)
    env.reset(seed=0)
    lower, upper = PROFILE.soft_limits_rad
    for _ in range(count // size):
        start = PROFILE.home_rad + 0.3 * rng.uniform(-1, 1, (size, ARM_JOINTS))
        actions, start = rng.uniform(-1, 1, (size, ARM_JOINTS)), np.clip(start, lower, upper)
        for record in (env.physics.qpos, env.commanded):
            record[:, :ARM_JOINTS] = torch.from_numpy(start) if env.on_device else start
        env.act(torch.from_numpy(actions) if env.on_device else actions)
        for world in range(size):  # as the loop calls them: one robot, float64
            asked = joint_targets(PROFILE, ACTIONS, actions[world], start[world], DT)
            ours = limit_targets(PROFILE, asked, start[world], np.array([0.08]), DT, start[world])
            theirs = limited[-1].joint_position_rad[world]
            np.testing.assert_allclose(np.asarray(theirs), ours.joint_position_rad, atol=tolerance)
            assert bool(limited[-1].intervened[world]) == bool(ours.intervened)


def test_worlds_move_as_the_robot_does():
    """Guards against: an arm that reaches its targets sooner or later in the simulator than on the robot."""
    rng, apart = np.random.default_rng(0), []
    for _ in range(40):
        smoother = JointSmoother(PROFILE, 0.001, DT)
        position, velocity = smoother.state[0], np.zeros(ARM_JOINTS)
        displacement = rng.uniform(-1, 1, ARM_JOINTS) * 10 ** rng.uniform(-3, -1)
        for step in range(6):  # each from the robot's own state, as the next measurement would bring them together
            target = position + displacement * (step < 4)
            smoother.aim(target, (target - position) / DT)
            (*_, ours), _ = move(PROFILE, target, position, velocity, DT, 10)
            for _ in range(50):
                smoother.step()
            position, velocity, _ = smoother.state
            apart.append(np.abs(ours - position).max())
    print(f"joint positions after one step: median {np.median(apart):.5f} rad, largest {max(apart):.5f} rad")
    assert np.median(apart) < 5e-4
    assert max(apart) < 1.2e-2


def test_worlds_keep_to_velocity_and_acceleration():
    """Guards against: demos that no robot can follow."""
    rng = np.random.default_rng(1)
    position, velocity = np.tile(PROFILE.home_rad, (64, 1)), np.zeros((64, ARM_JOINTS))
    path = [position[None]] * 3
    for _ in range(40):
        asked = Targets(
            position + 0.3 * rng.normal(size=position.shape), np.full((64, 1), 0.08), {"non_finite": np.zeros(64, bool)}
        )
        target = limit_targets(PROFILE, asked, position, np.full((64, 1), 0.08), DT).joint_position_rad
        ticks, velocity = move(PROFILE, target, position, velocity, DT, 10)
        position = ticks[-1]
        path.append(ticks)
    rates = np.concatenate(path)
    for limit in (PROFILE.velocity_rad_s, PROFILE.acceleration_rad_s2):
        rates = np.diff(rates, axis=0) / 0.005
        assert (np.abs(rates) <= np.multiply(limit, 1 + 1e-6)).all()


def test_a_target_that_stays_is_reached_and_kept():
    """Guards against: an arm that swings around its target."""
    target = np.add(PROFILE.home_rad, [0.3, -0.2, 0.1, 0.01, 0.0, 0.2, -0.3])
    position, velocity = np.asarray(PROFILE.home_rad), np.zeros(ARM_JOINTS)
    for _ in range(12):
        path, velocity = move(PROFILE, target, position, velocity, DT, 10)
        position = path[-1]
        assert (np.abs(path - target) <= np.abs(target - PROFILE.home_rad) + 0.01).all()
    np.testing.assert_allclose(position, target, atol=2e-3)
    np.testing.assert_allclose(velocity, 0, atol=2e-2)


def test_limits_can_be_switched_off():
    """Guards against: an evaluation that can't say what the limits cost."""
    action = np.array([[1.0, 0, 0, 0, 0, 0, -1]])
    moved, counts = [], []
    for limits in (True, False):
        env = RobotVectorEnv("reach", 1, limits=limits)
        env.reset(seed=0)
        before = env.state.ee_position[0, 0].copy()
        for _ in range(3):
            *_, info = env.step(action)
        moved.append(env.state.ee_position[0, 0] - before)
        counts.append(int(info["limited"][0]))
    assert moved[1] > 2 * moved[0] > 0
    assert counts[1] == 0


def test_limited_steps_are_counted_per_episode_and_start_at_zero():
    """Guards against: limits that nobody counts, or that count on into the next episode."""
    env = RobotVectorEnv("reach", 2)
    env.reset(seed=0)
    still, wild = np.array([0, 0, 0, 0, 0, 0, -1.0]), np.array([1, 1, 1, 0, 0, 1, -1.0])
    for _ in range(3):
        *_, info = env.step(np.stack([still, wild]))
    assert info["limited"].tolist() == [0, 3]
    _, info = env.reset(options={"reset_mask": np.array([False, True])})
    assert info["limited"].tolist() == [0, 0]


@pytest.mark.parametrize("task", [name for name in kinds("task") if name != "chain"])
def test_experts_work_within_the_limits(task):
    """Guards against: demos with actions that the robot would not execute as they are."""
    env = RobotVectorEnv(task, 12)
    episodes = list(collect(env, range(12), ActionNoise.off(), record=False))
    most = 0.05 if task in ("count", "sequence") else 0.01  # these turn round in mid motion, at a lid
    assert sum(episode.info["limited"] for episode in episodes) <= most * sum(episode.steps for episode in episodes)


def test_demos_hold_the_experts_own_action():
    """Guards against: labels cut to what the limits left of a disturbed action."""
    env = RobotVectorEnv("lift", 1)
    env.reset(seed=0)
    expected = expert_actions(env)[0]
    episode = next(iter(collect(env, [0], ActionNoise(), record=True)))
    np.testing.assert_array_equal(episode.demos[0].actions[0], expected)
