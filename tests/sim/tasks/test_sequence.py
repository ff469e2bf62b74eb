"""The task of order: what is shown, when, and what may be done."""

import numpy as np
import pytest

from robopolicy.sim.env import RobotVectorEnv
from robopolicy.sim.expert import expert_actions
from robopolicy.sim.tasks import make_task
from robopolicy.sim.tasks._lids import LAMP_M


def waited(worlds: int, **options: int) -> tuple[RobotVectorEnv, dict[str, np.ndarray]]:
    """Episodes in which the arm may move."""
    env = RobotVectorEnv("sequence", worlds, task_options=options)
    obs, _ = env.reset(seed=1)
    while not obs["go"].all():
        obs, *_ = env.step(np.zeros((worlds, 7)))
    return env, obs


def test_the_lamp_stands_over_the_lids_in_their_order_and_then_says_go():
    """Guards against: an order that is never shown, or that can still be seen when the arm may move."""
    env = RobotVectorEnv("sequence", 1, task_options={"length": 3, "show_steps": 2, "delay_steps": 3})
    obs, _ = env.reset(seed=0)
    seen, order = [], env.state.goal[0, 2:].tolist()
    while not obs["go"][0, 0]:
        lamp = obs["lamp"][0]
        if lamp.any():
            lids = np.stack([obs[f"lid_{lid}"][0, :2] for lid in range(3)])
            seen.append(int(np.abs(lids - lamp[:2]).sum(1).argmin()))
        obs, *_ = env.step(np.zeros((1, 7)))
    assert seen == [lid for lid in order for _ in range(2)]
    np.testing.assert_allclose(obs["lamp"][0], LAMP_M, atol=1e-6)


def test_after_the_demonstration_only_memory_tells_the_order():
    """Guards against: observations that differ by the order although nothing of it can be seen any more."""
    env, obs = waited(40)
    orders = {tuple(order) for order in env.state.goal[:, 2:].tolist()}
    assert len(orders) > 8  # of 3 * 2 * 2
    assert len(np.unique(obs["lamp"], axis=0)) == 1
    assert set(obs) >= {"lid_0", "lid_1", "lid_2", "lamp", "go"}


def test_a_lid_touched_out_of_turn_or_a_start_too_early_fails():
    """Guards against: a policy that succeeds by touching all lids, or by going while the order is shown."""
    env, _ = waited(1)
    wrong = 3 - env.state.goal[0, 0] - (env.state.goal[0, 0] + 1) % 3
    env.state.ee_position[0] = env.state.mocap_pos[0, wrong] + [0, 0, 0.04]
    assert env.task.failed(env.state).all()
    early = RobotVectorEnv("sequence", 1)
    early.reset(seed=0)
    ended = [early.step(np.array([[1.0, 0, 0, 0, 0, 0, 1]]))[2][0] for _ in range(10)]
    assert any(ended)
    assert not early.succeeded.any()


def test_the_expert_touches_as_many_lids_as_asked():
    """Guards against: a longer order that nobody can demonstrate."""
    env, _ = waited(4, length=4)
    done = np.zeros(4, bool)
    while not done.all():
        _, _, terminated, truncated, _ = env.step(expert_actions(env))
        done |= terminated | truncated
    assert env.succeeded.all()
    assert env.solved.tolist() == [4] * 4


@pytest.mark.parametrize("options", [{"length": 0}, {"show_steps": 0}, {"delay_steps": -1}])
def test_a_sequence_that_shows_nothing_is_refused(options):
    """Guards against: a task that is a guess."""
    with pytest.raises(ValueError, match=r"--task\.\w+ must be >= "):
        make_task("sequence", **options)
