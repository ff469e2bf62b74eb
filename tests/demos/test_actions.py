"""The default rule for action columns."""

import numpy as np
import pytest

from robopolicy.demos.actions import describe_action_spec, infer_action_spec
from robopolicy.types import ActionSpec, DemoFormatError


def test_columns_with_two_values_are_grippers_and_those_with_one_are_constant():
    """Guards against: a constant column learned by regression, or a binary gripper by the Huber loss."""
    rng = np.random.default_rng(0)
    rows = np.stack([rng.normal(size=20), np.full(20, 0.5), np.arange(20) % 2 * 3.0 - 1, rng.normal(size=20)], axis=1)
    spec = infer_action_spec([rows[:10], rows[10:]])
    assert spec.arm_columns == (0, 3)
    assert spec.gripper_columns == (2,)
    assert spec.gripper_values == ((-1.0, 2.0),)
    assert spec.constant == {1: 0.5}


def test_a_gripper_that_moves_in_one_demo_only_is_still_a_gripper():
    """Guards against: a gripper judged by the first demo alone, taken for a constant, that never closes."""
    still, moved = np.stack([np.arange(4.0), -np.ones(4)], axis=1), np.stack([np.arange(4.0), np.ones(4)], axis=1)
    assert infer_action_spec([still, moved]).gripper_columns == (1,)
    assert infer_action_spec([still]).constant == {1: -1.0}


def test_a_continuous_gripper_is_an_arm_column():
    """Guards against: a gripper effort with many values that is thresholded."""
    rows = np.stack([np.linspace(-1, 1, 5), np.array([0.0, 0.1, 0.0, 0.2, 0.1])], axis=1)
    assert infer_action_spec([rows]).arm_columns == (0, 1)


def test_no_demo_or_changing_width_is_refused():
    """Guards against: an empty split, which would otherwise give a policy without actions."""
    with pytest.raises(DemoFormatError, match="no actions"):
        infer_action_spec([])
    with pytest.raises(DemoFormatError, match="3 columns after others of 2"):
        infer_action_spec([np.zeros((2, 2)), np.zeros((2, 3))])


def test_actions_are_described_in_words():
    """Guards against: an inferred spec that the user doesn't see."""
    spec = ActionSpec(
        arm=[0, 1, 2, 7],
        gripper=[4],
        constant={3: 0.0, 5: 1.5, 6: 0.0},
        gripper_values=[(0.0, 0.04)],
        continuous_gripper=[7],
        kind="absolute",
        space="joint_position",
        rate_hz=50.0,
    )
    assert describe_action_spec(spec) == (
        "8 columns; arm 0-2, 7 (absolute, joint position); binary gripper 4 (0 or 0.04); continuous gripper 7; "
        "constant 3 = 0; constant 5 = 1.5; constant 6 = 0; 50 Hz"
    )


def test_actions_without_a_column_are_refused_wherever_they_stand():
    """Guards against: a first demo of no columns after which any other width was taken (a crafted Minari file)."""
    for widths in ((0, 3), (3, 0), (0, 0)):
        with pytest.raises(DemoFormatError, match=r"all need the same|at least one demo, and one column"):
            infer_action_spec([np.zeros((4, width)) for width in widths])
