"""The contract of `Physics`, for every implementation."""

from collections.abc import Callable

import mujoco
import numpy as np
import pytest

from robopolicy.sim.physics import BatchPhysics, Physics
from robopolicy.sim.scene import Scene, build_scene
from robopolicy.sim.tasks import make_task

WORLDS = 4
IMPLEMENTATIONS: dict[str, Callable[[Scene, int], Physics]] = {"mujoco.batch": BatchPhysics}


@pytest.fixture(scope="module")
def scene() -> Scene:
    return build_scene(("cubes", "plates"))


@pytest.fixture(params=IMPLEMENTATIONS, scope="module")
def physics(request, scene) -> Physics:
    return IMPLEMENTATIONS[request.param](scene, WORLDS)


def start(physics: Physics, scene: Scene) -> tuple[np.ndarray, np.ndarray]:
    """Every world with its own scene, at rest."""
    setups = [make_task("place").sample(scene, np.random.default_rng(seed)) for seed in range(WORLDS)]
    qpos = np.stack([setup.qpos for setup in setups])
    mocap_pos = np.stack([setup.mocap_pos for setup in setups])
    physics.reset(np.ones(WORLDS, bool), qpos, mocap_pos)
    return qpos, mocap_pos


def targets(seed: int) -> np.ndarray:
    """Joint and finger targets near home, different for each world."""
    rng = np.random.default_rng(seed)
    home = np.array([0.0, -0.1289, 0.0, -2.5263, 0.0, 2.3974, 0.7854, 0.04, 0.04])
    return np.clip(home + rng.normal(size=(WORLDS, 9)) * 0.05, [-3] * 7 + [0, 0], [3] * 7 + [0.04, 0.04])


def test_control_steps_equal_those_of_the_c_engine(physics, scene):
    """Worlds that share state, a skipped substep or a lost warm start show within a few control steps."""
    qpos, mocap_pos = start(physics, scene)
    singles = []
    for world in range(WORLDS):
        data = mujoco.MjData(scene.model)
        data.qpos[:], data.mocap_pos[:] = qpos[world], mocap_pos[world]
        singles.append(data)
    for step in range(5):
        ctrl = targets(step)
        physics.step(ctrl)
        for world, data in enumerate(singles):
            data.ctrl[:] = ctrl[world]
            for _ in range(scene.n_substeps):
                mujoco.mj_step(scene.model, data)
            np.testing.assert_allclose(physics.qpos[world], data.qpos, atol=1e-5)
            np.testing.assert_allclose(physics.qvel[world], data.qvel, atol=1e-3)


def test_reset_of_some_worlds_leaves_the_rest_bit_equal(physics, scene):
    """An episode that ends in one world must not disturb its neighbours."""
    qpos, mocap_pos = start(physics, scene)
    physics.step(targets(0))
    before = np.array(physics.qpos), np.array(physics.qvel), np.array(physics.mocap_pos)
    mask = np.array([True, False, True, False])
    physics.reset(mask, qpos, mocap_pos)
    for now, then in zip((physics.qpos, physics.qvel, physics.mocap_pos), before, strict=True):
        assert np.array_equal(now[~mask], then[~mask])
    assert np.array_equal(physics.qpos[mask], qpos[mask])
    assert not physics.qvel[mask].any()


def test_a_reset_world_forgets_its_past(physics, scene):
    """Warm starts or controls left over would make an episode depend on the one before."""
    qpos, mocap_pos = start(physics, scene)
    physics.step(targets(1))
    fresh = np.array(physics.qpos)
    for seed in range(3):
        physics.step(targets(seed))
    physics.reset(np.ones(WORLDS, bool), qpos, mocap_pos)
    physics.step(targets(1))
    assert np.array_equal(fresh, physics.qpos)
