"""ACT / ALOHA episodes."""

from dataclasses import replace

import h5py
import numpy as np
import pytest

from robopolicy.demos.formats import convert, open_demos
from robopolicy.demos.hdf5 import DemoWriter
from robopolicy.types import DemoFormatError
from tests.demo_samples import LENGTHS, images, write_act


def test_a_folder_of_episodes_is_read_by_episode_number(tmp_path):
    """Guards against: sorting by name, which would put episode_10 before episode_2."""
    folder = write_act(tmp_path / "act")
    (folder / "episode_2.hdf5").rename(folder / "episode_10.hdf5")
    with open_demos(folder) as demos:
        assert demos.format_name == "act"
        assert list(demos.names) == ["demo_0", "demo_1", "demo_10"]
        assert [len(demos.read(name)) for name in demos.names] == list(LENGTHS)


def test_one_episode_file_is_read_alone(tmp_path):
    """Guards against: a single episode file that can't be checked without its folder."""
    folder = write_act(tmp_path / "act")
    with open_demos(folder / "episode_1.hdf5") as demos:
        demo = demos.read("demo_1")
    assert set(demo.obs) == {"qpos", "qvel", "top"}
    np.testing.assert_array_equal(demo.obs["top"], images(LENGTHS[1], seed=1))


def test_the_action_spec_is_aloha_s(tmp_path):
    """Guards against: a continuous gripper taken as binary and thresholded, or joint targets taken as deltas and added up."""
    with open_demos(write_act(tmp_path / "act")) as demos:
        spec = demos.action_spec
    assert spec.arm_width == 14
    assert spec.gripper_width == 0
    assert tuple(spec.continuous_gripper) == (6, 13)
    assert (spec.kind, spec.space, spec.rate_hz) == ("absolute", "joint_position", 50.0)


def test_jpeg_images_are_decoded_whatever_their_padding(tmp_path):
    """Guards against: padded JPEG bytes taken as pixels, which would be noise of the wrong shape."""
    with open_demos(write_act(tmp_path / "act", compressed=True)) as demos:
        decoded = demos.read("demo_0").obs["top"]
        assert any("JPEG" in note for note in demos.notes)
    true = images(LENGTHS[0], seed=0)
    assert decoded.shape == true.shape
    assert np.abs(decoded.astype(int) - true).mean() < 6


def test_a_jpeg_cut_short_is_refused(tmp_path):
    """Guards against: half an image, grey below, that is trained on silently."""
    folder = write_act(tmp_path / "act", compressed=True)
    with h5py.File(folder / "episode_0.hdf5", "r+") as file:
        file["observations/images/top"][2, 40:] = 0
    with open_demos(folder) as demos, pytest.raises(DemoFormatError, match=r"episode_0.hdf5.*top.*image"):
        demos.read("demo_0")


def test_a_mobile_base_s_action_is_two_more_columns(tmp_path):
    """Guards against: a mobile base that stands still because its action was dropped."""
    folder = write_act(tmp_path / "act")
    for index, steps in enumerate(LENGTHS):
        with h5py.File(folder / f"episode_{index}.hdf5", "r+") as file:
            file["base_action"] = np.ones((steps, 2), np.float32)
    with open_demos(folder) as demos:
        assert demos.action_spec.width == demos.read("demo_0").actions.shape[1] == 16
        assert tuple(demos.action_spec.continuous_gripper) == (6, 13)


def test_demos_without_qpos_are_refused_as_act_episodes(tiny_demos, tmp_path):
    """Guards against: a file without qpos, at which ACT's own loader would fail."""
    with pytest.raises(DemoFormatError, match=r"needs the observation qpos; this demo has: cube_red"):
        convert(tiny_demos, tmp_path / "act", "act")
    assert list(tmp_path.iterdir()) == []


def test_what_is_taken_for_granted_and_what_is_not_kept_is_said(tmp_path, make_demo):
    """Guards against: an assumed rate or kind of actions that a user of another robot doesn't see."""
    folder = write_act(tmp_path / "act")
    with h5py.File(folder / "episode_0.hdf5", "r+") as file:
        file["torque"] = np.zeros(LENGTHS[0])
    with open_demos(folder) as demos:
        assert demos.notes == (
            "actions taken as ALOHA's: absolute joint targets at 50 Hz, continuous grippers in columns 6, 13; "
            "the files don't declare it",
            "of each episode, torque is not read",
        )
    with DemoWriter(tmp_path / "a.hdf5", attributes={"renderer": "ours"}, env_args={"env_name": "Lift"}) as writer:
        demo = make_demo(0)
        writer.write(replace(demo, obs={"qpos": demo.obs["ee_pose"]}))
    notes = convert(tmp_path / "a.hdf5", tmp_path / "out", "act")
    assert any(
        "no place for the action spec (7 columns; arm 0-5; binary gripper 6 (-1 or 1))" in line for line in notes
    )
    assert any("no place for the set's attributes env_args, renderer" in line for line in notes)


@pytest.mark.parametrize("shape", [(LENGTHS[1], 7), (LENGTHS[1],), (LENGTHS[1], 7, 2)])
def test_an_episode_of_other_actions_than_the_first_is_refused(tmp_path, shape):
    """Guards against: actions that the action spec of the first episode does not describe."""
    folder = write_act(tmp_path / "act")
    with h5py.File(folder / "episode_1.hdf5", "r+") as file:
        del file["action"]
        file["action"] = np.zeros(shape)
    with open_demos(folder) as demos, pytest.raises(DemoFormatError, match="the first episode has 14"):
        demos.read("demo_1")
