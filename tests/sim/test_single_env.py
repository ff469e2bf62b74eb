"""One world for `gymnasium.make`."""

import copy
import pickle

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from gymnasium.wrappers.vector import DictInfoToList

import robopolicy.sim
from robopolicy import components
from robopolicy.components import kinds
from robopolicy.sim.randomization import Randomization
from robopolicy.sim.single_env import RobotEnv

assert robopolicy.sim


# Joint targets of two arms have the limits of their joints, which are not symmetric.
@pytest.mark.filterwarnings("ignore:.*symmetric and normalized space")
@pytest.mark.parametrize("task", kinds("task"))
def test_every_task_is_registered_and_passes_gymnasiums_checker(task):
    """Guards against: an environment that gymnasium's checker, and so other people's training loops, refuse."""
    env = gymnasium.make(f"robopolicy/{task.capitalize()}-v0")
    assert isinstance(env.unwrapped, RobotEnv)
    check_env(env.unwrapped, skip_render_check=True)


def test_a_task_registered_later_gets_an_id_too(monkeypatch):
    """Guards against: `gymnasium.make` knowing the tasks of its first import only, never a plug-in's."""
    monkeypatch.setattr("robopolicy.components._registered", dict(components._registered))
    monkeypatch.setattr("robopolicy.components._by_options", dict(components._by_options))

    @components.register("task", "reach_again")
    class ReachAgain(components.component("task", "reach").make):
        pass

    env = gymnasium.make("robopolicy/Reach_again-v0", max_episode_steps=3)
    assert env.reset(seed=0)[1]["instruction"]
    del gymnasium.registry["robopolicy/Reach_again-v0"]


def test_an_unknown_option_of_an_environment_is_named():
    """Guards against: a typo in `gymnasium.make(id, ...)` that ends in a message about another class."""
    with pytest.raises(TypeError, match=r"no option 'camera'; it has: device, physics, cameras"):
        RobotEnv("lift", camera="front")


def test_seeding_is_reproducible_and_unseeded_resets_go_on():
    """Guards against: the same scene again and again, which would be learned by heart."""
    env = gymnasium.make("robopolicy/Place-v0")
    first, info = env.reset(seed=11)
    second, _ = env.reset()
    again, again_info = env.reset(seed=11)
    assert info["instruction"] == again_info["instruction"]
    np.testing.assert_array_equal(first["cube_red"], again["cube_red"])
    assert not np.array_equal(first["cube_red"], second["cube_red"])


def test_render_gives_the_front_image():
    """Guards against: a video recorder that gets no image."""
    pytest.importorskip("mujoco_warp", reason="images need the extra 'sim'")
    env = RobotEnv("lift", render_mode="rgb_array")
    obs, _ = env.reset(seed=0)
    image = env.render()
    assert image is not None
    assert image.shape == (64, 64, 3)
    np.testing.assert_array_equal(image, obs["front"])


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda env: pickle.loads(pickle.dumps(env))])
def test_a_copy_continues_as_the_original(copied):
    """Guards against: an environment that can't be sent to another process, or whose copy starts from another state."""
    env = RobotEnv("place", randomization=Randomization(mass=0.5, delay_steps=2))
    env.reset(seed=3)
    rng = np.random.default_rng(0)
    for _ in range(5):
        env.step(rng.uniform(-1, 1, 7))
    other = copied(env)
    for _ in range(5):
        action = rng.uniform(-1, 1, 7)
        (mine, *rest), (theirs, *their_rest) = env.step(action), other.step(action)
        assert rest == their_rest
        for key, values in mine.items():
            np.testing.assert_array_equal(values, theirs[key], err_msg=key)
    assert env.reset()[1] == other.reset()[1]


def test_info_holds_pythons_own_numbers():
    """Guards against: numpy.bool in info, which gymnasium's NumpyToTorch can't convert."""
    env = RobotEnv("lift")
    infos = [env.reset(seed=0)[1], env.step(np.zeros(7))[-1]]
    assert {type(value) for info in infos for value in info.values()} == {bool, int, float, str}


def test_numpy_to_torch_converts_observations_and_info():
    """Guards against: an environment that gymnasium's wrapper for torch refuses."""
    pytest.importorskip("array_api_compat", reason="gymnasium's NumpyToTorch needs array-api-compat")
    from gymnasium.wrappers import NumpyToTorch

    obs, info = NumpyToTorch(RobotEnv("lift")).reset(seed=0)
    assert all(isinstance(value, torch.Tensor) for value in obs.values())
    assert not info["success"]


def test_the_vector_infos_convert_to_a_list_of_dicts():
    """Guards against: a value in a vector environment's info that is not an array with a row for each world."""
    env = DictInfoToList(gymnasium.make_vec("robopolicy/Lift-v0", num_envs=3))
    _, infos = env.reset(seed=0)
    assert [info["instruction"] for info in infos] == list(env.unwrapped.instructions)
    *_, infos = env.step(np.zeros((3, 7)))
    assert [info["seed"] for info in infos] == [0, 1, 2]
