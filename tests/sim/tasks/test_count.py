"""The task of counting: what is shown, when, and what may be done."""

import numpy as np
import pytest

from robopolicy.sim.env import RobotVectorEnv
from robopolicy.sim.expert import expert_actions
from robopolicy.sim.tasks import make_task


def test_the_lamp_blinks_as_often_as_the_lid_is_to_be_touched():
    """Guards against: a number that can't be seen, or that the waiting time gives away."""
    env = RobotVectorEnv("count", 12)
    obs, _ = env.reset(seed=0)
    lit, steps = [], 0
    while not obs["lid"].any(1).all():
        assert not obs["lid"].any()  # it appears everywhere at the same step
        lit.append(obs["lamp"][:, 0] > 0)
        obs, *_ = env.step(np.zeros((12, 7)))
        steps += 1
    lit = np.stack(lit).astype(int)
    blinks = (np.diff(lit, axis=0, prepend=0) == 1).sum(0)
    np.testing.assert_array_equal(blinks, env.state.goal[:, 1])
    assert set(blinks.tolist()) == {1, 2, 3}
    assert not obs["lamp"].any()
    assert steps == env.task.wait_steps


def test_the_expert_touches_the_lid_that_often_and_stops():
    """Guards against: demonstrations that don't end, or end one touch early."""
    env = RobotVectorEnv("count", 12)
    env.reset(seed=0)
    touches, near, done = np.zeros(12, int), np.zeros(12, bool), np.zeros(12, bool)
    blinks = env.state.goal[:, 1].copy()
    while not done.all():
        _, _, terminated, truncated, _ = env.step(expert_actions(env))
        now = (env.task.height(env.state) < 0.03) & ~done & env.task.may_move(env.state)
        touches, near = touches + (now & ~near), now
        done |= terminated | truncated
    assert env.succeeded.all()
    np.testing.assert_array_equal(touches, blinks)


def test_one_touch_too_many_and_a_start_too_early_fail():
    """Guards against: a policy that succeeds by touching the lid for ever."""
    env = RobotVectorEnv("count", 1, task_options={"most": 1})
    env.reset(seed=0)
    while env.state.goal[0, 0] != 2:
        env.step(expert_actions(env))
    env.state.ee_position[0] = env.state.mocap_pos[0, 1] + [0, 0, 0.04]
    assert env.task.failed(env.state).all()
    early = RobotVectorEnv("count", 1)
    early.reset(seed=0)
    assert any(early.step(np.array([[1.0, 0, 0, 0, 0, 0, 1]]))[2][0] for _ in range(10))


@pytest.mark.parametrize("options", [{"most": 0}, {"blink_steps": 0}, {"delay_steps": -1}])
def test_a_count_of_nothing_is_refused(options):
    """Guards against: a task that is a guess."""
    with pytest.raises(ValueError, match=r"--task\.\w+ must be >= "):
        make_task("count", **options)
