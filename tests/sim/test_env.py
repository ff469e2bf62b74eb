"""The vector environment: seeds, resets, autoreset modes, observations, actions."""

import gymnasium
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode

from robopolicy.components import kinds
from robopolicy.sim.env import RobotVectorEnv
from robopolicy.sim.expert import expert_actions


def random_actions(env: RobotVectorEnv, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1, 1, env.action_space.shape)


def assert_same(one: dict, other: dict) -> None:
    assert one.keys() == other.keys()
    for key in one:
        np.testing.assert_array_equal(one[key], other[key], err_msg=key)


@pytest.mark.parametrize("task", kinds("task"))
def test_an_episode_depends_on_its_seed_alone(task):
    """Guards against: a world that depends on its index or neighbors, so that evaluations of different width differ."""
    many, one = RobotVectorEnv(task, 3), RobotVectorEnv(task, 1)
    obs, info = many.reset(seed=[7, 8, 9])
    single, single_info = one.reset(seed=[9])
    assert info["instruction"][2] == single_info["instruction"][0]
    for step in range(4):
        assert_same({key: value[2:] for key, value in obs.items()}, single)
        actions = random_actions(many, step)
        obs, reward, terminated, _, _ = many.step(actions)
        single, single_reward, single_terminated, _, _ = one.step(actions[2:])
        assert reward[2] == single_reward[0]
        assert terminated[2] == single_terminated[0]


@pytest.mark.parametrize("task", kinds("task"))
def test_observations_fit_the_declared_space(task):
    """Guards against: another dtype or shape than the space's, which breaks every buffer made from it."""
    env = RobotVectorEnv(task, 2)
    obs, _ = env.reset(seed=0)
    assert env.observation_space.contains(obs)
    obs, *_ = env.step(random_actions(env, 0))
    assert env.observation_space.contains(obs)
    assert all(value.dtype == np.float32 for value in obs.values())


def test_observations_of_two_steps_do_not_share_memory():
    """Guards against: a recorded frame that changes with the next step, which would make every frame of a demo the last one."""
    env = RobotVectorEnv("place", 2)
    first, _ = env.reset(seed=0)
    kept = {key: value.copy() for key, value in first.items()}
    for step in range(3):
        env.step(random_actions(env, step))
    assert_same(first, kept)


def test_observation_holds_pose_gripper_and_relative_positions():
    """Guards against: a relative position that is missing: a low-dimensional policy aims by it."""
    env = RobotVectorEnv("lift", 2)
    obs, info = env.reset(seed=0)
    np.testing.assert_allclose(obs["ee_pose"][:, :3], [[0.45, 0, 0.22]] * 2, atol=0.03)
    np.testing.assert_allclose(obs["ee_pose"][:, 3], 1.0, atol=0.01)
    np.testing.assert_allclose(obs["gripper"], 0.08, atol=1e-6)
    for world in range(2):
        color = info["instruction"][world].split()[2]
        cube = obs[f"cube_{color}"][world]
        np.testing.assert_allclose(cube[:3], obs["target_pos"][world])
        np.testing.assert_allclose(cube[7:], cube[:3] - obs["ee_pose"][world, :3], atol=1e-6)
        np.testing.assert_allclose(cube[7:], obs["target_offset"][world], atol=1e-6)


def test_reset_mask_leaves_the_other_worlds_alone():
    """Guards against: a reset of one world that disturbs its neighbors."""
    env = RobotVectorEnv("lift", 3)
    env.reset(seed=0)
    for step in range(3):
        obs, _, _, _, info = env.step(random_actions(env, step))
    again, again_info = env.reset(seed=[5, 6, 7], options={"reset_mask": np.array([False, True, False])})
    for key in obs:
        np.testing.assert_array_equal(obs[key][[0, 2]], again[key][[0, 2]])
    assert again_info["instruction"][0] == info["instruction"][0]
    fresh, _ = RobotVectorEnv("lift", 1).reset(seed=[6])
    assert_same({key: value[1:2] for key, value in again.items()}, fresh)


def test_as_many_seeds_as_worlds_are_asked_for():
    """Guards against: worlds that keep an old seed because the list of seeds is too short."""
    with pytest.raises(ValueError, match="2 seeds for 3 worlds"):
        RobotVectorEnv("reach", 3).reset(seed=[1, 2])


@pytest.mark.parametrize(("axis", "sign"), [(0, 1), (1, -1), (2, 1)])
def test_an_action_moves_the_gripper_along_its_axis_of_the_base(axis, sign):
    """Guards against: swapped axes, which would be learned from demos but fail on a robot."""
    env = RobotVectorEnv("lift", 1)
    env.reset(seed=0)
    before = env.state.ee_position.copy()
    actions = np.zeros((1, 7))
    actions[0, axis] = 0.7 * sign
    for _ in range(8):
        env.step(actions)
    moved = (env.state.ee_position - before)[0]
    assert 0.06 < moved[axis] * sign < 0.16
    assert np.abs(np.delete(moved, axis)).max() < 0.02


def test_an_action_turns_the_gripper_about_its_axis_of_the_base():
    """Guards against: a rotation vector in the tool's frame; it is in the base frame, as robosuite's."""
    env = RobotVectorEnv("lift", 1)
    env.reset(seed=0)
    start = env.state.ee_rotation[0].copy()
    for _ in range(6):
        env.step(np.array([[0, 0, 0, 0, 0, 0.15, 0]]))
    turned = env.state.ee_rotation[0] @ start.T
    angle = np.arctan2(turned[1, 0], turned[0, 0])
    assert 0.15 < angle < 0.5
    np.testing.assert_allclose(turned[2, 2], 1.0, atol=0.01)


def test_actions_beyond_one_are_clipped():
    """Guards against: an outlier of a policy that throws the arm."""
    one, huge = RobotVectorEnv("lift", 1), RobotVectorEnv("lift", 1)
    one.reset(seed=0)
    huge.reset(seed=0)
    assert_same(one.step(np.ones((1, 7)))[0], huge.step(np.full((1, 7), 50.0))[0])


def test_an_action_that_is_no_number_is_refused():
    """Guards against: a world that MuJoCo quietly resets, so that its episode continues as another one."""
    env = RobotVectorEnv("lift", 3)
    env.reset(seed=0)
    actions = np.zeros((3, 7))
    actions[1, 2] = np.nan
    with pytest.raises(ValueError, match=r"actions of worlds \[1\] are not finite numbers"):
        env.step(actions)


def test_terminated_is_an_end_and_truncated_the_time_limit():
    """Guards against: a time limit taken for an end, from which learners must not bootstrap."""
    env = RobotVectorEnv("reach", 2, max_episode_steps=5)
    env.reset(seed=0)
    for step in range(5):
        _, _, terminated, truncated, _ = env.step(np.zeros((2, 7)))
        assert not terminated.any()
        assert truncated.all() == (step == 4)
    env = RobotVectorEnv("reach", 1)
    env.reset(seed=0)
    terminated = np.zeros(1, bool)
    while not terminated.any():
        _, reward, terminated, truncated, info = env.step(expert_actions(env))
    assert info["success"].all()
    assert reward[0] == 1.0
    assert not truncated.any()


def test_same_step_autoreset_gives_the_last_observation_apart():
    """Guards against: a final observation that is lost to whoever computes a value from it."""
    env = RobotVectorEnv("reach", 2, autoreset_mode=AutoresetMode.SAME_STEP, max_episode_steps=2)
    assert env.metadata["autoreset_mode"] == AutoresetMode.SAME_STEP
    env.reset(seed=0)
    env.step(np.ones((2, 7)))
    obs, _, _, truncated, info = env.step(np.ones((2, 7)))
    assert truncated.all()
    assert info["_final_obs"].all()
    assert np.abs(info["final_obs"]["ee_pose"] - obs["ee_pose"]).max() > 0.01
    np.testing.assert_array_equal(env.state.step, 0)


def test_next_step_autoreset_resets_on_the_step_after():
    """Guards against: a reset at once, or never, which breaks gymnasium's wrappers."""
    env = RobotVectorEnv("reach", 2, autoreset_mode="NextStep", max_episode_steps=2)
    env.reset(seed=0)
    env.step(np.ones((2, 7)))
    _, _, _, truncated, _ = env.step(np.ones((2, 7)))
    assert truncated.all()
    obs, reward, terminated, truncated, _ = env.step(np.ones((2, 7)))
    assert not terminated.any()
    assert not truncated.any()
    assert not reward.any()
    np.testing.assert_array_equal(env.state.step, 0)
    np.testing.assert_allclose(obs["ee_pose"][:, :3], [[0.45, 0, 0.22]] * 2, atol=0.03)


def test_states_restore_the_simulator():
    """Guards against: a demo's `states` into which the simulator can't be put back."""
    env = RobotVectorEnv("stack", 2)
    env.reset(seed=0)
    for step in range(3):
        env.step(random_actions(env, step))
    states = env.states()
    nq = env.scene.model.nq
    assert states.shape == (2, nq + env.scene.model.nv)
    np.testing.assert_array_equal(states[:, :nq], env.physics.qpos)
    env.step(random_actions(env, 9))
    assert not np.array_equal(states[:, :nq], env.physics.qpos)


def test_unknown_camera_is_refused_with_those_there_are():
    """Guards against: a KeyError of the renderer for a typo in `--cameras`."""
    with pytest.raises(ValueError, match="no camera 'top' in the scene; it has: front, wrist"):
        RobotVectorEnv("lift", 1, cameras=("top",))


def test_state_only_environment_needs_no_renderer(monkeypatch):
    """Guards against: seconds of loading Warp, an optional extra, for an environment without cameras."""
    import sys

    monkeypatch.setitem(sys.modules, "mujoco_warp", None)
    RobotVectorEnv("lift", 1).reset(seed=0)
    with pytest.raises(ModuleNotFoundError, match=r"robopolicy\[sim\]"):
        RobotVectorEnv("lift", 1, cameras=("front",))


def test_made_by_gymnasium_it_is_the_same_environment():
    """Guards against: an environment that differs when gymnasium makes it."""
    import robopolicy.sim

    assert robopolicy.sim
    env = gymnasium.make_vec("robopolicy/Lift-v0", num_envs=2)
    assert env.metadata["autoreset_mode"] == AutoresetMode.DISABLED
    obs, _ = env.reset(seed=[3, 4])
    ours, _ = RobotVectorEnv("lift", 2).reset(seed=[3, 4])
    assert_same(obs, ours)


def test_render_gives_each_worlds_front_image():
    """Guards against: a TypeError from `make_vec(..., render_mode="rgb_array")`, which the metadata offers."""
    pytest.importorskip("mujoco_warp", reason="images need the extra 'sim'")
    env = gymnasium.make_vec("robopolicy/Lift-v0", num_envs=2, render_mode="rgb_array", image_size=16)
    obs, _ = env.reset(seed=0)
    images = env.render()
    assert images is not None
    np.testing.assert_array_equal(np.stack(list(images)), obs["front"])
    assert RobotVectorEnv("lift", 1).render() is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_envs": 0}, "num_envs is 0; expected 1 or more"),
        ({"render_mode": "human"}, "expected 'rgb_array' or None"),
    ],
)
def test_what_can_not_be_made_is_refused_by_its_name(options, message):
    """Guards against: errors in the C engine's words, such as `nsim must be positive`."""
    with pytest.raises(ValueError, match=message):
        RobotVectorEnv("lift", **options)


@pytest.mark.parametrize("shape", [(7,), (3, 7), (2, 6)])
def test_actions_of_another_shape_are_refused(shape):
    """Guards against: one action row broadcast to all worlds, or NumPy's words about broadcasting."""
    env = RobotVectorEnv("reach", 2)
    env.reset(seed=0)
    with pytest.raises(ValueError, match=r"expected \(2, 7\): a row for each world"):
        env._checked(np.zeros(shape, np.float32))
