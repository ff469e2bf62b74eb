"""Observations of a caller -> checked tensors."""

import numpy as np
import pytest
import torch

from robopolicy.model.inputs import checked_inputs
from robopolicy.types import ArraySpec

EXPECTED = {"ee_pose": ArraySpec((7,)), "front": ArraySpec((4, 4, 3), "uint8")}
CPU = torch.device("cpu")


def test_numbers_become_float32_and_images_stay_bytes():
    """Guards against: float64 from a simulator, which makes products of the policy fail or slow."""
    obs = {"ee_pose": np.ones((2, 7)), "front": np.full((2, 4, 4, 3), 9, np.uint8), "unused": np.zeros(1)}
    tensors = checked_inputs(obs, EXPECTED, CPU)
    assert list(tensors) == ["ee_pose", "front"]
    assert (tensors["ee_pose"].dtype, tensors["front"].dtype) == (torch.float32, torch.uint8)


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"front": None}, KeyError, "camera 'front' is not in this observation. It has: ee_pose"),
        ({"ee_pose": np.ones((2, 6))}, ValueError, r"'ee_pose' has shape \(2, 6\); expected \(\*batch\), then \(7,\)"),
        ({"front": np.zeros((3, 4, 4, 3), np.uint8)}, ValueError, r"'front' has shape \(3, 4, 4, 3\); expected \(2\)"),
        ({"front": np.zeros((2, 4, 4, 3))}, ValueError, "camera 'front' has type torch.float64; expected uint8"),
    ],
)
def test_a_wrong_observation_is_one_line(changed, error, message):
    """Guards against: a robot's first call with wrong names, shapes or types that fails far from its cause."""
    obs = {"ee_pose": np.ones((2, 7)), "front": np.zeros((2, 4, 4, 3), np.uint8), **changed}
    with pytest.raises(error, match=message):
        checked_inputs({key: value for key, value in obs.items() if value is not None}, EXPECTED, CPU)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_is_refused_where_a_policy_acts(value):
    """Guards against: a joint position of NaN, from which a policy makes a plausible action."""
    obs = {"ee_pose": np.full((2, 7), value), "front": np.zeros((2, 4, 4, 3), np.uint8)}
    with pytest.raises(ValueError, match="observation 'ee_pose' holds a value that is not finite"):
        checked_inputs(obs, EXPECTED, CPU, finite=True)
