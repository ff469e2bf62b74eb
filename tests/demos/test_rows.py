"""Demos read into flat arrays: placements, memory, and sets that don't fit together."""

import resource
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from robopolicy.demos.frames import MemoryFrames
from robopolicy.demos.hdf5 import DemoFile, DemoWriter
from robopolicy.demos.rows import TOKEN_VALID_KEY, TOKENS_KEY, load_rows
from robopolicy.types import Demo, DemoFormatError


def test_rows_lie_one_demo_after_another(demo_file):
    """Guards against: an offset that mixes the demos."""
    rows = load_rows([(demo_file, ["demo_2", "demo_0"])], ("gripper", "front"))
    assert rows.lengths.tolist() == [15, 12]
    assert rows.offsets.tolist() == [0, 15, 27]
    first, second = demo_file.read("demo_2"), demo_file.read("demo_0")
    np.testing.assert_array_equal(rows.actions, np.concatenate([first.actions, second.actions]))
    np.testing.assert_array_equal(
        rows.low_dim["gripper"], np.concatenate([first.obs["gripper"], second.obs["gripper"]])
    )
    front = rows.large["front"]
    assert isinstance(front, MemoryFrames)
    np.testing.assert_array_equal(front.values[15:].numpy(), second.obs["front"])
    assert rows.instructions == ("lift the red cube",)
    assert rows.seeds == (2, 0)


def test_several_sources_are_told_apart(tiny_demos):
    """Guards against: sampling weights per file applied to demos of another file."""
    with DemoFile(tiny_demos) as one, DemoFile(tiny_demos) as other:
        rows = load_rows([(one, ["demo_0", "demo_1"]), (other, ["demo_4"])], ("gripper",))
    assert rows.source_id.tolist() == [0, 0, 1]
    assert rows.instruction_id.tolist() == [1, 0, 1]
    assert rows.instructions == ("lift the blue cube", "lift the red cube")


def test_tokens_are_read_from_the_file_and_their_absence_says_what_to_do(tmp_path, demo_file):
    """Guards against: a precomputed encoder without tokens, which would fail deep in the model."""
    tokens = np.random.default_rng(0).normal(size=(6, 3, 4)).astype(np.float16)
    with DemoWriter(tmp_path / "a.hdf5") as writer:
        writer.write(Demo("demo_0", {"x": np.zeros((6, 2))}, np.zeros((6, 1)), tokens=tokens))
    for placement in ("device", "disk"):
        with DemoFile(tmp_path / "a.hdf5") as file:
            wide = load_rows([(file, file.names)], ("x", TOKENS_KEY), placement=placement).large[TOKENS_KEY]
            got = wide.gather(torch.arange(6)[:, None])
        assert got.dtype == torch.float16
        np.testing.assert_array_equal(got[:, 0].numpy(), tokens)
    with pytest.raises(DemoFormatError, match=r"tiny.hdf5, demo_0: no tokens; `robopolicy encode`"):
        load_rows([(demo_file, demo_file.names)], (TOKENS_KEY,))


@pytest.mark.parametrize("placement", ["device", "disk"])
def test_the_mask_of_tokens_is_one_of_the_observations_and_all_ones_where_a_demo_has_none(tmp_path, placement):
    """Guards against: padding pooled as if it were words; a file from before masks that can't be read any more."""
    with DemoWriter(tmp_path / "a.hdf5") as writer:
        for number, mask in enumerate(([1, 1, 0], None, [1, 2, 0], [1, 1], [0, 0, 0])):
            attributes = {} if mask is None else {TOKEN_VALID_KEY: np.array(mask, np.uint8)}
            tokens = np.zeros((number + 2, 3, 4), np.float16)
            obs = {"x": np.zeros((len(tokens), 2))}
            writer.write(Demo(f"demo_{number}", obs, np.zeros((len(tokens), 1)), tokens=tokens, attributes=attributes))
    keys = ("x", TOKENS_KEY, TOKEN_VALID_KEY)
    with DemoFile(tmp_path / "a.hdf5") as file:
        rows = load_rows([(file, ["demo_0", "demo_1"])], keys, placement=placement)
        assert rows.low_dim[TOKEN_VALID_KEY].tolist() == [[1, 1, 0]] * 2 + [[1, 1, 1]] * 3
        assert set(rows.large) == {TOKENS_KEY}
        assert set(load_rows([(file, ["demo_0"])], keys[:2], placement=placement).low_dim) == {"x"}
        for name in ("demo_2", "demo_3", "demo_4"):
            with pytest.raises(DemoFormatError, match=f"a.hdf5, {name}: token_valid is not a mask of its 3 tokens"):
                load_rows([(file, [name])], keys, placement=placement)


@pytest.mark.parametrize("placement", ["device", "disk"])
def test_demos_of_different_shapes_are_refused(tmp_path, placement):
    """Guards against: two files with other camera sizes in one batch."""
    with DemoWriter(tmp_path / "a.hdf5") as writer:
        for number, (size, width) in enumerate(((8, 2), (9, 2), (8, 3))):
            frames = np.zeros((4, size, size, 3), dtype=np.uint8)
            writer.write(Demo(f"demo_{number}", {"front": frames, "x": np.zeros((4, width))}, np.zeros((4, 1))))
    with DemoFile(tmp_path / "a.hdf5") as file:
        with pytest.raises(DemoFormatError, match=r"a.hdf5, demo_1: front has rows of uint8 \(9, 9, 3\) but the first"):
            load_rows([(file, ["demo_0", "demo_1"])], ("front",), placement=placement)
        with pytest.raises(
            DemoFormatError,
            match=r"a.hdf5, demo_2: obs/x has rows of float32 \(3,\) but the first demo has float32 \(2,\)",
        ):
            load_rows([(file, ["demo_0", "demo_2"])], ("x",), placement=placement)
        with pytest.raises(DemoFormatError, match="no demo in this split"):
            load_rows([(file, [])], ("x",))


def test_one_dimensional_keys_become_columns(tmp_path):
    """Guards against: scalar sensors stored as (T,) where everything downstream expects (T, d)."""
    with DemoWriter(tmp_path / "a.hdf5") as writer:
        writer.write(Demo("demo_0", {"x": np.arange(4.0), "m": np.zeros((4, 2, 3))}, np.zeros((4, 1))))
    with DemoFile(tmp_path / "a.hdf5") as file:
        rows = load_rows([(file, file.names)], ("x", "m"))
    assert rows.low_dim["x"].shape == (4, 1)
    assert rows.low_dim["m"].shape == (4, 2, 3)
    assert rows.low_dim["x"].dtype == np.float32


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="no /proc to read the resident memory from")
def test_a_50_gb_set_is_read_in_a_small_part_of_memory(tmp_path):
    """Guards against: memory-mapped or cached images, which would grow until the machine kills the training."""
    path, frame, steps = tmp_path / "large.hdf5", (240, 320, 3), 4400
    with h5py.File(path, "w") as file:  # in one piece and allocated, but a hole on the disk
        for number in range(50):
            group = file.create_group(f"data/demo_{number}")
            group["actions"], group["obs/x"] = np.zeros((steps, 2)), np.zeros((steps, 3))
            kept = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
            kept.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
            kept.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
            space = h5py.h5s.create_simple((steps, *frame))
            h5py.h5d.create(group["obs"].id, b"front", h5py.h5t.NATIVE_UINT8, space, dcpl=kept)
    assert path.stat().st_size > 50e9
    before, most = _resident_bytes(), 0
    with DemoFile(path) as file:
        rows = load_rows([(file, file.names)], ("x", "front"))
        assert rows.placement == "disk"
        for start in range(0, rows.steps - 20, rows.steps // 20):
            assert rows.large["front"].gather(start + torch.arange(40).view(4, 10)).shape == (4, 10, *frame)
            most = max(most, _resident_bytes())
    assert most - before < 200e6
