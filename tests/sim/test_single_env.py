"""One world for `gymnasium.make`."""

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import robopolicy.sim
from robopolicy.sim.single_env import RobotEnv
from robopolicy.sim.tasks import TASKS

assert robopolicy.sim


@pytest.mark.parametrize("task", TASKS)
def test_every_task_is_registered_and_passes_gymnasiums_checker(task):
    """Other people's training loops rely on what the checker checks."""
    env = gymnasium.make(f"robopolicy/{task.capitalize()}-v0")
    assert isinstance(env.unwrapped, RobotEnv)
    check_env(env.unwrapped, skip_render_check=True)


def test_seeding_is_reproducible_and_unseeded_resets_go_on():
    """The same scene again and again would be learned by heart."""
    env = gymnasium.make("robopolicy/Place-v0")
    first, info = env.reset(seed=11)
    second, _ = env.reset()
    again, again_info = env.reset(seed=11)
    assert info["instruction"] == again_info["instruction"]
    np.testing.assert_array_equal(first["cube_red"], again["cube_red"])
    assert not np.array_equal(first["cube_red"], second["cube_red"])


def test_render_gives_the_front_picture():
    """A video recorder gets nothing from an environment that only has observations."""
    pytest.importorskip("mujoco_warp", reason="pictures need the extra 'sim'")
    env = RobotEnv("lift", render_mode="rgb_array")
    obs, _ = env.reset(seed=0)
    picture = env.render()
    assert picture is not None
    assert picture.shape == (64, 64, 3)
    np.testing.assert_array_equal(picture, obs["front"])
