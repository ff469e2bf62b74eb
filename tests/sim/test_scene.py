"""The compiled scene and the places of its parts."""

import mujoco
import numpy as np
import pytest

from robopolicy.sim.scene import CAMERAS, build_scene


@pytest.mark.parametrize(("physics_dt", "n_substeps"), [(0.005, 10), (0.002, 25)])
def test_control_step_is_a_whole_number_of_physics_steps(physics_dt, n_substeps):
    """Guards against: a rounded count, which would make the control rate differ from the one that demos declare."""
    scene = build_scene(("cubes",), physics_dt)
    assert scene.n_substeps == n_substeps
    assert scene.control_dt == pytest.approx(0.05)


def test_physics_step_that_does_not_divide_the_control_step_is_refused():
    """Guards against: steps of 0.051 s, which drift away from the robot's clock."""
    with pytest.raises(ValueError, match=r"control_dt 0.05 s is not a whole multiple of physics_dt 0.003 s"):
        build_scene(("cubes",), 0.003)


def test_objects_lie_in_qpos_where_the_scene_says():
    """Guards against: poses read from the wrong columns, which would still look like poses."""
    scene = build_scene(("cubes", "plates"))
    assert scene.objects == ("cube_red", "cube_green", "cube_blue")
    for place, name in enumerate(scene.objects):
        assert scene.model.joint(name).qposadr[0] == scene.object_slice.start + 7 * place
        assert scene.model.joint(name).dofadr[0] == scene.object_velocity_slice.start + 6 * place
    assert scene.object_slice.stop == scene.model.nq


def test_scene_text_needs_no_other_file():
    """Guards against: a demo's `model_file` that can't be opened on a machine without our assets."""
    scene = build_scene(("cubes", "plates"))
    again = mujoco.MjModel.from_xml_string(scene.xml)
    assert (again.nq, again.nu, again.opt.timestep) == (scene.model.nq, scene.model.nu, scene.model.opt.timestep)
    np.testing.assert_allclose(again.geom_size, scene.model.geom_size, atol=1e-6)


def test_arm_holds_its_home_under_gravity():
    """Guards against: a servo that sags, or gravity that is not compensated, which move the arm without an action."""
    scene = build_scene(())
    data = mujoco.MjData(scene.model)
    data.qpos[:] = scene.home_qpos
    data.ctrl[:] = scene.home_qpos
    for _ in range(200):
        mujoco.mj_step(scene.model, data)
    np.testing.assert_allclose(data.qpos, scene.home_qpos, atol=2e-3)


def test_scene_has_the_cameras_it_lists():
    """Guards against: a camera renamed in the MJCF, which would fail only once images are asked for."""
    model = build_scene(()).model
    assert {model.camera(index).name for index in range(model.ncam)} == set(CAMERAS)
