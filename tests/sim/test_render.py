"""Ray-traced pictures of all worlds."""

import numpy as np
import pytest

from robopolicy.sim.env import RobotVectorEnv

pytest.importorskip("mujoco_warp", reason="pictures need the extra 'sim'")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture(scope="module")
def env() -> RobotVectorEnv:
    return RobotVectorEnv("lift", 3, cameras=("wrist", "front"), image_size=64)


def reddest(picture: np.ndarray) -> tuple[float, float]:
    """Mean row and column of the clearly red pixels."""
    red = picture.astype(int)
    rows, columns = np.nonzero((red[..., 0] > 100) & (red[..., 1] < 60) & (red[..., 2] < 60))
    assert len(rows) > 0
    return float(rows.mean()), float(columns.mean())


def test_pictures_fit_the_declared_space(env):
    """Images are uint8, height x width x 3, one key per camera."""
    obs, _ = env.reset(seed=0)
    for camera in ("front", "wrist"):
        assert obs[camera].shape == (3, 64, 64, 3)
        assert obs[camera].dtype == np.uint8
    assert env.observation_space.contains(obs)


def test_every_world_has_its_own_picture_whatever_its_index(env):
    """Pictures of one world shown for another would decouple images from actions."""
    obs, _ = env.reset(seed=[4, 5, 6])
    swapped, _ = env.reset(seed=[6, 5, 4])
    for camera in ("front", "wrist"):
        np.testing.assert_array_equal(obs[camera][0], swapped[camera][2])
        np.testing.assert_array_equal(obs[camera][1], swapped[camera][1])
        assert not np.array_equal(obs[camera][0], obs[camera][1])


def test_front_picture_is_upright_and_red_is_red(env):
    """A flipped or BGR picture trains well and fails on the robot: +y is right, nearer to the camera is lower."""
    env.reset(seed=0)
    places = {}
    for where, (x, y) in {"middle": (0.5, 0.0), "right": (0.5, 0.15), "near": (0.62, 0.0)}.items():
        cube = env.physics.qpos[:, env.scene.object_slice].reshape(3, -1, 7)[0]
        env.physics.qpos[0, env.scene.object_slice] = np.concatenate([[x, y, 0.02, 1, 0, 0, 0], cube[1:].ravel()])
        env._observe_state()
        places[where] = reddest(env._observation()["front"][0])
    assert places["right"][1] > places["middle"][1] + 10
    assert places["near"][0] > places["middle"][0] + 5


def test_the_whole_placement_area_is_in_the_front_picture(env):
    """A cube outside the picture can't be found by any policy."""
    env.reset(seed=0)
    for x in (0.35, 0.65):
        for y in (-0.2, 0.2):
            env.physics.qpos[0, env.scene.object_slice.start :][:7] = [x, y, 0.02, 1, 0, 0, 0]
            env._observe_state()
            row, column = reddest(env._observation()["front"][0])
            assert 2 < row < 61
            assert 2 < column < 61


def test_pictures_are_reproducible(env):
    """Demos and rollouts must show the same scene alike."""
    first, _ = env.reset(seed=1)
    again, _ = env.reset(seed=1)
    np.testing.assert_array_equal(first["front"], again["front"])
