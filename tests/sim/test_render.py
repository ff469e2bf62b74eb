"""Ray-traced images of all worlds."""

import numpy as np
import pytest
import torch

from robopolicy.sim.env import RobotVectorEnv

pytest.importorskip("mujoco_warp", reason="images need the extra 'sim'")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture(scope="module")
def env() -> RobotVectorEnv:
    return RobotVectorEnv("lift", 3, cameras=("wrist", "front"), image_size=64)


def reddest(image: np.ndarray) -> tuple[float, float]:
    """Mean row and column of the clearly red pixels."""
    red = image.astype(int)
    rows, columns = np.nonzero((red[..., 0] > 100) & (red[..., 1] < 60) & (red[..., 2] < 60))
    assert len(rows) > 0
    return float(rows.mean()), float(columns.mean())


def test_images_fit_the_declared_space(env):
    """Guards against: images of another type, shape or key than declared."""
    obs, _ = env.reset(seed=0)
    for camera in ("front", "wrist"):
        assert obs[camera].shape == (3, 64, 64, 3)
        assert obs[camera].dtype == np.uint8
    assert env.observation_space.contains(obs)


def test_every_world_has_its_own_image_whatever_its_index(env):
    """Guards against: images of one world shown for another, which would decouple images from actions."""
    obs, _ = env.reset(seed=[4, 5, 6])
    swapped, _ = env.reset(seed=[6, 5, 4])
    for camera in ("front", "wrist"):
        np.testing.assert_array_equal(obs[camera][0], swapped[camera][2])
        np.testing.assert_array_equal(obs[camera][1], swapped[camera][1])
        assert not np.array_equal(obs[camera][0], obs[camera][1])


def test_front_image_is_upright_and_red_is_red(env):
    """Guards against: a flipped or BGR image, which trains well and fails on the robot."""
    env.reset(seed=0)
    places = {}
    for where, (x, y) in {"middle": (0.5, 0.0), "right": (0.5, 0.15), "near": (0.62, 0.0)}.items():
        cube = env.physics.qpos[:, env.scene.object_slice].reshape(3, -1, 7)[0]
        env.physics.qpos[0, env.scene.object_slice] = np.concatenate([[x, y, 0.02, 1, 0, 0, 0], cube[1:].ravel()])
        places[where] = reddest(env.observe()["front"][0])
    assert places["right"][1] > places["middle"][1] + 10
    assert places["near"][0] > places["middle"][0] + 5


def test_the_whole_placement_area_is_in_the_front_image(env):
    """Guards against: a cube that starts outside the image."""
    env.reset(seed=0)
    for x in (0.35, 0.65):
        for y in (-0.2, 0.2):
            env.physics.qpos[0, env.scene.object_slice.start :][:7] = [x, y, 0.02, 1, 0, 0, 0]
            row, column = reddest(env.observe()["front"][0])
            assert 2 < row < 61
            assert 2 < column < 61


def test_images_are_reproducible(env):
    """Guards against: demos and rollouts that show the same scene differently."""
    first, _ = env.reset(seed=1)
    again, _ = env.reset(seed=1)
    np.testing.assert_array_equal(first["front"], again["front"])


@pytest.fixture(scope="module", params=["batch", "warp"])
def deep_env(request) -> RobotVectorEnv:
    """Two worlds of `place` that also show depth and segmentation, by each physics."""
    return RobotVectorEnv(
        "place", 2, physics=request.param, cameras=("wrist", "front"), image_size=32, depth=True, segmentation=True
    )


def test_depth_is_the_distance_along_the_cameras_axis(deep_env):
    """Guards against: distances along each pixel's ray, which would bend every plane."""
    obs, _ = deep_env.reset(seed=0)
    assert deep_env.observation_space["front_depth"].shape == (2, 32, 32)
    depth = np.asarray(obs["front_depth"])
    model = deep_env.scene.model
    camera = model.camera("front")
    axis = np.array(camera.mat0).reshape(3, 3)[:, 2]
    rows, columns = np.nonzero(np.asarray(obs["front_segmentation"])[0] == model.geom("table").id)
    assert len(rows) > 300
    half = np.tan(np.deg2rad(model.cam_fovy[camera.id]) / 2)
    right, down = (2 * columns + 1) / 32 - 1, (2 * rows + 1) / 32 - 1
    rays = np.stack([right * half, -down * half, -np.ones_like(right)], -1) @ np.array(camera.mat0).reshape(3, 3).T
    heights = camera.pos[2] + rays[:, 2] * depth[0, rows, columns]
    np.testing.assert_allclose(heights, 0.0, atol=2e-3)
    assert axis[2] > 0


def test_segmentation_names_the_geoms_that_are_seen(deep_env):
    """Guards against: segmentation numbers of another camera, or of sites, which label the wrong things."""
    obs, _ = deep_env.reset(seed=0)
    seen = np.asarray(obs["front_segmentation"])
    assert seen.dtype == np.int32
    assert deep_env.observation_space["front_segmentation"].contains(seen)
    model, image = deep_env.scene.model, np.asarray(obs["front"])
    red = int(model.body("cube_red").geomadr[0])
    colors = image[seen == red].astype(int)
    assert len(colors) > 5
    assert (colors[:, 0] > 1.5 * colors[:, 1]).all()
    assert set(np.unique(seen)) <= set(range(-1, model.ngeom))


def test_both_kinds_of_physics_show_the_same_images():
    """Guards against: a policy trained on the CPU's images and measured on others."""
    kinds = [
        RobotVectorEnv(
            "place", 2, physics=kind, cameras=("wrist", "front"), image_size=32, depth=True, segmentation=True
        )
        for kind in ("batch", "warp")
    ]
    for env in kinds:
        env.reset(seed=3)
    states = kinds[0].states()
    kinds[1].physics.qpos.copy_(torch.from_numpy(states[:, : kinds[0].scene.model.nq]))
    theirs, ours = kinds[0].observe(), kinds[1].observe()
    for key in ("wrist", "front", "wrist_depth", "front_depth", "front_segmentation"):
        difference = np.abs(ours[key].numpy().astype(float) - theirs[key])
        assert (difference > (2 if theirs[key].dtype == np.uint8 else 1e-3)).mean() < 0.002, key


@pytest.mark.slow
def test_shadows_darken_and_nothing_else():
    """Guards against: an option that does nothing, or lights the scene otherwise."""
    plain, shaded = (
        RobotVectorEnv("place", 1, cameras=("front",), image_size=32, shadows=shadows).reset(seed=0)[0]["front"]
        for shadows in (False, True)
    )
    change = shaded.astype(int) - plain
    assert change.min() < -10
    assert change.max() <= 1
