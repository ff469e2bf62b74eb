"""When reach, lift, place and stack count as done, and when as lost."""

from dataclasses import replace

import numpy as np
import pytest

from robopolicy.sim.env import RobotVectorEnv
from robopolicy.sim.tasks import State
from robopolicy.sim.tasks._cubes import HALF_M, PLATE_TOP_M


def state_of(task: str) -> tuple[RobotVectorEnv, State]:
    """One world in which red (0) is the named cube, blue (2) or purple (1) the other part of the goal."""
    env = RobotVectorEnv(task, 1)
    env.reset(seed=0)
    goal = {"place": [[0, 1]], "stack": [[0, 2]]}.get(task, [[0]])
    return env, replace(env.state, goal=np.array(goal), objects=env.state.objects.copy(), opening=np.array([0.08]))


def move(state: State, cube: int, to: np.ndarray) -> None:
    state.objects[:, cube, :3] = to


def test_reach_is_done_at_the_named_cube_and_lost_at_another():
    """Guards against: a task that any cube satisfies, which would make the instruction meaningless."""
    env, state = state_of("reach")
    over = [0.0, 0.0, 0.025]
    at_red = replace(state, ee_position=state.positions[:, 0] + over)
    at_blue = replace(state, ee_position=state.positions[:, 2] + over)
    assert env.task.reached(at_red)
    assert not env.task.failed(at_red)
    assert env.task.failed(at_blue)
    assert not env.task.reached(at_blue)


def test_lift_is_done_five_centimetres_up_and_lost_with_another_cube():
    """Guards against: a policy that solves the task by lifting all three cubes in turn."""
    env, state = state_of("lift")
    move(state, 0, state.positions[0, 0] + [0, 0, 0.049])
    assert not env.task.reached(state)
    move(state, 0, state.positions[0, 0] + [0, 0, 0.002])
    assert env.task.reached(state)
    assert not env.task.failed(state)
    move(state, 1, state.positions[0, 1] + [0, 0, 0.051])
    assert env.task.failed(state)


def test_a_cube_that_fell_off_the_table_ends_the_episode():
    """Guards against: an episode that runs on to the time limit with a cube on the floor."""
    for task in ("reach", "lift", "place", "stack"):
        env, state = state_of(task)
        assert not env.task.failed(state)
        move(state, 1, np.array([0.5, 0.7, -0.2]))
        assert env.task.failed(state), task


@pytest.mark.parametrize(
    ("sideways_m", "opening_m", "speed_m_s", "done"),
    [
        (0.0, 0.08, 0.0, True),
        (0.029, 0.08, 0.0, True),
        (0.031, 0.08, 0.0, False),
        (0.0, 0.04, 0.0, False),
        (0.0, 0.08, 0.2, False),
    ],
)
def test_place_asks_for_three_centimetres_release_and_rest(sideways_m, opening_m, speed_m_s, done):
    """Guards against: a cube that is held or sliding over the plate counted as put on it."""
    env, state = state_of("place")
    plate = state.mocap_pos[0, 1]
    move(state, 0, [plate[0] + sideways_m, plate[1], PLATE_TOP_M + HALF_M])
    state = replace(state, opening=np.array([opening_m]), object_speed=np.full((1, 3), speed_m_s))
    assert bool(env.task.reached(state)[0]) == done


def test_place_on_the_other_plate_is_not_done():
    """Guards against: a cube on the wrong plate counted as success."""
    env, state = state_of("place")
    plate = state.mocap_pos[0, 0]
    move(state, 0, [plate[0], plate[1], PLATE_TOP_M + HALF_M])
    assert not env.task.reached(replace(state, object_speed=np.zeros((1, 3))))


def test_stack_is_done_on_the_named_cube_only():
    """Guards against: a cube on the wrong one of the two counted as stacked."""
    env, state = state_of("stack")
    state = replace(state, object_speed=np.zeros((1, 3)))
    for base, done in ((2, True), (1, False)):
        move(state, 0, state.positions[0, base] + [0.01, 0, 2 * HALF_M])
        assert bool(env.task.reached(state)[0]) == done
    move(state, 0, state.positions[0, 2] * [1, 1, 0] + [0.04, 0, HALF_M])
    assert not env.task.reached(state)
