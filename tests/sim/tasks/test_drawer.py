"""The cabinet with two drawers."""

import numpy as np

from robopolicy.sim.env import RobotVectorEnv
from robopolicy.sim.tasks.drawer import CABINET_X, CABINET_Y, HANDLE_OFFSET_M, handles


def opened(drawer: int, by_m: float, goal: int) -> RobotVectorEnv:
    env = RobotVectorEnv("drawer", 1)
    env.reset(seed=0)
    env.state.goal[:] = goal
    env.physics.qpos[:, -2 + drawer] = by_m
    return env


def test_the_named_drawer_must_be_open_by_ten_centimetres():
    """Guards against: a drawer pulled a little counted as open."""
    env = opened(0, 0.09, goal=0)
    assert not env.task.reached(env.state)
    env = opened(0, 0.11, goal=0)
    assert env.task.reached(env.state)
    assert not env.task.failed(env.state)


def test_opening_the_other_drawer_is_a_failure():
    """Guards against: a policy that solves the task by opening both drawers."""
    env = opened(1, 0.06, goal=0)
    assert env.task.failed(env.state)
    assert not env.task.reached(env.state)


def test_handles_are_where_the_physics_has_them():
    """Guards against: the observation of a handle that lags its drawer, which would be grasped beside it."""
    env = opened(1, 0.07, goal=1)
    bodies = env.physics.batch.bind("xpos")
    env.physics.batch.forward()
    for drawer, color in enumerate(("red", "blue")):
        middle = bodies[0, env.scene.model.body(f"drawer_{color}").id].copy()
        middle[2] += HANDLE_OFFSET_M[drawer][2]
        np.testing.assert_allclose(handles(env.state)[0, drawer], middle, atol=1e-9)


def test_handles_cover_thirty_by_forty_centimetres():
    """Guards against: placement so narrow that one remembered motion solves the task."""
    ys = [y + offset[1] for offset in HANDLE_OFFSET_M for y in CABINET_Y]
    assert np.ptp(CABINET_X) >= 0.3 - 1e-9
    assert np.ptp(ys) >= 0.4 - 1e-9
