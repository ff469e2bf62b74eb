"""LIBERO's files."""

import h5py
import numpy as np

from robopolicy.demos.formats import action_spec_of, open_demos
from tests.demo_samples import LENGTHS, images, write_libero


def test_images_are_turned_the_right_way_up_and_it_is_said(tmp_path):
    """Guards against: a policy trained on upside-down images, which meets upright ones from any other source."""
    with open_demos(write_libero(tmp_path / "task_demo.hdf5")) as demos:
        assert demos.format_name == "libero"
        np.testing.assert_array_equal(demos.read("demo_1").obs["agentview_rgb"], images(LENGTHS[1], seed=1))
        assert any("flipped" in note for note in demos.notes)


def test_images_recorded_upright_are_left_as_they_are(tmp_path):
    """Guards against: upright images of re-rendered files that are flipped."""
    path = write_libero(tmp_path / "task_demo.hdf5")
    with h5py.File(path, "r+") as file:
        file["data"].attrs["macros_image_convention"] = "opencv"
    with open_demos(path) as demos:
        np.testing.assert_array_equal(demos.read("demo_1").obs["agentview_rgb"][:, ::-1], images(LENGTHS[1], seed=1))


def test_the_instruction_comes_from_problem_info(tmp_path):
    """Guards against: a language-conditioned policy trained without the instruction, or with quotes as words of it."""
    with open_demos(write_libero(tmp_path / "task_demo.hdf5")) as demos:
        assert demos.read("demo_0").instruction == "open the drawer"


def test_actions_are_end_effector_deltas_at_20_hz(tmp_path):
    """Guards against: another rate than 20 Hz, by which a chunk lasts too long or too short."""
    with open_demos(write_libero(tmp_path / "task_demo.hdf5")) as demos:
        spec = action_spec_of(demos)
    assert (spec.kind, spec.space, spec.rate_hz, spec.gripper_columns) == ("delta", "ee", 20.0, (6,))
