"""Rotations in a form without jumps: the sign of a quaternion, the turn of an angle, 6-D, and back."""

from math import pi

import numpy as np
import pytest
import torch

from robopolicy.model.normalization import ActionNormalizer, Normalizer
from robopolicy.model.rotation_math import RotationColumns, action_rotations, key_rotations
from robopolicy.model.statistics import Statistics
from robopolicy.types import ActionSpec, Chunk

QUATERNION = RotationColumns((3, 4, 5, 6), "quaternion")
VECTOR = RotationColumns((3, 4, 5), "axis-angle")
ANGLES = RotationColumns((3, 4, 5), "angle")
POSE = ActionSpec(arm=7, gripper=1, kind="absolute", space="ee")


def turned_about(axis, angles):
    """Quaternions x y z w (n, 4) of turns by these angles [rad] about one axis."""
    axis = np.asarray(axis, dtype=np.float64) / np.linalg.norm(axis)
    half = np.asarray(angles)[:, None] / 2
    return np.concatenate([np.sin(half) * axis, np.cos(half)], axis=1)


def poses(rotations):
    """A position beside each rotation."""
    positions = np.random.default_rng(1).uniform(-0.3, 0.3, size=(len(rotations), 3))
    return np.concatenate([positions, rotations], axis=1).astype(np.float32)


def random_quaternions(count=60, seed=0):
    values = np.random.default_rng(seed).normal(size=(count, 4))
    return values / np.linalg.norm(values, axis=1, keepdims=True)


def scaled(rows, part, form, kind="mean-std"):
    statistics = Statistics.of(rows, (part,), form)
    return Normalizer(rows.shape[1], kind, statistics, (part,), form)


@pytest.mark.parametrize("form", ["aligned", "6d"])
def test_sign_flips_in_the_file_do_not_change_what_is_learned(form):
    """Guards against: two poses learned where there is one, since q and -q are the same."""
    rows = poses(turned_about([1, 0.1, 0], np.linspace(2.5, 3.7, 50)))
    flipped = rows.copy()
    flipped[::3, 3:] *= -1
    one, other = scaled(rows, QUATERNION, form), scaled(flipped, QUATERNION, form)
    assert not np.array_equal(rows, flipped)
    torch.testing.assert_close(
        one.normalize(torch.from_numpy(rows)), other.normalize(torch.from_numpy(flipped)), rtol=0, atol=0
    )


def test_a_gripper_pointing_down_has_no_jump():
    """Guards against: the jump of the rule w >= 0 in the middle of the work, where a gripper points down."""
    rows = turned_about([1, 0, 0], np.linspace(pi - 0.4, pi + 0.4, 41)).astype(np.float32)
    rows[:20] *= -1
    part = RotationColumns((0, 1, 2, 3), "quaternion")
    learned = scaled(rows, part, "aligned", kind="none").normalize(torch.from_numpy(rows))
    assert learned.diff(dim=0).abs().max() < 0.03


@pytest.mark.parametrize("form", ["aligned", "6d"])
def test_an_angle_that_wraps_at_half_a_turn_goes_on(form):
    """Guards against: roll at +-pi, as of a gripper pointing down, that jumps by a turn between two frames of one motion."""
    true = np.linspace(pi - 0.3, pi + 0.3, 30)
    rows = ((true[:, None] + pi) % (2 * pi) - pi).astype(np.float32)
    assert np.abs(np.diff(rows[:, 0])).max() > 6, "the file jumps"
    part = RotationColumns((0,), "angle")
    normalizer = scaled(rows, part, form, kind="none")
    learned = normalizer.normalize(torch.from_numpy(rows))
    assert learned.diff(dim=0).abs().max() < 0.03
    torch.testing.assert_close(normalizer.unnormalize(learned), torch.from_numpy(rows), rtol=0, atol=2e-6)


@pytest.mark.parametrize("form", ["aligned", "6d"])
def test_a_rotation_vector_that_turns_over_at_pi_goes_on(form):
    """Guards against: a vector whose sign flips at half a turn, as robosuite's absolute actions with the gripper down."""
    true = np.linspace(pi - 0.3, pi + 0.3, 31)[:, None] * np.array([[0.8, 0.6, 0.0]])
    length = np.linalg.norm(true, axis=1, keepdims=True)
    rows = np.where(length > pi, true * (1 - 2 * pi / length), true).astype(np.float32)
    part = RotationColumns((0, 1, 2), "axis-angle")
    normalizer = scaled(rows, part, form, kind="none")
    learned = normalizer.normalize(torch.from_numpy(rows))
    assert learned.diff(dim=0).abs().max() < 0.05
    back = normalizer.unnormalize(learned).numpy()
    away = np.abs(length[:, 0] - pi) > 1e-3  # at pi itself both signs are one rotation
    np.testing.assert_allclose(back[away], rows[away], atol=5e-6)


@pytest.mark.parametrize("form", ["aligned", "6d"])
@pytest.mark.parametrize("kind", ["mean-std", "min-max", "quantile"])
def test_the_inverse_gives_the_same_rotation(kind, form):
    """Guards against: a form that loses something, which would move every arm a little away from what was demonstrated."""
    rows = poses(random_quaternions())
    normalizer = scaled(rows, QUATERNION, form, kind)
    back = normalizer.unnormalize(normalizer.normalize(torch.from_numpy(rows))).numpy()
    side = np.sign((back[:, 3:] * rows[:, 3:]).sum(axis=1, keepdims=True))
    np.testing.assert_allclose(np.concatenate([back[:, :3], side * back[:, 3:]], axis=1), rows, atol=3e-6)


@pytest.mark.parametrize(
    ("part", "rotations"),
    [
        (QUATERNION, random_quaternions()),
        (VECTOR, np.random.default_rng(2).uniform(-1.7, 1.7, size=(60, 3))),
        (ANGLES, np.random.default_rng(3).uniform(-pi, pi, size=(60, 3))),
        (ANGLES, np.random.default_rng(4).uniform(0, 2 * pi, size=(60, 3))),
    ],
)
@pytest.mark.parametrize("form", ["aligned", "6d"])
def test_actions_come_back_in_the_demos_units_and_order(form, part, rotations):
    """Guards against: actions sent to the robot in the six learned numbers, or with the gripper elsewhere than in the file."""
    width = 3 + rotations.shape[1]
    grip = np.where(np.arange(60) % 2, 1.0, -1.0)[:, None]
    rows = np.concatenate([grip, poses(rotations)], axis=1).astype(np.float32)
    spec = ActionSpec(arm=list(range(1, width + 1)), gripper=[0], gripper_values=[(-1.0, 1.0)])
    parts = (RotationColumns(tuple(column + 1 for column in part.columns), part.kind),)
    normalizer = ActionNormalizer(spec, Statistics.of(rows, parts, form), parts, form)
    target = torch.from_numpy(normalizer.to_target(rows))
    assert target.shape[1] == normalizer.learned_spec.width
    assert target[:, :-1].abs().max() <= 1 + 1e-5
    chunk = Chunk(arm=target[:, None, :-1], gripper_logit=target[:, None, -1:] - 0.5)
    back = normalizer.to_rows(chunk)[:, 0].numpy()
    if part.kind == "quaternion":
        back[:, 4:] *= np.sign((back[:, 4:] * rows[:, 4:]).sum(axis=1, keepdims=True))
    np.testing.assert_allclose(back, rows, atol=1e-5)


def test_whatever_a_network_says_is_a_rotation():
    """Guards against: a regressed quaternion that is not of unit length, or six numbers that are not an orthogonal matrix."""
    rows = np.concatenate([poses(random_quaternions()), np.zeros((60, 1), np.float32)], axis=1)
    for form in ("aligned", "6d"):
        parts = action_rotations(POSE, form, {})
        normalizer = ActionNormalizer(POSE, Statistics.of(rows, parts, form), parts, form)
        said = torch.rand(20, 1, normalizer.learned_spec.arm_width) * 2 - 1
        sent = normalizer.to_rows(Chunk(arm=said, gripper_logit=torch.zeros(20, 1, 1)))
        torch.testing.assert_close(sent[..., 3:7].norm(dim=-1), torch.ones(20, 1))


def test_rotations_are_found_by_name_and_by_the_action_spec():
    """Guards against: rotations of a robosuite file that must be declared, or columns that can't be."""
    assert key_rotations("robot0_eef_quat", 4, "aligned", {})[0].kind == "quaternion"
    assert key_rotations("robot0_eef_quat", 4, "none", {}) == ()
    assert key_rotations("quats", 4, "aligned", {}) == key_rotations("robot0_eef_quat", 8, "aligned", {}) == ()
    assert key_rotations("eef_quat", 4, "aligned", {"eef_quat": "none"}) == ()
    assert key_rotations("ee_states", 6, "aligned", {"ee_states[3:6]": "axis-angle"})[0].columns == (3, 4, 5)
    assert action_rotations(POSE, "aligned", {})[0].columns == (3, 4, 5, 6)
    osc = ActionSpec(arm=[0, 1, 2, 3, 4, 5], gripper=1, kind="absolute", space="ee")
    assert action_rotations(osc, "aligned", {}) == (VECTOR,)
    assert action_rotations(ActionSpec(arm=6, gripper=1, kind="delta", space="ee"), "aligned", {}) == ()
    joints = ActionSpec(arm=7, gripper=0, kind="absolute", space="joint_position")
    assert action_rotations(joints, "aligned", {}) == ()
    assert action_rotations(joints, "aligned", {"actions[0:7]": "angle"})[0].columns == tuple(range(7))


def test_what_is_no_rotation_is_refused_if_declared_and_left_alone_if_guessed(caplog):
    """Guards against: normalizing what merely is called `quat`, which would lose its length without a word."""
    rows = poses(2 * random_quaternions())
    declared = RotationColumns(QUATERNION.columns, "quaternion", strict=True)
    with pytest.raises(ValueError, match=r"of length 2 .* expected 1; give its kind, or none"):
        Statistics.of(rows, (declared,), where="obs/pose")
    with caplog.at_level("INFO"):
        guessed = scaled(rows, QUATERNION, "aligned", kind="none")
    assert "left unchanged" in caplog.text
    values = torch.from_numpy(rows)
    torch.testing.assert_close(guessed.normalize(values), values, rtol=0, atol=0)
    torch.testing.assert_close(guessed.unnormalize(values), values, rtol=0, atol=0)
    with pytest.raises(ValueError, match=r"quaternion has 4, name them as pose\[first:last\]"):
        key_rotations("pose", 7, "aligned", {"pose": "quaternion"})
    with pytest.raises(ValueError, match="column 3 of pose already belongs to another rotation"):
        key_rotations("pose", 7, "aligned", {"pose[3:7]": "quaternion", "pose[0:4]": "angle"})


def test_the_reference_travels_with_the_weights():
    """Guards against: a policy loaded without its reference, which flips signs that training never flipped."""
    rows = poses(turned_about([1, 0, 0], np.linspace(2.5, 3.7, 50)))
    fitted = scaled(-rows, QUATERNION, "aligned")
    loaded = Normalizer(7, "mean-std", rotations=(QUATERNION,))
    loaded.load_state_dict(fitted.state_dict())
    values = torch.from_numpy(rows)
    torch.testing.assert_close(loaded.normalize(values), fitted.normalize(values), rtol=0, atol=0)


@pytest.mark.parametrize("form", ["aligned", "6d"])
def test_a_column_that_never_changes_is_no_part_of_the_rotation(form):
    """Guards against: a constant pitch that takes roll and yaw out of the rotation."""
    turns = np.random.default_rng(5).uniform(-pi, pi, size=(40, 3)).astype(np.float32)
    turns[:, 1] = 0.3
    rows = poses(turns)
    spec = ActionSpec(arm=[0, 1, 2, 3, 5], gripper=0, constant={4: 0.3})
    parts = action_rotations(spec, form, {"actions[3:6]": "angle"})
    assert parts[0].columns == (3, 5)
    normalizer = ActionNormalizer(spec, Statistics.of(rows, parts, form), parts, form)
    target = torch.from_numpy(normalizer.to_target(rows))
    back = normalizer.to_rows(Chunk(arm=target[:, None], gripper_logit=target[:, None, :0]))[:, 0]
    np.testing.assert_allclose(back.numpy(), rows, atol=1e-5)
    if form == "6d":
        with pytest.raises(ValueError, match="needs them all, use aligned"):
            action_rotations(spec, form, {"actions[3:6]": "axis-angle"})
