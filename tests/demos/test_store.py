"""DemoStore: gathered batches equal what a plain loop over the demos gives."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from robopolicy.demos.hdf5 import DemoFile
from robopolicy.demos.rows import load_rows
from robopolicy.demos.store import DemoStore
from robopolicy.types import Batch

KEYS = ("ee_pose", "gripper", "cube_red", "front")


def naive(file: DemoFile, start: int, segment: int, chunk: int, stride: int) -> dict[str, np.ndarray]:
    """One segment, step by step; `start` counts the steps of all demos."""
    for demo in file:
        if start < len(demo):
            break
        start -= len(demo)
    last = len(demo) - 1
    frames = [start + stride * frame for frame in range(segment)]
    segment_of = {key: np.stack([demo.obs[key][min(row, last)] for row in frames]) for key in KEYS}
    target = [[demo.actions[min(row + ahead, last)] for ahead in range(chunk)] for row in frames]
    return {
        **segment_of,
        "target": np.array(target),
        "action_valid": np.array([[row + ahead <= last for ahead in range(chunk)] for row in frames]),
        "frame_valid": np.array([row <= last for row in frames]),
        "instruction": np.array(demo.instruction),
    }


def check(batch: Batch, place: int, expected: dict[str, np.ndarray]) -> None:
    for key in KEYS:
        np.testing.assert_array_equal(batch.obs[key][place].numpy(), expected[key])
    for key in ("target", "action_valid", "frame_valid"):
        np.testing.assert_array_equal(getattr(batch, key)[place].numpy(), expected[key])
    assert batch.instructions[batch.instruction_id[place]] == expected["instruction"]


@settings(max_examples=15, deadline=None)
@given(
    st.integers(1, 12), st.integers(1, 9), st.integers(1, 3), st.sampled_from(["device", "disk"]), st.integers(0, 2**31)
)
def test_a_batch_is_what_a_plain_loop_gives(tiny_demos, segment, chunk, stride, placement, seed):
    """Guards against: a gather off by one row, which trains on the next demo's frames and which no loss would show."""
    with DemoFile(tiny_demos) as file:
        rows = load_rows([(file, file.names)], KEYS, placement=placement)
        store = DemoStore(rows, segment=segment, chunk=chunk, stride=stride)
        starts = np.random.default_rng(seed).integers(0, len(store), 6)
        batch = store.gather(torch.from_numpy(starts))
        for place, start in enumerate(starts.tolist()):
            check(batch, place, naive(file, start, segment, chunk, stride))


def test_every_step_starts_a_segment_and_its_own_action_is_valid(demo_file):
    """Guards against: a demo's last action, the one that releases the object, that is masked."""
    store = DemoStore(load_rows([(demo_file, demo_file.names)], ("ee_pose",)), segment=4, chunk=3)
    batch = store.gather(torch.arange(len(store)))
    assert len(store) == sum(len(demo) for demo in demo_file)
    assert batch.frame_valid[:, 0].all()
    assert batch.action_valid[:, 0, 0].all()
    np.testing.assert_array_equal(batch.target[:, 0, 0].numpy(), np.concatenate([demo.actions for demo in demo_file]))


def test_nothing_is_a_segment_without_a_valid_frame(demo_file):
    """Guards against: episode streams without a demo left that train on whatever lies in row 0."""
    rows = load_rows([(demo_file, demo_file.names)], ("ee_pose", "front"))
    batch = DemoStore(rows, segment=4, chunk=3).gather(torch.tensor([-1, 0, -1]))
    assert batch.frame_valid.any(dim=1).tolist() == [False, True, False]
    assert batch.action_valid.any(dim=(1, 2)).tolist() == [False, True, False]
    assert batch.instruction_id.tolist()[::2] == [-1, -1]


def test_targets_are_transformed_once_and_padding_with_them(demo_file):
    """Guards against: a transform per batch, which would cost more than the gather."""
    calls = []

    def double(rows: torch.Tensor) -> torch.Tensor:
        calls.append(rows.shape)
        return 2 * rows[:, :2]

    rows = load_rows([(demo_file, ["demo_1"])], ("ee_pose",))
    store = DemoStore(rows, segment=3, chunk=2, action_transform=double)
    for start in (0, 8):
        target = store.gather(torch.tensor([start])).target
        actions = demo_file.read("demo_1").actions
        np.testing.assert_allclose(target[0, 0, 0].numpy(), 2 * actions[start, :2])
    assert calls == [(9, 7)]


def test_a_batch_owns_its_memory(demo_file):
    """Guards against: an augmentation or encoder that writes into a batch and changes the demos."""
    rows = load_rows([(demo_file, demo_file.names)], KEYS)
    store = DemoStore(rows, segment=4, chunk=3)
    starts = torch.arange(5)
    first = store.gather(starts)
    kept = first.target.clone()
    for values in (*first.obs.values(), first.target):
        values.zero_()
    again = store.gather(starts)
    torch.testing.assert_close(again.target, kept)
    assert again.obs["ee_pose"].abs().sum() > 0
    assert again.obs["front"].sum() > 0


@pytest.mark.gpu
def test_host_and_device_placement_give_the_same_batch(demo_file):
    """Guards against: pinned memory that gives other values than the device's."""
    batches = []
    for placement in ("device", "host", "disk"):
        rows = load_rows([(demo_file, demo_file.names)], KEYS, placement=placement, device="cuda")
        batches.append(DemoStore(rows, segment=4, chunk=3, device="cuda").gather(torch.arange(20, device="cuda")))
    for other in batches[1:]:
        for key in KEYS:
            assert torch.equal(batches[0].obs[key], other.obs[key])
        assert torch.equal(batches[0].target, other.target)
