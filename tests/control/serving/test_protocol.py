"""What a client sent against what the policy expects."""

import numpy as np
import pytest

from robopolicy.client import ProtocolError
from robopolicy.control.serving.mapping import KeyMapping, KeySource
from robopolicy.control.serving.protocol import SMALLEST_CAP, ObservationReader, flatten
from robopolicy.types import ActionSpec, ArraySpec, PolicySpec
from tests.serving import LOW_DIM_SPEC, SPEC, observation

READER = ObservationReader(SPEC, KeyMapping())


def test_floats_are_cast_and_everything_else_is_left_as_it_came():
    """Guards against: float64 and integers of a robot that reach a float32 policy unchanged."""
    seen = READER.read(observation(qpos=np.array([1, 2, 3]), extra=np.zeros(9)))
    assert seen["qpos"].dtype == np.float32
    assert seen["qpos"].tolist() == [1, 2, 3]
    assert seen["front"].dtype == np.uint8
    assert seen["instruction"] == "lift"
    assert set(seen) == {"qpos", "front", "instruction"}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"qpos": np.zeros(4)}, r"'qpos' has shape \(4,\); expected \(3,\)"),
        ({"qpos": np.array([1, np.nan, 0])}, "'qpos' holds NaN or infinite"),
        ({"qpos": np.array([1, 1e300, 0])}, "'qpos' holds NaN or infinite"),
        ({"qpos": [1, 2, 3]}, "'qpos' has type list; expected an array of shape"),
        ({"qpos": "text"}, "'qpos' has type str"),
        ({"front": np.full((8, 8, 3), np.nan, np.float32)}, "'front' has dtype float32; expected a uint8 image"),
        ({"front": np.zeros((8, 8, 4), np.uint8)}, r"'front' has shape \(8, 8, 4\); expected an image such as"),
        ({"front": np.zeros((0, 8, 3), np.uint8)}, "expected an image such as"),
        ({"front": np.zeros((8, SMALLEST_CAP + 1, 3), np.uint8)}, "sides of at most"),
        ({"prompt": 5}, "'prompt' has type int; expected the instruction as str"),
    ],
)
def test_a_wrong_value_is_refused_with_its_name(change, words):
    """Guards against: NaN, which passes a min-max clamp unnoticed, and shape errors that name no key."""
    with pytest.raises(ProtocolError, match=words):
        READER.read(observation(**change))


@pytest.mark.parametrize("key", ["qpos", "front", "prompt"])
def test_a_missing_key_is_named_with_what_is_expected_and_what_came(key):
    """Guards against: an error without the two lists that the operator has to compare."""
    message = observation()
    del message[key]
    came = ", ".join(message)
    with pytest.raises(ProtocolError, match=f"lacks '{key}'. Expected: qpos, front, prompt. Received: {came}"):
        READER.read(message)


def test_names_from_strangers_are_cut_and_escaped():
    """Guards against: control characters or a megabyte of name on the operator's terminal."""
    (name,) = READER.unused({**observation(), "\x1b[2J" + "x" * 1000: 1})
    assert name.startswith("\\x1b[2J")
    assert len(name) == 40


@pytest.mark.parametrize("message", [[1], None, {1: 2}, {b"a": 1}])
def test_a_message_that_is_no_map_of_names_is_refused(message):
    """Guards against: a list where a map is expected, which would raise AttributeError in the inference thread."""
    with pytest.raises(ProtocolError):
        flatten(message)


def test_a_single_number_serves_a_key_of_width_one():
    """Guards against: a gripper opening refused because it is a number and not an array."""
    spec = PolicySpec({"gripper": ArraySpec((1,))}, ActionSpec(), chunk=1, window=1)
    reader = ObservationReader(spec, KeyMapping())
    for value in (0.04, np.float64(0.04), np.array([0.04]), np.array(0.04)):
        assert reader.read({"gripper": value})["gripper"].shape == (1,)


def test_a_mapping_slices_nests_and_transposes():
    """Guards against: LIBERO's packed arrays or ALOHA's nested, channel-first images read wrongly."""
    spec = PolicySpec(
        {"ee_pos": ArraySpec((3,)), "gripper_states": ArraySpec((2,)), "top": ArraySpec((4, 4, 3), "uint8")},
        ActionSpec(),
        chunk=1,
        window=1,
    )
    sources = {
        "ee_pos": KeySource(("state",), columns=(0, 3)),
        "gripper_states": KeySource(("state",), columns=(6, 8)),
        "top": KeySource(("images/cam_high",), layout="chw"),
    }
    reader = ObservationReader(spec, KeyMapping("test", ("prompt",), sources))
    image = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    seen = reader.read({"state": np.arange(8.0), "images": {"cam_high": image.transpose(2, 0, 1)}})
    assert seen["ee_pos"].tolist() == [0, 1, 2]
    assert seen["gripper_states"].tolist() == [6, 7]
    np.testing.assert_array_equal(seen["top"], image)
    described = reader.metadata()["observation"]
    assert described == {
        "state": {"shape": [8], "dtype": "float32"},
        "images/cam_high": {"shape": [3, 4, 4], "dtype": "uint8"},
    }


def test_a_spec_survives_json():
    """Guards against: a manifest that is read back on the robot as another spec."""
    for spec in (SPEC, LOW_DIM_SPEC):
        assert PolicySpec.from_dict(spec.to_dict()) == spec
