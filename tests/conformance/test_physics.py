"""The contract of `Physics`, for every implementation."""

from collections.abc import Callable
from typing import Any

import mujoco
import numpy as np
import pytest
import torch

from robopolicy.sim.physics import BatchPhysics, Fault, Physics
from robopolicy.sim.scene import Scene, build_scene
from robopolicy.sim.tasks import make_task
from robopolicy.types import Array

WORLDS = 4
FIELDS = ("geom_friction", "geom_rgba")
EVERYWHERE = np.ones(WORLDS, bool)


def batch(scene: Scene, **options: Any) -> Physics:
    return BatchPhysics(scene, WORLDS, fields=FIELDS, **options)


def warp(scene: Scene, **options: Any) -> Physics:
    pytest.importorskip("mujoco_warp", reason="this physics needs the extra 'sim'")
    from robopolicy.sim.warp_physics import WarpPhysics

    return WarpPhysics(scene, WORLDS, "cpu", FIELDS, **options)


IMPLEMENTATIONS: dict[str, Callable[..., Physics]] = {"mujoco.batch": batch, "mujoco_warp": warp}


@pytest.fixture(scope="module")
def scene() -> Scene:
    return build_scene(("cubes", "plates"))


@pytest.fixture(params=IMPLEMENTATIONS, scope="module")
def physics(request, scene) -> Physics:
    return IMPLEMENTATIONS[request.param](scene)


def given(physics: Physics, array: np.ndarray) -> Array:
    """An array of the kind that the physics takes."""
    if isinstance(physics.qpos, np.ndarray):
        return array
    tensor = torch.from_numpy(array)
    return tensor.float() if tensor.is_floating_point() else tensor


def seen(array: Array) -> np.ndarray:
    """A copy of an array on the host."""
    return array.copy() if isinstance(array, np.ndarray) else array.cpu().numpy().copy()


def reset(physics: Physics, mask: np.ndarray, qpos: np.ndarray, mocap_pos: np.ndarray) -> None:
    physics.reset(*(given(physics, array) for array in (mask, qpos, mocap_pos)))


def start(physics: Physics, scene: Scene) -> tuple[np.ndarray, np.ndarray]:
    """Every world with its own scene, at rest."""
    setups = [make_task("place").sample(scene, np.random.default_rng(seed)) for seed in range(WORLDS)]
    qpos = np.stack([setup.qpos for setup in setups])
    mocap_pos = np.stack([setup.mocap_pos for setup in setups])
    reset(physics, EVERYWHERE, qpos, mocap_pos)
    return qpos, mocap_pos


def targets(seed: int) -> np.ndarray:
    """Joint and finger targets near home, different for each world."""
    rng = np.random.default_rng(seed)
    home = np.array([0.0, -0.1289, 0.0, -2.5263, 0.0, 2.3974, 0.7854, 0.04, 0.04])
    return np.clip(home + rng.normal(size=(WORLDS, 9)) * 0.05, [-3] * 7 + [0, 0], [3] * 7 + [0.04, 0.04])


def test_control_steps_equal_those_of_the_c_engine(physics, scene):
    """Guards against: worlds that share state, a skipped substep or a lost warm start."""
    qpos, mocap_pos = start(physics, scene)
    singles = []
    for world in range(WORLDS):
        data = mujoco.MjData(scene.model)
        data.qpos[:], data.mocap_pos[:] = qpos[world], mocap_pos[world]
        singles.append(data)
    for step in range(5):
        ctrl = targets(step)
        physics.step(given(physics, ctrl))
        for world, data in enumerate(singles):
            data.ctrl[:] = ctrl[world]
            for _ in range(scene.n_substeps):
                mujoco.mj_step(scene.model, data)
            np.testing.assert_allclose(seen(physics.qpos[world]), data.qpos, atol=1e-5)
            np.testing.assert_allclose(seen(physics.qvel[world]), data.qvel, atol=1e-3)


def test_reset_of_some_worlds_leaves_the_rest_bit_equal(physics, scene):
    """Guards against: an episode's end in one world that disturbs its neighbors, then or later."""
    qpos, mocap_pos = start(physics, scene)
    states = (physics.qpos, physics.qvel, physics.mocap_pos)
    mask = np.array([True, False, True, False])
    for _ in range(2):  # the first is run as it is, the second replayed
        physics.step(given(physics, targets(0)))
        before = [seen(state) for state in states]
        reset(physics, mask, qpos, mocap_pos)
        for now, then in zip(states, before, strict=True):
            assert np.array_equal(seen(now)[~mask], then[~mask])
        assert np.array_equal(seen(physics.qpos)[mask], seen(given(physics, qpos))[mask])
        assert np.array_equal(seen(physics.mocap_pos)[mask], seen(given(physics, mocap_pos))[mask])
        assert not seen(physics.qvel)[mask].any()
    physics.step(given(physics, targets(1)))
    after = seen(physics.qpos)
    start(physics, scene)
    for _ in range(2):
        physics.step(given(physics, targets(0)))
    physics.step(given(physics, targets(1)))
    assert np.array_equal(after[~mask], seen(physics.qpos)[~mask])


def test_a_reset_world_forgets_its_past(physics, scene):
    """Guards against: warm starts or controls left over, which would make an episode depend on the one before."""
    qpos, mocap_pos = start(physics, scene)
    physics.step(given(physics, targets(1)))
    fresh = seen(physics.qpos)
    for seed in range(3):
        physics.step(given(physics, targets(seed)))
    reset(physics, EVERYWHERE, qpos, mocap_pos)
    physics.step(given(physics, targets(1)))
    assert np.array_equal(fresh, seen(physics.qpos))


def test_bodies_moved_by_hand_are_where_they_were_put(physics, scene):
    """Guards against: a plate that only looks as if it had moved, which would be hit by nothing."""
    _, mocap_pos = start(physics, scene)
    physics.mocap_pos[1, 0] += 0.05
    physics.step(given(physics, targets(0)))
    moved = seen(physics.mocap_pos) - seen(given(physics, mocap_pos))
    np.testing.assert_allclose(moved[1, 0], 0.05, atol=1e-6)
    assert not np.delete(moved, 1, axis=0).any()


def test_worlds_keep_their_own_model_fields(physics, scene):
    """Guards against: friction or colors of one world in another, which would make an episode depend on its neighbors."""
    mask = np.array([False, True, False, False])
    friction = np.repeat(scene.model.geom_friction[None] * 0.0 + 0.01, WORLDS, 0)
    physics.change(given(physics, mask), {"geom_friction": given(physics, friction)})
    values = seen(physics.fields["geom_friction"])
    np.testing.assert_allclose(values[1], 0.01, rtol=1e-6)
    np.testing.assert_allclose(values[~mask], np.repeat(scene.model.geom_friction[None], 3, 0), rtol=1e-6)
    physics.change(given(physics, EVERYWHERE), {"geom_friction": given(physics, seen(values[[0] * WORLDS]))})


def test_numbers_that_are_none_are_a_fault_of_their_world_alone_until_its_reset(physics, scene, tmp_path, monkeypatch):
    """Guards against: an episode gone wrong that counts, or spoils its neighbors."""
    monkeypatch.chdir(tmp_path)  # where MuJoCo writes its log
    qpos, mocap_pos = start(physics, scene)
    physics.qvel[2, 3] = float("nan")
    physics.step(given(physics, targets(0)))
    assert seen(physics.faults()).tolist() == [0, 0, Fault.PHYSICS, 0]
    assert np.isfinite(seen(physics.qpos)[[0, 1, 3]]).all()
    reset(physics, EVERYWHERE, qpos, mocap_pos)
    physics.step(given(physics, targets(0)))
    assert not seen(physics.faults()).any()
