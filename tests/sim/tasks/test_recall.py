"""The task of memory: what is shown, when, and what may be done."""

import numpy as np
import pytest

from robopolicy.sim.env import RobotVectorEnv
from robopolicy.sim.expert import expert_actions
from robopolicy.sim.stepped import SteppedRobot, WorldOptions
from robopolicy.sim.tasks import make_task
from robopolicy.sim.tasks._lids import GAP_M, LID_HALF_M
from robopolicy.types import Command

STILL = np.zeros((1, 7))


def hidden_env(worlds: int = 1) -> tuple[RobotVectorEnv, dict[str, np.ndarray]]:
    """Episodes whose cue is over and whose lamp is lit."""
    env = RobotVectorEnv("recall", worlds, task_options={"cue_steps": 1, "delay_steps": 1})
    obs, _ = env.reset(seed=3)
    while not obs["lamp"].all():
        obs, *_ = env.step(np.zeros((worlds, 7)))
    return env, obs


def test_cubes_are_seen_during_the_cue_only():
    """Guards against: a cube that stays in the observation, which makes memory unnecessary."""
    env = RobotVectorEnv("recall", 1, task_options={"cue_steps": 2, "delay_steps": 3})
    obs, _ = env.reset(seed=0)
    seen, covered, lamp = [], [], []
    for _ in range(7):
        seen.append(bool(obs["cube_red"].any()))
        lid_of_cube = env.state.mocap_pos[0, env.state.goal[0, 1:], :2]
        covered.append(bool((abs(lid_of_cube - env.state.positions[0, :, :2]) < 0.01).all()))
        lamp.append(bool(obs["lamp"][0, 0]))
        obs, *_ = env.step(STILL)
    assert seen == [True, True, False, False, False, False, False]
    assert covered == [False, False, True, True, True, True, True]
    assert lamp == [False, False, False, False, False, True, True]


def test_lids_stand_in_a_row_in_the_order_of_their_numbers():
    """Guards against: lids numbered at random, so that the middle one doesn't tell where the others are."""
    _, obs = hidden_env(worlds=50)
    right, middle, left = (obs[f"lid_{lid}"][:, :2] for lid in range(3))
    np.testing.assert_allclose(middle - right, left - middle, atol=1e-3)
    np.testing.assert_allclose(np.linalg.norm(left - middle, axis=1), GAP_M, atol=1e-3)
    assert (left[:, 1] > middle[:, 1]).all()


def test_after_the_cue_nothing_but_privileged_keys_depends_on_which_lid_is_right():
    """Guards against: lids in the order of the cubes, which would give the answer away to a policy without memory."""
    env, obs = hidden_env(worlds=120)
    assert not any(obs[f"cube_{color}"].any() for color in ("red", "green", "blue"))
    pairs = np.stack([env.state.goal[:, 0], env.task.right_lid(env.state)], axis=1)
    assert len(np.unique(pairs, axis=0)) == 9  # every cube under every lid


def test_moving_before_the_lamp_is_lit_is_a_failure():
    """Guards against: going to the cube while it is visible, which would need no memory."""
    env = RobotVectorEnv("recall", 1, task_options={"cue_steps": 3, "delay_steps": 10})
    env.reset(seed=1)
    forward = np.array([[1.0, 0, 0, 0, 0, 0, 0]])
    results = [env.step(forward) for _ in range(8)]
    assert results[-1][2][0]
    assert not results[-1][4]["success"][0]


def test_staying_still_until_the_lamp_is_lit_is_allowed():
    """Guards against: a servo's sag, or the start's own deviation, counted as moving."""
    env = RobotVectorEnv("recall", 4, task_options={"cue_steps": 3, "delay_steps": 60})
    env.reset(seed=0)
    for _ in range(63):
        _, _, terminated, truncated, _ = env.step(np.zeros((4, 7)))
    assert not terminated.any()
    assert not truncated.any()


def test_an_arm_that_is_held_moves_only_once_the_lamp_is_lit():
    """Guards against: a cue kept in the arm's position, which makes memory unnecessary."""
    env = RobotVectorEnv("recall", 1, task_options={"cue_steps": 3, "delay_steps": 5, "arm_held": True})
    obs, _ = env.reset(seed=1)
    start, moved_m = env.state.ee_position.copy(), []
    while not obs["lamp"].all():
        obs, _, terminated, _, _ = env.step(np.array([[1.0, 1.0, 0, 0, 0, 0, 1.0]]))
        moved_m.append(np.linalg.norm(env.state.ee_position - start))
    assert len(moved_m) == 8
    assert max(moved_m) < 0.01
    assert not terminated.any()
    for _ in range(5):
        env.step(np.array([[1.0, 1.0, 0, 0, 0, 0, 1.0]]))
    assert np.linalg.norm(env.state.ee_position - start) > 0.02


def test_an_arm_that_is_held_ignores_a_robots_commands_until_the_lamp_is_lit():
    """Guards against: `run --robot sim` moving an arm that `eval` holds."""
    options = {"cue_steps": 3, "delay_steps": 5, "arm_held": True}
    robot = SteppedRobot(WorldOptions("recall", seed=1, task_options=options))
    start = robot.qpos()
    moved_rad = []
    for tick in range(1, 801):
        goal = start + np.array([0.0002 * tick, 0, 0, 0, 0, 0, 0])
        robot.command(Command(goal, np.array([0.0]), robot.now()))
        robot.sleep_until(tick * robot.command_dt)
        moved_rad.append(abs(robot.qpos()[0] - start[0]))
    assert max(moved_rad[:399]) < 0.005  # the lamp is lit after 8 steps of 50 ms
    assert moved_rad[-1] > 0.05


def test_a_wrong_lid_is_a_failure_and_the_right_one_a_success():
    """Guards against: a policy that solves the task by trying all lids."""
    env, _ = hidden_env()
    right = int(env.task.right_lid(env.state)[0])
    for lid in range(3):
        top = env.physics.mocap_pos[0, lid] + [0, 0, 0.05]
        env.state.ee_position[:] = top
        assert bool(env.task.reached(env.state)[0]) == (lid == right)
        assert bool(env.task.failed(env.state)[0]) == (lid != right)


def test_whoever_comes_down_on_the_row_has_chosen_a_lid():
    """Guards against: a policy without memory that hovers between two lids, and stays below chance."""
    env, _ = hidden_env()
    right, left = env.physics.mocap_pos[0, 0], env.physics.mocap_pos[0, 2]
    for share in np.linspace(0, 1, 40):
        env.state.ee_position[:] = right + share * (left - right) + [0, 0, LID_HALF_M + 0.02]
        assert env.task.touched(env.state).sum() == 1


def test_the_delay_can_be_far_longer_than_any_window():
    """Guards against: a delay limited to what a window covers, so that a carried memory can't be tested."""
    env = RobotVectorEnv("recall", 2, task_options={"delay_steps": 150})
    env.reset(seed=0)
    done = np.zeros(2, bool)
    for _ in range(env.max_episode_steps):
        _, _, terminated, _, info = env.step(expert_actions(env))
        done |= terminated
        if done.all():
            break
    assert info["success"].all()
    assert env.state.step.min() > 150


@pytest.mark.parametrize("options", [{"cue_steps": 0}, {"delay_steps": -1}])
def test_a_recall_without_a_cue_is_refused(options):
    """Guards against: a task without a cue, which can only be guessed."""
    with pytest.raises(ValueError, match=r"--task\.(cue|delay)_steps must be >= "):
        make_task("recall", **options)
