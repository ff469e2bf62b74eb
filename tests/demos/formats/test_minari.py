"""Minari data sets."""

import h5py
import numpy as np
import pytest

from robopolicy.demos.formats import open_demos
from robopolicy.types import DemoFormatError
from tests.demo_samples import LENGTHS, images, jpeg, write_minari


def test_observations_line_up_with_the_actions_taken_on_them(tmp_path):
    """Guards against: taking the last T of T + 1 observations, which would show each action the state after it."""
    folder = write_minari(tmp_path / "pen")
    with h5py.File(folder / "data/main_data.hdf5") as file:
        stored = file["episode_1/observations/observation"][()]
    with open_demos(folder) as demos:
        demo = demos.read("demo_1")
    assert len(demo) == LENGTHS[1]
    np.testing.assert_array_equal(demo.obs["observation"], stored[:-1])


def test_nested_observations_seed_and_ends_are_kept(tmp_path):
    """Goals live in nested groups; a lost goal can't be learned."""
    with open_demos(write_minari(tmp_path / "pen")) as demos:
        demo = demos.read("demo_2")
        assert demos.attributes["env_args"]["env_name"] == "AdroitHandPen-v1"
        assert any("infos" in note for note in demos.notes)
    assert set(demo.obs) == {"observation", "desired_goal_pen"}
    assert demo.seed == 42
    assert demo.dones.tolist() == [False] * (LENGTHS[2] - 1) + [True]


def test_a_mission_text_is_the_instruction(tmp_path):
    """Guards against: a file with a text among its observations, which would be refused, or its instruction lost."""
    folder = write_minari(tmp_path / "pen")
    with h5py.File(folder / "data/main_data.hdf5", "r+") as file:
        file["episode_0/observations/mission"] = ["turn the pen"] * (LENGTHS[0] + 1)
    with open_demos(folder) as demos:
        assert demos.read("demo_0").instruction == "turn the pen"
        assert demos.read("demo_1").instruction is None
        assert any("the text mission at an episode's first step" in note for note in demos.notes)


def test_other_texts_and_groups_are_said_to_be_left_out(tmp_path):
    """What a user recorded and a reader drops without a word is missed weeks later."""
    folder = write_minari(tmp_path / "pen")
    with h5py.File(folder / "data/main_data.hdf5", "r+") as file:
        file["episode_0/observations/remark"] = ["slippery"] * (LENGTHS[0] + 1)
        file["episode_0/forces"] = np.zeros(LENGTHS[0])
    with open_demos(folder) as demos:
        assert "text observations are left out: remark" in demos.notes
        assert "of each episode, forces, infos is not read" in demos.notes
        assert "remark" not in demos.read("demo_0").obs


def test_jpeg_images_are_decoded(tmp_path):
    """Minari packs image observations as JPEG byte strings."""
    folder, frames = write_minari(tmp_path / "pen"), images(LENGTHS[0] + 1)
    with h5py.File(folder / "data/main_data.hdf5", "r+") as file:
        file["episode_0/observations/front"] = np.array([jpeg(frame) for frame in frames])
    with open_demos(folder) as demos:
        decoded = demos.read("demo_0").obs["front"]
    assert np.abs(decoded.astype(int) - frames[:-1]).mean() < 6


def test_the_hdf5_file_inside_opens_alone(tmp_path):
    """Users pass the file as often as the folder."""
    folder = write_minari(tmp_path / "pen")
    with open_demos(folder / "data/main_data.hdf5") as demos:
        assert demos.format_name == "minari"
        assert len(demos.names) == len(LENGTHS)


def test_discrete_actions_are_refused_in_one_line(tmp_path):
    """Guards against: a column of action numbers, which would be regressed as if 3 were between 2 and 4."""
    folder = write_minari(tmp_path / "grid")
    with h5py.File(folder / "data/main_data.hdf5", "r+") as file:
        del file["episode_0/actions"]
        file["episode_0/actions"] = np.zeros(LENGTHS[0], np.int64)
    with open_demos(folder) as demos, pytest.raises(DemoFormatError, match=r"demo_0: actions have shape \(9,\)"):
        demos.read("demo_0")


def test_an_observation_cut_short_is_refused(tmp_path):
    """T observations for T actions would shift by one where the last is dropped."""
    folder = write_minari(tmp_path / "pen")
    with h5py.File(folder / "data/main_data.hdf5", "r+") as file:
        del file["episode_0/observations/observation"]
        file["episode_0/observations/observation"] = np.zeros((LENGTHS[0], 45))
    with open_demos(folder) as demos, pytest.raises(DemoFormatError, match=r"9 actions but 9 rows .* expected 10"):
        demos.read("demo_0")


@pytest.mark.parametrize(
    ("key", "values", "message"),
    [
        ("truncations", np.zeros((3, 2)), "truncations has shape"),
        ("rewards", np.float32(1), "rewards has shape"),
        ("observations/extra", np.zeros(LENGTHS[0] + 1, np.complex64), "extra has type complex64"),
    ],
)
def test_step_arrays_of_another_shape_or_type_are_refused(tmp_path, key, values, message):
    """Guards against: a traceback of numpy, and complex numbers that are trained on."""
    folder = write_minari(tmp_path / "pen")
    with h5py.File(folder / "data/main_data.hdf5", "r+") as file:
        file.pop(f"episode_0/{key}", None)
        file[f"episode_0/{key}"] = values
    with open_demos(folder) as demos, pytest.raises(DemoFormatError, match=message):
        demos.read("demo_0")
