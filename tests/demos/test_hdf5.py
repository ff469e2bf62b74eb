"""DemoFile and DemoWriter: the robomimic layout, exact, safe against a kill, refused in one line where it is broken."""

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest

from robopolicy.demos.hdf5 import DemoFile, DemoWriter
from robopolicy.types import ActionSpec, Demo, DemoFormatError
from tests.demo_samples import assert_same


def test_what_is_written_is_read_back(tmp_path):
    """Guards against: fields or types of our own file that training reads differently than they were written."""
    rng = np.random.default_rng(0)
    demo = Demo(
        name="demo_7",
        obs={
            "pose": rng.normal(size=(5, 7)),
            "count": np.arange(5),
            "arm/left": rng.normal(size=(5, 2)).astype(np.float32),
            "front": rng.integers(0, 255, (5, 8, 6, 3), dtype=np.uint8),
        },
        actions=rng.normal(size=(5, 3)).astype(np.float32),
        instruction="lift the red cube",
        executed_actions=rng.normal(size=(5, 3)),
        rewards=rng.normal(size=5),
        dones=np.array([False, False, False, False, True]),
        states=rng.normal(size=(5, 9)),
        tokens=rng.normal(size=(5, 4, 6)).astype(np.float16),
        seed=12,
        attributes={"model_file": "<mujoco/>" * 10_000, "note": 3},
    )
    spec = ActionSpec(arm=[0, 2], gripper=[1], rate_hz=20.0)
    with DemoWriter(tmp_path / "a.hdf5", action_spec=spec, attributes={"renderer": "ray"}) as writer:
        assert writer.write(demo) == "demo_7"
    with DemoFile(tmp_path / "a.hdf5") as file:
        as_stored = replace(demo, dones=demo.dones.astype(np.int64))  # as robomimic does
        assert_same(file.read("demo_7"), as_stored)
        assert file.action_spec == spec
        assert file.attributes["renderer"] == "ray"


def test_the_layout_is_robomimics(tiny_demos):
    """Guards against: a file that robomimic's own loader can't read."""
    with h5py.File(tiny_demos, "r") as file:
        data = file["data"]
        assert data.attrs["total"] == 54
        assert {"env_name", "type", "env_kwargs"} <= set(json.loads(data.attrs["env_args"]))
        assert sorted(data) == [f"demo_{i}" for i in range(5)]
        demo = data["demo_2"]
        assert demo.attrs["num_samples"] == 15
        assert demo["actions"].shape == (15, 7)
        assert demo["dones"].dtype == np.int64
        assert demo["obs/front"].dtype == np.uint8
        assert [bytes(name) for name in file["mask/train"]] == [b"demo_0", b"demo_1", b"demo_2", b"demo_3"]


def test_demos_are_sorted_by_number(tmp_path, make_demo):
    """Guards against: demo_10 before demo_2, by which splits differ from robomimic's."""
    with DemoWriter(tmp_path / "a.hdf5") as writer:
        for number in (10, 2, 0):
            writer.write(make_demo(number))
    with DemoFile(tmp_path / "a.hdf5") as file:
        assert file.names == ["demo_0", "demo_2", "demo_10"]


def test_filter_keys_are_read_and_must_name_demos_of_the_file(tmp_path, make_demo):
    """Guards against: a mask that names a demo from elsewhere, which would silently shrink the split."""
    path = tmp_path / "a.hdf5"
    with DemoWriter(path) as writer:
        for number in range(3):
            writer.write(make_demo(number))
        writer.write_filter_key("train", ["demo_2", "demo_0"])
        writer.write_filter_key("train", ["demo_2", "demo_1"])
        with pytest.raises(DemoFormatError, match="mask/valid names demo_9"):
            writer.write_filter_key("valid", ["demo_9"])
    with DemoFile(path) as file:
        assert file.filter_keys == {"train": ["demo_1", "demo_2"]}
    with h5py.File(path, "r+") as file:
        del file["data/demo_1"], file["data"].attrs["checksums"]
    with pytest.raises(DemoFormatError, match="mask/train names demo_1"):
        DemoFile(path)


def _truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def _edit(change: Callable[[h5py.File], None]) -> Callable[[Path], None]:
    def apply(path: Path) -> None:
        with h5py.File(path, "r+") as file:
            change(file)
            if "data" in file:
                del file["data"].attrs["checksums"]  # as after an edit that was meant

    return apply


def _poison(file: h5py.File) -> None:
    file["data/demo_1/actions"][3, 2] = np.nan


def _poison_obs(file: h5py.File) -> None:
    file["data/demo_1/obs/gripper"][2, 0] = np.inf


def _shorten(file: h5py.File) -> None:
    rows = file["data/demo_1/obs/ee_pose"][:-1]
    del file["data/demo_1/obs/ee_pose"]
    file["data/demo_1/obs/ee_pose"] = rows


def _lie(file: h5py.File) -> None:
    file["data/demo_1"].attrs["num_samples"] = 400


def _external(file: h5py.File) -> None:
    del file["data/demo_1/obs/front"]
    file["data/demo_1/obs/front"] = h5py.ExternalLink("/etc/passwd", "/")


def _external_storage(file: h5py.File) -> None:
    del file["data/demo_1/obs/gripper"]
    file.create_dataset("data/demo_1/obs/gripper", (9, 1), "u1", external=[("/etc/passwd", 0, 9)])


def _virtual(file: h5py.File) -> None:
    del file["data/demo_1/obs/gripper"]
    layout = h5py.VirtualLayout((9, 1), "f4")
    layout[:] = h5py.VirtualSource("/etc/passwd", "x", (9, 1))
    file.create_virtual_dataset("data/demo_1/obs/gripper", layout)


def _huge(file: h5py.File) -> None:
    del file["data/demo_1/obs/front"]
    file.create_dataset(
        "data/demo_1/obs/front", (9, 1 << 20, 1 << 16, 3), "u1", chunks=(1, 64, 64, 3), compression="gzip"
    )


def _strings(file: h5py.File) -> None:
    del file["data/demo_1/obs/gripper"]
    file["data/demo_1/obs/gripper"] = np.array(["a"] * 9, dtype=object)


def _rename(file: h5py.File) -> None:
    file.move("data/demo_1", "data/take_1")


def _ring(file: h5py.File) -> None:
    file["data/demo_1/obs/again"] = file["data/demo_1/obs"]


def _raw(file: h5py.File) -> None:
    for name in list(file["data"]):
        del file[f"data/{name}/obs"]
        file[f"data/{name}/states"] = np.zeros((len(file[f"data/{name}/actions"]), 4))


def _no_demos(file: h5py.File) -> None:
    for name in list(file["data"]):
        del file["data"][name]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_truncate, r"^tiny\.hdf5: cut short at \d+ bytes"),
        (lambda path: path.write_bytes(b""), r"^tiny\.hdf5: the file is empty"),
        (lambda path: path.write_bytes(b"PK\x03\x04zip"), r"^tiny\.hdf5: not an HDF5 file"),
        (lambda path: path.unlink(), r"tiny\.hdf5: no such file$"),
        (_edit(_poison), r"^tiny\.hdf5, demo_1: actions: nan at step 3"),
        (_edit(_poison_obs), r"^tiny\.hdf5, demo_1: obs/gripper: inf at step 2"),
        (_edit(_shorten), r"^tiny\.hdf5, demo_1: 9 actions but 8 rows in obs/ee_pose; every step needs both"),
        (_edit(_lie), r"^tiny\.hdf5, demo_1: num_samples is 400 but there are 9 actions"),
        (_edit(_external), r"^tiny\.hdf5: data/demo_1/obs/front is a link to elsewhere"),
        (_edit(_external_storage), r"^tiny\.hdf5: data/demo_1/obs/gripper is stored in another file"),
        (_edit(_virtual), r"^tiny\.hdf5: data/demo_1/obs/gripper is stored in another file"),
        (_edit(_huge), r"^tiny\.hdf5: data/demo_1/obs/front declares \d+ bytes, .* the file holds \d+; refused"),
        (_edit(_strings), r"^tiny\.hdf5, demo_1: gripper has type object; expected numbers"),
        (_edit(_rename), r"^tiny\.hdf5: a demo is named 'take_1'; expected demo_<number>"),
        (_edit(_ring), r"^tiny\.hdf5: data/demo_1/obs has another name too; refused"),
        (_edit(_raw), r"^tiny\.hdf5: robosuite's raw layout, states and actions without observations.*simulator"),
        (_edit(_no_demos), r"^tiny\.hdf5: no demo in it"),
        (_edit(lambda file: file.move("data", "other")), r"^tiny\.hdf5: no data; it has: mask, other"),
        (_edit(lambda file: file["data"].attrs.modify("env_args", "{")), r"^tiny\.hdf5: env_args: not valid JSON"),
    ],
)
def test_a_broken_or_hostile_file_is_refused_in_one_line(tiny_demos, tmp_path, damage, message):
    """Guards against: h5py's traceback, which names neither demo nor key, or a link that reads any file of the machine."""
    path = tmp_path / "tiny.hdf5"
    path.write_bytes(tiny_demos.read_bytes())
    damage(path)
    with pytest.raises(DemoFormatError, match=message) as caught, DemoFile(path) as file:
        list(file)
    assert "\n" not in str(caught.value)


def test_a_missing_observation_lists_those_present(demo_file):
    """Guards against: a mistyped camera whose error lists no choices."""
    with pytest.raises(
        DemoFormatError, match="no wrist among the observations; it has: cube_red, ee_pose, front, gripper"
    ):
        demo_file.read("demo_0", ["wrist"])
    assert set(demo_file.read("demo_0", ["front"]).obs) == {"front"}


def test_damaged_chunks_name_demo_and_key(tiny_demos, tmp_path):
    """Guards against: images that don't unpack and become black ones."""
    path = tmp_path / "tiny.hdf5"
    content = bytearray(tiny_demos.read_bytes())
    with h5py.File(tiny_demos, "r") as file:
        chunk = file["data/demo_3/obs/front"].id.get_chunk_info(0)
    content[chunk.byte_offset : chunk.byte_offset + 40] = bytes(40)
    path.write_bytes(content)
    with DemoFile(path) as file, pytest.raises(DemoFormatError, match=r"^tiny\.hdf5, demo_3: obs/front: damaged"):
        file.read("demo_3")


def test_float64_and_missing_rewards_are_fine(tmp_path):
    """Guards against: files of other tools refused for float64, or for fields that training doesn't need."""
    with h5py.File(tmp_path / "a.hdf5", "w") as file:
        file["data/demo_1/actions"] = np.zeros((4, 2))
        file["data/demo_1/obs/x"] = np.ones((4, 3))
    with DemoFile(tmp_path / "a.hdf5") as file:
        demo = file.read("demo_1")
        assert demo.obs["x"].dtype == np.float64
        assert demo.rewards is None
        assert file.attributes == {"env_args": {}, "action_spec": None}
        assert file.filter_keys == {}


def test_the_sample_in_the_repository_opens():
    """Guards against: a sample file that the README's first commands can't open."""
    path = Path(__file__).parents[2] / "data" / "sample.hdf5"
    assert path.stat().st_size < 200_000
    with DemoFile(path) as file:
        assert len(file) == 3
        assert all(demo.instruction and demo.seed is not None and "front" in demo.obs for demo in file)
        assert file.action_spec is not None


def test_a_number_that_changed_in_the_file_is_not_read_as_another(tmp_path, make_demo):
    """Guards against: a flipped bit that becomes a training target: HDF5 has no checksum for contiguous arrays."""
    path = tmp_path / "a.hdf5"
    with DemoWriter(path) as writer:
        writer.write(replace(make_demo(0), attributes={"gain": np.float32(0.1), "limits": np.array([1, 2])}))
    content = bytearray(path.read_bytes())
    with DemoFile(path) as file:
        place = file.datasets("demo_0")["actions"].id.get_offset()
        assert "checksums" not in file.read("demo_0").attributes
    content[place + 2] ^= 1
    path.write_bytes(content)
    with DemoFile(path) as file, pytest.raises(DemoFormatError, match=r"a.hdf5, demo_0: actions changed since it was"):
        file.read("demo_0")
