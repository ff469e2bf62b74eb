"""The task of moving lids: what is shown, and what memory alone knows."""

import numpy as np
import pytest

from robopolicy.sim.env import RobotVectorEnv
from robopolicy.sim.tasks import make_task
from robopolicy.sim.tasks.swap import CUBE


def lids_and_cube(env: RobotVectorEnv) -> np.ndarray:
    """(worlds, 4, 2): the lids, then the cube."""
    return env.state.mocap_pos[:, [0, 1, 2, CUBE], :2].copy()


def test_the_cube_stays_with_its_lid_through_every_change():
    """Guards against: a lid that jumps, lids that pass through each other, and a cube that comes into view."""
    env = RobotVectorEnv("swap", 30)
    env.reset(seed=0)
    before, least = None, np.inf
    for step in range(env.max_episode_steps - 60):
        if step >= env.task.cue_steps:
            points = lids_and_cube(env)
            own = points[np.arange(30), env.state.goal[:, 0]]
            np.testing.assert_allclose(own, points[:, 3], atol=1e-6)
            gaps = np.linalg.norm(points[:, :3, None] - points[:, None, :3], axis=-1)
            least = min(least, gaps[:, ~np.eye(3, dtype=bool)].min())
            assert before is None or np.abs(points - before).max() < 0.08
            before = points
        env.step(np.zeros((30, 7)))
    assert least > 0.064  # a lid's side


def test_the_places_at_the_end_are_those_of_the_changes():
    """Guards against: changes that are drawn but do not move the lids."""
    env = RobotVectorEnv("swap", 60, task_options={"swaps": 2})
    env.reset(seed=0)
    goals = env.state.goal.copy()
    for _ in range(env.task.cue_steps):
        env.step(np.zeros((60, 7)))
    places = lids_and_cube(env)[:, :3]
    while not env.task.may_move(env.state).all():
        env.step(np.zeros((60, 7)))
    at_end = lids_and_cube(env)[:, :3]
    for world, goal in enumerate(goals):
        order = [0, 1, 2]
        for stays in goal[4:]:
            order = [place if place == stays else 3 - stays - place for place in order]
        np.testing.assert_allclose(at_end[world], places[world][order], atol=1e-6)


def test_after_the_cue_one_observation_does_not_tell_the_lid():
    """Guards against: a cube or a key that gives the lid away once the arm may move."""
    env = RobotVectorEnv("swap", 200)
    obs, _ = env.reset(seed=1)
    assert obs["cube"].any(-1).all()
    while not obs["lamp"].all():
        obs, *_ = env.step(np.zeros((200, 7)))
    assert not obs["cube"].any()
    nearest = [
        np.abs(lids_and_cube(env)[:, :3, 1].argsort(1)[:, place] - env.state.goal[:, 0]) == 0 for place in range(3)
    ]
    assert np.mean(nearest, axis=1) == pytest.approx([1 / 3] * 3, abs=0.1)


@pytest.mark.parametrize("options", [{"swaps": -1}, {"swap_steps": 0}, {"cue_steps": 0}])
def test_a_swap_that_shows_nothing_is_refused(options):
    """Guards against: a change without duration, which would be a jump."""
    with pytest.raises(ValueError, match=r"--task\.\w+ must be >= "):
        make_task("swap", **options)
