"""Means of rotations: along the shorter way, and within the range that both are in."""

from math import pi

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from robopolicy.control.execution import execution_from
from robopolicy.control.execution.base import blend
from robopolicy.control.executor import ChunkExecutor
from robopolicy.model.rotation_math import RotationColumns, in_range
from robopolicy.model.rotations import code
from robopolicy.types import ActionSpec

ANGLE = (RotationColumns((0,), "angle"),)


def mean(old: list[float], new: list[float], share: float, *rotations: RotationColumns) -> list[float]:
    rows = (torch.tensor([values], dtype=torch.float64) for values in (old, new))
    return blend(*rows, torch.tensor([share], dtype=torch.float64), rotations)[0].tolist()


@pytest.mark.parametrize(
    ("old", "new", "share", "expected"),
    [
        (3.1, -3.1, 0.5, -pi),
        (-3.1, 3.0, 0.5, 3.0 + (2 * pi - 6.1) / 2),
        (6.2, 0.1, 0.25, 6.2 + 0.25 * (2 * pi - 6.1)),
        (0.1, 6.2, 0.25, 0.1 - 0.25 * (2 * pi - 6.1)),
        (0.3, 0.7, 0.25, 0.4),
        (-1.0, 2.0, 0.5, 0.5),
    ],
)
def test_the_mean_of_two_angles_lies_between_them_on_the_shorter_way(old, new, share, expected):
    """Guards against: two chunks that agree to the hundredth, and an arm that turns half a turn away from both."""
    (found,) = mean([old], [new], share, *ANGLE)
    assert np.angle(np.exp(1j * (found - expected))) == pytest.approx(0, abs=1e-12)
    low = -pi if min(old, new) < 0 else 0.0
    assert low - 1e-12 <= found <= low + 2 * pi + 1e-12


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), share=st.floats(0.0, 1.0), kind=st.sampled_from(["quaternion", "axis-angle"]))
def test_the_mean_of_two_rotations_is_near_both_however_they_are_named(seed, share, kind):
    """Guards against: a quaternion whose sign flips between two chunks, averaged to no rotation at all."""
    rng = np.random.default_rng(seed)
    width = 4 if kind == "quaternion" else 3
    old = rng.normal(size=width)
    old *= (1 if kind == "quaternion" else rng.uniform(0, pi)) / np.linalg.norm(old)
    new = rng.choice([-1, 1]) * (old + rng.uniform(-0.1, 0.1, width)) if width == 4 else old + rng.uniform(-0.1, 0.1, 3)
    new = in_range(kind, torch.tensor(new), torch.tensor(0.0)).tolist()
    found = mean(old.tolist(), new, share, RotationColumns(tuple(range(width)), kind))
    first, between, last = (code(kind, torch.tensor(values, dtype=torch.float64)) for values in (old, found, new))
    apart = (first - last).norm() * 1.01 + 1e-9
    assert (between - first).norm() <= apart
    assert (between - last).norm() <= apart
    assert np.linalg.norm(found) <= (1 if kind == "quaternion" else pi) + 1e-9


def test_columns_that_only_look_like_a_quaternion_are_averaged_as_numbers():
    """Guards against: a hand's four joints behind an absolute position, turned into a unit vector."""
    part = RotationColumns((0, 1, 2, 3), "quaternion")
    assert mean([0.4, 0, 0, 0], [-0.2, 0, 0, 0], 0.5, part) == pytest.approx([0.1, 0, 0, 0])


@pytest.mark.parametrize("strategy", ["ensemble", "freeze"])
def test_an_executor_finds_the_rotation_of_an_absolute_pose_and_takes_the_declared_ones(strategy):
    """Guards against: the executor averaging numbers where the policy learned rotations."""
    pose = ActionSpec(arm=7, gripper=0, kind="absolute", space="ee")
    flips = torch.tensor([0.1, 0.2, 0.3, 0.0, 0.6, 0.0, 0.8]).repeat(4, 1)
    executor = ChunkExecutor(4, 0.05, execution_from({"kind": strategy}), action_spec=pose)
    executor.add(flips, 0.0)
    executor.add(torch.cat([flips[:, :3], -flips[:, 3:]], dim=1), 0.05)
    action = executor.action(0.05)
    torch.testing.assert_close(action[3:].abs(), flips[0, 3:].abs())
    turning = ActionSpec(arm=2, gripper=0)
    executor = ChunkExecutor(
        4, 0.05, execution_from({"kind": strategy}), action_spec=turning, rotations={"actions[1:2]": "angle"}
    )
    executor.add(torch.tensor([[1.0, 3.1]]).repeat(4, 1), 0.0)
    executor.add(torch.tensor([[0.0, -3.1]]).repeat(4, 1), 0.05)
    action = executor.action(0.05)
    assert 0 < action[0] < 1
    assert abs(action[1]) > 3.09
