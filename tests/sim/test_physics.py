"""What is particular to the CPU's physics; its contract is tested in conformance/."""

import numpy as np

from robopolicy.sim.physics import BatchPhysics
from robopolicy.sim.scene import build_scene


def test_poses_are_current_after_forward():
    """Guards against: images one substep behind the observation, which would teach the policy a delay."""
    scene = build_scene(("cubes",))
    physics = BatchPhysics(scene, 2, poses=True)
    qpos = np.repeat(scene.home_qpos[None], 2, 0)
    physics.reset(np.ones(2, bool), qpos, np.zeros((2, 0, 3)))
    physics.qpos[1, scene.object_slice.start] += 0.1
    physics.forward()
    geoms = np.flatnonzero(scene.model.geom_bodyid == scene.model.body("cube_red").id)
    shift = physics.poses["geom_xpos"][1, geoms] - physics.poses["geom_xpos"][0, geoms]
    np.testing.assert_allclose(shift, [[0.1, 0, 0]], atol=1e-12)


def test_threads_do_not_change_the_result():
    """Guards against: an evaluation that depends on the machine's number of CPUs."""
    scene = build_scene(("cubes",))
    results = []
    for threads in (1, 2):
        physics = BatchPhysics(scene, 3, num_threads=threads)
        physics.reset(np.ones(3, bool), np.repeat(scene.home_qpos[None], 3, 0), np.zeros((3, 0, 3)))
        for _ in range(3):
            physics.step(np.repeat(scene.home_qpos[None, :9] + 0.01, 3, 0))
        results.append(physics.qpos.copy())
    assert np.array_equal(*results)
