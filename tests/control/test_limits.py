"""From actions to joint targets: what is asked, what is allowed, and what is counted."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from robopolicy.control.kinematics import pose_and_jacobian
from robopolicy.control.limits import limit_targets, outside_workspace
from robopolicy.control.profile import read_profile
from robopolicy.control.targets import Targets, joint_targets
from robopolicy.types import ActionSpec

PROFILE = read_profile("panda")
EE = ActionSpec(arm=6, gripper=1, kind="delta", space="ee")
JOINTS = ActionSpec(arm=7, gripper=0, kind="absolute", space="joint_position")
HOME = np.asarray(PROFILE.home_rad)
DT = 0.05

anything = hnp.arrays(
    np.float64, (3, 7), elements=st.floats(-1e6, 1e6) | st.sampled_from([np.nan, np.inf, -np.inf, 1e300])
)
poses = hnp.arrays(np.float64, (3, 7), elements=st.floats(0.0, 1.0))


def limited(spec: ActionSpec, action: np.ndarray, qpos: np.ndarray, opening_m: float = 0.03) -> Targets:
    held = np.full((*qpos.shape[:-1], 1), opening_m)
    return limit_targets(PROFILE, joint_targets(PROFILE, spec, action, qpos, DT), qpos, held, DT)


def tool(qpos: np.ndarray) -> np.ndarray:
    assert PROFILE.arm is not None
    return pose_and_jacobian(PROFILE.arm, qpos)[0]


@settings(max_examples=50, deadline=None)
@given(action=anything, share=poses, spec=st.sampled_from([EE, JOINTS]))
def test_whatever_is_asked_the_targets_are_finite_and_within_every_limit(action, share, spec):
    """Guards against: NaN that slips through a min/max clamp, an outlier that flings a joint to its end stop."""
    lower, upper = PROFILE.soft_limits_rad
    qpos = lower + share * (upper - lower)
    targets = limited(spec, action, qpos)
    result = targets.joint_position_rad
    assert np.isfinite(result).all()
    assert (np.abs(result - qpos) <= np.multiply(PROFILE.velocity_rad_s, DT) + 1e-9).all()
    assert ((result >= lower - 1e-12) & (result <= upper + 1e-12)).all()
    before, after = outside_workspace(PROFILE, tool(qpos)), outside_workspace(PROFILE, tool(result))
    assert (after <= np.maximum(before, 0) + 1e-8).all()
    assert ((targets.gripper_opening_m >= 0) & (targets.gripper_opening_m <= PROFILE.opening_m)).all()
    finite = np.isfinite(action).all(-1)
    held = ~finite & targets.limited["non_finite"]
    np.testing.assert_array_equal(result[held], qpos[held])


@settings(max_examples=20, deadline=None)
@given(
    action=hnp.arrays(np.float64, (4, 7), elements=st.floats(-3, 3)),
    share=hnp.arrays(np.float64, (4, 7), elements=st.floats(0, 1)),
)
def test_numpy_and_torch_and_one_at_a_time_give_the_same(action, share):
    """Guards against: rollouts limited in another way than the robot."""
    lower, upper = PROFILE.soft_limits_rad
    qpos = lower + share * (upper - lower)
    batched = limited(EE, action, qpos)
    qpos_t = torch.from_numpy(qpos)
    asked = joint_targets(PROFILE, EE, torch.from_numpy(action), qpos_t, 0.05)
    in_torch = limit_targets(PROFILE, asked, qpos_t, torch.full((4, 1), 0.03, dtype=torch.float64), DT)
    np.testing.assert_allclose(in_torch.joint_position_rad.numpy(), batched.joint_position_rad, atol=1e-9)
    for row in range(4):
        alone = limited(EE, action[row], qpos[row])
        np.testing.assert_allclose(alone.joint_position_rad, batched.joint_position_rad[row], atol=1e-9)
        assert {kind: bool(flag) for kind, flag in alone.limited.items()} == {
            kind: bool(flag[row]) for kind, flag in batched.limited.items()
        }


def test_an_end_effector_action_moves_the_tool_as_far_as_it_says():
    """Guards against: a scale that differs from the simulator's and moves the arm twice as far as in training."""
    for axis in range(3):
        action = np.zeros(7)
        action[axis] = 0.4
        moved = tool(limited(EE, action, HOME).joint_position_rad) - tool(HOME)
        np.testing.assert_allclose(moved, 0.4 * 0.05 * np.eye(3)[axis], atol=1.5e-3)


def test_the_profile_says_which_gripper_value_opens():
    """Guards against: a hand that opens where the demos closed it, because 1 opens in their data set."""
    inverted = replace(PROFILE, gripper_opens="second")
    action = np.zeros((2, 7))
    action[:, 6] = [-1, 1]
    qpos = np.tile(HOME, (2, 1))
    assert joint_targets(inverted, EE, action, qpos, DT).gripper_opening_m.tolist() == [[0.0], [0.08]]
    assert joint_targets(PROFILE, EE, action, qpos, DT).gripper_opening_m.tolist() == [[0.08], [0.0]]


def test_a_target_is_limited_by_what_was_commanded_before():
    """Guards against: commands faster than the joints may move, because the arm lags behind them."""
    commanded = np.add(HOME, [0.1, 0, 0, 0, 0, 0, 0])
    asked = joint_targets(PROFILE, JOINTS, np.subtract(HOME, [0.1, 0, 0, 0, 0, 0, 0]), HOME, DT)
    targets = limit_targets(PROFILE, asked, HOME, np.array([0.03]), DT, commanded)
    assert targets.limited["joint_velocity"]
    assert targets.intervened
    np.testing.assert_allclose(targets.joint_position_rad[0] - commanded[0], -2.175 * DT, rtol=1e-6)


def test_joint_spaces_are_understood_and_anything_else_is_refused():
    """Guards against: a joint velocity taken for a position; six unnamed columns taken for end-effector deltas."""
    rates = np.linspace(-0.3, 0.3, 7)
    velocity = ActionSpec(arm=7, gripper=0, space="joint_velocity")
    delta = ActionSpec(arm=7, gripper=0, kind="delta", space="joint_position")
    np.testing.assert_allclose(limited(velocity, rates, HOME).joint_position_rad, HOME + 0.05 * rates)
    np.testing.assert_allclose(limited(delta, 0.1 * rates, HOME).joint_position_rad, HOME + 0.1 * rates)
    np.testing.assert_allclose(limited(JOINTS, HOME + 0.1 * rates, HOME).joint_position_rad, HOME + 0.1 * rates)
    with pytest.raises(ValueError, match="can't turn 6 arm columns of space 'unknown' and kind 'unknown'"):
        joint_targets(PROFILE, ActionSpec(arm=6, gripper=1), np.zeros(7), HOME, 0.05)
    with pytest.raises(ValueError, match="can't turn 14 arm columns of space 'joint_position'"):
        joint_targets(
            PROFILE, ActionSpec(arm=14, gripper=0, kind="absolute", space="joint_position"), np.zeros(14), HOME, 0.05
        )


def test_the_gripper_opens_and_closes_by_the_values_of_the_demos():
    """Guards against: a gripper that is closed at 0 and open at 255 in one data set, at 1 and -1 in another."""
    other = ActionSpec(arm=6, gripper=1, gripper_values=((255.0, 0.0),), kind="delta", space="ee")
    continuous = ActionSpec(arm=7, gripper=0, continuous_gripper=(6,), kind="delta", space="ee")
    action = np.zeros((3, 7))
    action[:, 6] = [-1, 0, 1]
    np.testing.assert_allclose(limited(EE, action, np.tile(HOME, (3, 1))).gripper_opening_m[:, 0], [0.08, 0.04, 0.0])
    np.testing.assert_allclose(
        limited(continuous, action, np.tile(HOME, (3, 1))).gripper_opening_m[:, 0], [0.08, 0.04, 0.0]
    )
    action[:, 6] = [255, 0, np.nan]
    np.testing.assert_allclose(limited(other, action, np.tile(HOME, (3, 1))).gripper_opening_m[:, 0], [0.08, 0.0, 0.03])


@pytest.mark.parametrize(
    ("kind", "spec", "action"),
    [
        ("action", EE, [1.5, 0, 0, 0, 0, 0, -1]),
        ("step_m", EE, [1, -1, 1, 0, 0, 0, -1]),
        ("step_rad", EE, [0, 0, 0, 0, 0, 0.35, -1]),
        ("non_finite", EE, [np.nan, 0, 0, 0, 0, 0, -1]),
        ("joint_step", JOINTS, np.add(HOME, [0.3, 0, 0, 0, 0, 0, 0])),
        ("joint_velocity", JOINTS, np.add(HOME, [0.12, 0, 0, 0, 0, 0, 0])),
        ("gripper", EE, [0, 0, 0, 0, 0, 0, -1.5]),
    ],
)
def test_every_intervention_is_counted_by_its_kind(kind, spec, action):
    """Guards against: a clamp that nobody counts and that hides a policy trained in other units."""
    flags = limited(spec, np.asarray(action, np.float64), HOME).limited
    assert flags[kind]
    calm = np.zeros(7) if spec is EE else HOME
    assert not any(limited(spec, calm, HOME).limited.values())


def test_a_target_outside_the_workspace_or_a_joint_limit_is_brought_back_and_counted():
    """Guards against: the tool driven into the table, a joint into its end stop."""
    low = HOME.copy()
    for _ in range(60):
        targets = limited(EE, np.array([0, 0, -1.0, 0, 0, 0, -1]), low)
        low = targets.joint_position_rad
    assert targets.limited["workspace"]
    assert -0.051 < tool(low)[2] < -0.03
    turned = HOME.copy()
    for _ in range(30):
        targets = limited(JOINTS, np.where(np.arange(7) == 6, 9.0, HOME), turned)
        turned = targets.joint_position_rad
    assert targets.limited["joint_position"]
    assert turned[6] == pytest.approx(PROFILE.position_upper_rad[6] - PROFILE.soft_margin_rad)


def test_a_robot_found_outside_may_come_back_but_not_leave_further():
    """Guards against: a robot outside its box that refuses every command, or takes one that leads further out."""
    lower, _ = PROFILE.soft_limits_rad
    outside = HOME.copy()
    outside[3] = lower[3] - 0.05
    back, further = outside.copy(), outside.copy()
    back[3] += 0.02
    further[3] -= 0.02
    np.testing.assert_allclose(limited(JOINTS, back, outside).joint_position_rad, back)
    np.testing.assert_allclose(limited(JOINTS, further, outside).joint_position_rad, outside)
