"""Properties of the values that travel."""

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from robopolicy.components import ConfigError
from robopolicy.control.robot import RobotError
from robopolicy.types import ActionSpec, Demo, DemoFormatError


def test_counts_mean_arm_first_gripper_after():
    """Guards against: a count that silently meant other columns, which would train the gripper on a joint."""
    spec = ActionSpec(arm=6, gripper=1)
    assert spec.arm_columns == (0, 1, 2, 3, 4, 5)
    assert spec.gripper_columns == (6,)
    assert spec.gripper_values == ((-1.0, 1.0),)
    assert spec.width == 7


def test_interleaved_layout_of_a_bimanual_robot_is_described_by_index_lists():
    """Guards against: ALOHA's 6 + 1 + 6 + 1 columns, which counts can't describe."""
    spec = ActionSpec(arm=[0, 1, 2, 3, 4, 5, 7, 8, 9, 10, 11, 12], gripper=[6, 13])
    assert (spec.arm_width, spec.gripper_width, spec.width) == (12, 2, 14)


@given(order=st.permutations(range(7)), cuts=st.tuples(st.integers(0, 7), st.integers(0, 7)))
@settings(max_examples=50, deadline=None)
def test_order_puts_a_row_together_again_after_split(order, cuts):
    """Guards against: a wrong inverse permutation, which would send a joint's action to another joint."""
    low, high = sorted(cuts)
    constant = {column: float(column) for column in order[high:]}
    spec = ActionSpec(arm=list(order[:low]), gripper=list(order[low:high]), constant=constant)
    rows = np.arange(7.0)[None]
    arm, gripper = spec.split(rows)
    joined = np.concatenate([arm, gripper, np.array([list(constant.values())]).reshape(1, -1)], axis=-1)
    np.testing.assert_array_equal(joined[..., list(spec.order)], rows)


def test_action_spec_survives_its_dictionary():
    """Guards against: a spec stored with the weights that is read back as another."""
    spec = ActionSpec(
        arm=[0, 2], gripper=[1], constant={3: 0.5}, gripper_values=[(0.0, 0.04)], kind="delta", rate_hz=15.0
    )
    assert ActionSpec.from_dict(spec.to_dict()) == spec


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"arm": [0, 1], "gripper": [1]}, "each once; name every column"),
        ({"arm": [0, 2], "gripper": []}, "each once; name every column"),
        ({"arm": 2, "gripper": 1, "gripper_values": [(1.0, 1.0)]}, "a pair of different values for each"),
        ({"arm": 2, "gripper": 1, "continuous_gripper": [2]}, "must be among"),
        ({"arm": 2, "gripper": 0, "rate_hz": 0.0}, "positive"),
        ({"arm": -1}, "0 or more"),
    ],
)
def test_a_contradictory_action_spec_is_refused(arguments, message):
    """Guards against: a column named twice or not at all, which would be learned wrongly without a word."""
    with pytest.raises(ValueError, match=message):
        ActionSpec(**arguments)


def test_a_demo_whose_arrays_differ_in_length_is_refused_by_name():
    """Guards against: an observation shifted against its actions, which trains a wrong policy."""
    with pytest.raises(DemoFormatError, match=r"demo_12: 84 actions but 85 rows in obs/proprio"):
        Demo(name="demo_12", obs={"proprio": np.zeros((85, 3))}, actions=np.zeros((84, 7)))


def test_an_empty_demo_is_refused():
    """Guards against: a demo without steps, which has no window and divides by zero."""
    with pytest.raises(DemoFormatError, match="at least one step"):
        Demo(name="demo_0", obs={}, actions=np.zeros((0, 7)))


def test_no_error_holds_a_terminals_commands():
    """Guards against: `str(error)` in a notebook or a log that clears the screen, from a name in a stranger's file."""
    for kind in (DemoFormatError, ConfigError, RobotError):
        error = kind("demos.hdf5: key 'a\x1b[2J\r\x07' has 3 rows")
        assert str(error) == "demos.hdf5: key 'a\\x1b[2J\\r\\x07' has 3 rows"
        assert str(pickle.loads(pickle.dumps(error))) == str(error)
        endless = str(kind("demos.hdf5: no demo " + "\0" * 5000 + "; it has: demo_0"))
        assert len(endless) <= 1200
        assert (endless[:20], endless[-8:]) == ("demos.hdf5: no demo ", ": demo_0")
