"""Kinematics from the DH table against MuJoCo, in NumPy and torch alike."""

import mujoco
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from robopolicy.control.kinematics import (
    Arm,
    damped_least_squares,
    matrix_to_quaternion,
    pose_and_jacobian,
    rotation_from_vector,
    rotation_vector,
    tool_pose,
    tool_position,
)
from robopolicy.control.profile import read_profile
from robopolicy.sim.scene import ARM_JOINTS, build_scene

PROFILE = read_profile("panda")
PANDA = PROFILE.arm
LOWER, UPPER = np.array(PROFILE.position_lower_rad), np.array(PROFILE.position_upper_rad)
vectors = hnp.arrays(np.float64, (3,), elements=st.floats(-3.0, 3.0))


def random_qpos(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(LOWER, UPPER, (count, ARM_JOINTS))


@pytest.fixture(scope="module")
def model() -> mujoco.MjModel:
    return build_scene(()).model


def test_pose_and_jacobian_are_those_of_mujoco(model):
    """Guards against: a wrong sign or offset in the DH table, which steers the robot elsewhere than the simulator."""
    data, site = mujoco.MjData(model), model.site("ee").id
    linear, angular = np.zeros((2, 3, model.nv))
    for qpos in random_qpos(30):
        data.qpos[:ARM_JOINTS] = qpos
        mujoco.mj_forward(model, data)
        mujoco.mj_jacSite(model, data, linear, angular, site)
        position, rotation, jacobian = pose_and_jacobian(PANDA, qpos)
        np.testing.assert_allclose(position, data.site_xpos[site], atol=1e-12)
        np.testing.assert_allclose(rotation, data.site_xmat[site].reshape(3, 3), atol=1e-12)
        np.testing.assert_allclose(jacobian, np.concatenate([linear, angular])[:, :ARM_JOINTS], atol=1e-12)


def test_joint_limits_are_those_of_the_scene(model):
    """Guards against: joint targets that the simulated joints can't reach, which would be tracked forever."""
    np.testing.assert_allclose(model.jnt_range[:ARM_JOINTS], np.stack([LOWER, UPPER], 1))


def test_torch_and_numpy_agree_on_any_leading_axes():
    """Guards against: a robot on the torch path that moves otherwise than the simulator on the NumPy path."""
    qpos = random_qpos(6).reshape(2, 3, ARM_JOINTS)
    twist = np.random.default_rng(1).normal(size=(2, 3, 6)) * 0.05
    ours = pose_and_jacobian(PANDA, qpos)
    theirs = pose_and_jacobian(PANDA, torch.from_numpy(qpos))
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(one, other.numpy(), atol=1e-12)
    step = damped_least_squares(ours[2], twist, posture=0.1 * qpos)
    torch_step = damped_least_squares(theirs[2], torch.from_numpy(twist), posture=0.1 * torch.from_numpy(qpos))
    np.testing.assert_allclose(step, torch_step.numpy(), atol=1e-10)
    quaternion = matrix_to_quaternion(theirs[1])
    assert quaternion.dtype == torch.float64
    np.testing.assert_allclose(matrix_to_quaternion(ours[1]), quaternion.numpy(), atol=1e-12)
    np.testing.assert_allclose(rotation_vector(ours[1]), rotation_vector(theirs[1]).numpy(), atol=1e-12)


def test_float32_tensors_stay_float32():
    """Guards against: a silent float64, which would halve the speed on a GPU."""
    qpos = torch.from_numpy(random_qpos(2)).float()
    for value in pose_and_jacobian(PANDA, qpos):
        assert value.dtype == torch.float32


def test_repeated_damped_steps_bring_the_tool_where_it_should_go():
    """Guards against: damping that is too strong, or a twist in the wrong frame, which leave the tool short of its goal."""
    home = np.array([0.0, -0.1289, 0.0, -2.5263, 0.0, 2.3974, 0.7854])
    goal, goal_rotation = np.array([0.55, 0.15, 0.1]), rotation_from_vector(np.array([0.1, -0.2, 0.3]))
    qpos = home
    for _ in range(40):
        position, rotation, jacobian = pose_and_jacobian(PANDA, qpos)
        twist = np.concatenate([goal - position, rotation_vector(goal_rotation @ rotation.T)])
        qpos = qpos + damped_least_squares(jacobian, twist)
    position, rotation, _ = pose_and_jacobian(PANDA, qpos)
    np.testing.assert_allclose(position, goal, atol=1e-5)
    np.testing.assert_allclose(rotation, goal_rotation, atol=1e-5)


def test_posture_leaves_the_tool_at_rest():
    """Guards against: a pull towards the home posture that moves the gripper."""
    qpos = np.array([0.3, 0.2, -0.2, -2.0, 0.1, 2.2, 0.9])
    before, _, jacobian = pose_and_jacobian(PANDA, qpos)
    step = damped_least_squares(jacobian, np.zeros(6), damping=1e-4, posture=1e-3 * np.array([1.0, 0, -1, 0, 0, 0, 0]))
    after, _, _ = pose_and_jacobian(PANDA, qpos + step)
    assert np.abs(step).max() > 1e-4
    np.testing.assert_allclose(after, before, atol=1e-6)


@settings(max_examples=50, deadline=None)
@given(vectors)
def test_rotation_vector_and_matrix_are_inverses(vector):
    """Guards against: formulas that divide by zero near no rotation or near half a turn."""
    angle = np.linalg.norm(vector)
    if angle > np.pi - 1e-3:
        vector = vector * (3.0 / angle)
    np.testing.assert_allclose(rotation_vector(rotation_from_vector(vector)), vector, atol=1e-7)


@settings(max_examples=50, deadline=None)
@given(vectors)
def test_quaternion_is_mujocos_with_positive_w(vector):
    """Guards against: another order or sign of the components, which would make recorded orientations useless elsewhere."""
    rotation = rotation_from_vector(vector)
    expected = np.zeros(4)
    mujoco.mju_mat2Quat(expected, rotation.ravel())
    quaternion = matrix_to_quaternion(rotation)
    assert quaternion[0] >= 0
    np.testing.assert_allclose(np.abs(quaternion @ expected), 1.0, atol=1e-12)


@pytest.mark.parametrize("axis", range(3))
def test_half_turns_have_exact_quaternions(axis):
    """Guards against: 0 / 0 from reading the axis off the antisymmetric part of the matrix."""
    rotation = rotation_from_vector(np.pi * np.eye(3)[axis])
    np.testing.assert_allclose(np.abs(matrix_to_quaternion(rotation)), np.eye(4)[1 + axis], atol=1e-9)


def test_an_arm_given_by_joint_frames_and_axes_is_the_same_arm():
    """Guards against: a robot described as a URDF does, whose joints turn about other axes than z, placed elsewhere."""
    half = np.pi / 2
    frames = [
        (0.0, 0.0, 0.333, 0.0, 0.0, 0.0),
        (0.0, 0.0, 0.0, -half, 0.0, 0.0),
        (0.0, -0.316, 0.0, half, 0.0, 0.0),
        (0.0825, 0.0, 0.0, half, 0.0, 0.0),
        (-0.0825, 0.384, 0.0, -half, 0.0, 0.0),
        (0.0, 0.0, 0.0, half, 0.0, 0.0),
        (0.088, 0.0, 0.0, half, 0.0, 0.0),
    ]
    by_frames = Arm(frames=tuple(frames), tool=PANDA.tool)
    # the second joint's frame turned so that its axis is y instead of z, and the third one's turned back
    frames[1], frames[2] = (0.0, 0.0, 0.0, 0.0, 0.0, 0.0), (0.0, 0.0, 0.316, 0.0, 0.0, 0.0)
    other = Arm(frames=tuple(frames), axes=((0.0, 0.0, 1.0), (0.0, 1.0, 0.0), *((0.0, 0.0, 1.0),) * 5), tool=PANDA.tool)
    qpos = random_qpos(20)
    expected = pose_and_jacobian(PANDA, qpos)
    for arm in (by_frames, other):
        for ours, theirs in zip(pose_and_jacobian(arm, qpos), expected, strict=True):
            np.testing.assert_allclose(ours, theirs, atol=1e-12)
    np.testing.assert_array_equal(tool_position(PANDA, qpos), expected[0])
    np.testing.assert_array_equal(tool_pose(PANDA, qpos)[1], expected[1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "neither of `dh`"),
        ({"dh": ((0.0,) * 3,), "frames": ((0.0,) * 6,)}, "both of `dh`"),
        ({"dh": ((0.0,) * 3,), "axes": ((0.0, 0.0, 1.0),)}, "1 `axes` and no `frames`"),
        ({"frames": ((0.0,) * 6,), "axes": ((0.0,) * 3,)}, "expected directions"),
    ],
)
def test_kinematics_that_say_nothing_or_two_things_are_refused(options, message):
    """Guards against: a typo in a profile that gives the arm another shape."""
    with pytest.raises(ValueError, match=message):
        Arm(**options)
