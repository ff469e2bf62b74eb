"""Checksums of a demo's content."""

import dataclasses

import h5py
import numpy as np
import pytest

from robopolicy.demos.checksums import verified, with_checksums
from robopolicy.demos.hdf5 import DemoFile, DemoWriter
from robopolicy.demos.packing import CHECKSUMS
from robopolicy.types import DemoFormatError


def test_the_same_demo_has_the_same_checksums(make_demo):
    """Guards against: a false alarm at every read."""
    found = verified(with_checksums(make_demo(1)), "x.hdf5, demo_1")
    assert CHECKSUMS not in found.attributes, "a copy that is changed and written again would carry the old ones"


def test_truth_values_match_the_integers_they_are_stored_as(make_demo):
    """Guards against: booleans, which the file stores as int64, that never match."""
    demo = with_checksums(make_demo(1))
    verified(dataclasses.replace(demo, dones=demo.dones.astype("int64")), "x.hdf5, demo_1")


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"instruction": "lift the bl1e cube"}, "attributes"),
        ({"seed": 2}, "attributes"),
        ({"rewards": None}, "rewards"),
    ],
)
def test_what_the_demo_says_is_covered_and_what_is_gone_is_missed(make_demo, change, part):
    """Guards against: a changed instruction, or a part that disappears with its damaged name."""
    changed = dataclasses.replace(with_checksums(make_demo(1)), **change)
    with pytest.raises(DemoFormatError, match=f"x.hdf5, demo_1: {part} changed since it was written"):
        verified(changed, "x.hdf5, demo_1")


def test_an_observation_that_was_not_read_must_be_there(make_demo):
    """Guards against: a false alarm for keys that training doesn't read, or none for a key that is gone."""
    demo = with_checksums(make_demo(1))
    some = dataclasses.replace(demo, obs={"gripper": demo.obs["gripper"]})
    verified(some, "x.hdf5, demo_1", unread=["obs/cube_red", "obs/ee_pose", "obs/front"])
    with pytest.raises(DemoFormatError, match="obs/cube_red, obs/front changed"):
        verified(some, "x.hdf5, demo_1", unread=["obs/ee_pose", "obs/cube_rfd"])


def test_a_key_that_lost_its_name_is_missed_by_whoever_reads_the_others(tiny_demos, tmp_path):
    """Guards against: a training without an observation, whose name was damaged in the demo that the keys are taken from."""
    path = tmp_path / "demos.hdf5"
    path.write_bytes(tiny_demos.read_bytes())
    with h5py.File(path, "r+") as file:
        file["data/demo_0/obs"].move("cube_red", "cube_rfd")
    with DemoFile(path) as file, pytest.raises(DemoFormatError, match="demo_0: obs/cube_red changed since"):
        file.read("demo_0", ["ee_pose"])


@pytest.mark.parametrize("text", ["", "[]", "{}", 3])
def test_checksums_that_are_damaged_themselves_are_noticed(make_demo, text):
    """Guards against: damage that hits the checksums as well."""
    with pytest.raises(DemoFormatError, match="checksums changed since it was written"):
        verified(dataclasses.replace(make_demo(1), attributes={CHECKSUMS: text}), "x.hdf5, demo_1")


def test_an_array_without_values_has_one_too(make_demo):
    """Guards against: a crash at rows of width 0, which a damaged file may declare."""
    demo = make_demo(1)
    empty = dataclasses.replace(demo, obs={**demo.obs, "cube_red": demo.obs["cube_red"][:, :0]})
    verified(with_checksums(empty), "x.hdf5, demo_1")
    marked = dataclasses.replace(empty, attributes=with_checksums(demo).attributes)
    with pytest.raises(DemoFormatError, match="obs/cube_red changed"):
        verified(marked, "x.hdf5, demo_1")


def test_attributes_of_numpy_types_match_what_is_read_back(make_demo):
    """Guards against: good demos made unreadable because NumPy types come back as plain numbers and lists."""
    demo = make_demo(1)
    written = with_checksums(dataclasses.replace(demo, attributes={"gain": np.int64(3), "box": np.array([1.5, 2.0])}))
    read = dataclasses.replace(written, attributes={**written.attributes, "gain": 3, "box": [1.5, 2.0]})
    verified(read, "x.hdf5, demo_1")


def test_a_demo_without_them_is_fine_in_others_files_and_damage_in_ours(make_demo):
    """Guards against: a flipped bit in the attribute's name, which would let damage pass."""
    demo = make_demo(1)
    assert verified(demo, "x.hdf5, demo_1") is demo
    with pytest.raises(DemoFormatError, match="checksums changed since it was written"):
        verified(demo, "x.hdf5, demo_1", expected=True)


@pytest.mark.parametrize(
    "change",
    [
        lambda file: file["data"].attrs.modify("env_args", file["data"].attrs["env_args"].replace("2", "3")),
        lambda file: file["data"].attrs.modify(
            "action_spec", file["data"].attrs["action_spec"].replace("20.0", "21.0")
        ),
        lambda file: file["data"].attrs.__setitem__("renderer", "another"),
        lambda file: file["mask/valid"].__setitem__(0, b"demo_3"),
        lambda file: file.move("mask/valid", "mask/vali"),
        lambda file: file["data"].attrs.modify("checksums", '{"file": 1}'),
        lambda file: file["data"].attrs.modify("checksums", "crc33"),
        lambda file: file["data"].attrs.__setitem__("checksu}s", file["data"].attrs.pop("checksums")),
        lambda file: file["data"].__delitem__("demo_4"),
        lambda file: file.attrs.__setitem__("env_arg", "{}"),
    ],
)
def test_what_the_file_says_of_itself_is_covered(tiny_demos, tmp_path, change):
    """Guards against: another control rate, split or list of demos after one flipped bit."""
    path = tmp_path / "demos.hdf5"
    path.write_bytes(tiny_demos.read_bytes())
    with h5py.File(path, "r+") as file:
        change(file)
    with pytest.raises(DemoFormatError, match=r"demos.hdf5: attributes, masks or the list of demos changed since"):
        DemoFile(path)


def test_tokens_in_the_file_are_covered(tmp_path, make_demo):
    """Guards against: tokens that were written by a process of one's own, and any number in them."""
    tokens = np.random.default_rng(0).normal(size=(10, 3, 4)).astype(np.float16)
    with DemoWriter(tmp_path / "a.hdf5") as writer:
        writer.write(dataclasses.replace(make_demo(0), tokens=tokens))
    with h5py.File(tmp_path / "a.hdf5", "r+") as file:
        file["data/demo_0/tokens"][3, 1, 1] += 1
    with DemoFile(tmp_path / "a.hdf5") as file, pytest.raises(DemoFormatError, match="demo_0: tokens changed since"):
        file.read("demo_0")


def test_a_file_of_an_earlier_version_opens(tiny_demos, tmp_path):
    """Guards against: demos that were recorded last month, refused by today's reader."""
    path = tmp_path / "demos.hdf5"
    path.write_bytes(tiny_demos.read_bytes())
    with h5py.File(path, "r+") as file:
        file["data"].attrs["checksums"] = "crc32"
    with DemoFile(path) as file:
        assert len(list(file)) == 5
