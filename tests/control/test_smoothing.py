"""Jerk-limited motion: every command within every limit, whatever the targets."""

import numpy as np
import pytest
import ruckig
from hypothesis import given, settings
from hypothesis import strategies as st

from robopolicy.control.kinematics import pose_and_jacobian, rotation_vector
from robopolicy.control.limits import limit_targets, outside_workspace
from robopolicy.control.profile import read_profile
from robopolicy.control.smoothing import JointSmoother
from robopolicy.control.targets import joint_targets
from robopolicy.types import ActionSpec

CONTROL_DT, COMMAND_DT = 0.05, 0.005
EE = ActionSpec(arm=6, gripper=1, kind="delta", space="ee")
JOINTS = ActionSpec(arm=7, gripper=0, kind="absolute", space="joint_position")


def assert_within_limits(profile, commands: np.ndarray, command_dt: float) -> None:
    """Positions, finite differences and tool of (ticks, joints) against every limit of the profile.

    Finite differences of a motion whose derivatives are bounded are bounded alike, so the tolerance is rounding alone.
    """
    assert np.isfinite(commands).all()
    assert (commands >= profile.position_lower_rad).all()
    assert (commands <= profile.position_upper_rad).all()
    rates = commands
    for order, limit in enumerate((profile.velocity_rad_s, profile.acceleration_rad_s2, profile.jerk_rad_s3), start=1):
        rates = np.diff(rates, axis=0) / command_dt
        assert (np.abs(rates) <= np.multiply(limit, 1 + 1e-6)).all(), f"derivative {order}"
    position, rotation, _ = pose_and_jacobian(profile.arm, commands)
    assert (np.linalg.norm(np.diff(position, axis=0), axis=-1) / command_dt <= profile.speed_m_s).all()
    turned = rotation_vector(rotation[1:] @ rotation[:-1].mT)
    assert (np.linalg.norm(turned, axis=-1) / command_dt <= profile.rotation_speed_rad_s).all()
    assert outside_workspace(profile, position).max() <= 1e-6


def policy_outputs(rng: np.random.Generator, kind: str, step: int, spec: ActionSpec) -> np.ndarray:
    """One action (7,) of a policy gone wrong in one of several ways."""
    if kind == "random":
        action = rng.uniform(-1, 1, 7)
    elif kind == "bang":
        action = rng.choice([-1.0, 1.0], 7)
    elif kind == "huge":
        action = rng.normal(size=7) * 10.0 ** rng.uniform(-3, 300)
    elif kind == "steady":
        action = np.sign(np.sin([1, 2, 3, 4, 5, 6, 7])) * np.ones(7)
    else:
        action = np.where(rng.random(7) < 0.2, rng.choice([np.nan, np.inf, -np.inf]), rng.normal(size=7))
    return 3.0 * action if spec is JOINTS else action


@settings(max_examples=15, deadline=None)
@given(
    name=st.sampled_from(["panda", "fr3"]),
    kinds=st.lists(st.sampled_from(["random", "bang", "huge", "steady", "nan"]), min_size=1, max_size=3),
    spec=st.sampled_from([EE, JOINTS]),
    lag=st.floats(0.0, 1.0),
    brakes=st.sets(st.integers(0, 19), max_size=3),
    seed=st.integers(0, 10_000),
)
def test_commands_obey_every_limit_for_any_sequence_of_policy_outputs(name, kinds, spec, lag, brakes, seed):
    """Guards against: outputs of a network that hurt the robot."""
    profile, rng = read_profile(name), np.random.default_rng(seed)
    smoother = JointSmoother(profile, COMMAND_DT, CONTROL_DT)
    commands = [smoother.state[0]] * 3
    for step in range(20):
        measured = (1 - lag) * commands[-1] + lag * commands[max(len(commands) - 11, 0)]
        action = policy_outputs(rng, kinds[step * len(kinds) // 20], step, spec)
        targets = joint_targets(profile, spec, action, measured, CONTROL_DT)
        targets = limit_targets(profile, targets, measured, np.array([0.0]), CONTROL_DT, smoother.state[0])
        ahead = targets.joint_position_rad - smoother.state[0]
        smoother.aim(targets.joint_position_rad, ahead / CONTROL_DT if spec is EE else None)
        if step in brakes:
            smoother.brake()
        commands += [smoother.step() for _ in range(rng.integers(5, 15))]
    smoother.brake()
    while not smoother.at_rest:
        commands.append(smoother.step())
    assert_within_limits(profile, np.stack(commands + [commands[-1]] * 3), COMMAND_DT)


@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_the_limits_hold_at_a_thousand_commands_a_second(seed):
    """Guards against: rounding that only shows in third differences of a short period."""
    profile, rng = read_profile("panda"), np.random.default_rng(seed)
    smoother = JointSmoother(profile, 0.001, CONTROL_DT)
    commands = [smoother.state[0]] * 3
    for _ in range(8):
        smoother.aim(np.clip(commands[-1] + rng.uniform(-0.2, 0.2, 7), *profile.soft_limits_rad))
        commands += [smoother.step() for _ in range(50)]
    assert_within_limits(profile, np.stack(commands), 0.001)


def test_a_target_within_reach_is_reached_one_control_step_later(panda):
    """Guards against: smoothing that lags behind by more than it must."""
    smoother = JointSmoother(panda, COMMAND_DT, CONTROL_DT)
    target = np.add(panda.home_rad, 0.001)
    assert smoother.aim(target) is None
    for _ in range(10):
        position = smoother.step()
    np.testing.assert_allclose(position, target, atol=1e-4)
    for _ in range(100):
        position = smoother.step()
    assert smoother.at_rest


def test_steady_targets_give_a_steady_speed(panda):
    """Guards against: a motion that stops at every target, and shakes the arm twenty times a second."""
    smoother = JointSmoother(panda, COMMAND_DT, CONTROL_DT)
    commands = []
    for step in range(1, 41):
        smoother.aim(np.add(panda.home_rad, [0, 0, 0, 0, 0, 0, 0.01 * step]))
        commands += [smoother.step() for _ in range(10)]
    speed = np.diff(np.stack(commands)[100:, 6]) / COMMAND_DT
    np.testing.assert_allclose(speed, 0.2, rtol=0.05)


def test_the_limit_that_a_target_breaks_is_named(panda):
    """Guards against: an arm that lags or stops without any sign of the limit that causes it."""
    smoother = JointSmoother(panda, COMMAND_DT, CONTROL_DT)
    assert smoother.aim(np.add(panda.home_rad, [0.2, 0, 0, 0, 0, 0, 0])) == "motion"
    smoother.start(np.asarray(panda.home_rad))
    assert smoother.aim(np.add(panda.home_rad, [0, 0, 0, 0, 0, 0, 0.5])) == "tool"
    smoother.start(np.asarray(panda.home_rad))
    assert smoother.aim(np.add(panda.home_rad, [1.5, 0, 0, 0, 0, 0, 0])) == "kept"


def test_commands_sent_while_a_motion_is_sought_obey_the_limits(panda):
    """Guards against: a motion that begins where the robot was before the commands that were sent meanwhile."""
    rng, smoother, commands, sought = np.random.default_rng(0), JointSmoother(panda, COMMAND_DT, CONTROL_DT), [], 0

    def send():
        nonlocal sought
        sought += 1
        commands.append(smoother.step())

    commands.append(smoother.step())
    for _ in range(200):
        target = smoother.state[0] + rng.choice([-0.4, 0.4], 7)
        smoother.aim(target.clip(*panda.soft_limits_rad), between=send)
        commands += [smoother.step() for _ in range(7)]
    assert sought > 50
    assert_within_limits(panda, np.stack(commands), COMMAND_DT)


def test_a_joint_beyond_its_limit_is_no_place_to_start_from(panda):
    """Guards against: a command that begins where the robot can't be."""
    smoother = JointSmoother(panda, COMMAND_DT, CONTROL_DT)
    with pytest.raises(ValueError, match=r"panda_joint4 is at 0\.0000 rad, outside its limits -3\.0718 \.\. -0\.0698"):
        smoother.start(np.zeros(7))
    with pytest.raises(ValueError, match="panda_joint1 is at nan"):
        smoother.start(np.full(7, np.nan))


def test_ruckig_itself_keeps_neither_position_limits_nor_true_extrema():
    """Guards against: sampling that is kept although a later Ruckig makes it unnecessary."""
    motion, wanted, found = ruckig.Ruckig(1, 0.001), ruckig.InputParameter(1), ruckig.Trajectory(1)
    wanted.max_velocity, wanted.max_acceleration, wanted.max_jerk = [2.0], [10.0], [5000.0]
    wanted.current_position, wanted.current_velocity, wanted.target_position = [0.9], [1.9], [0.5]
    wanted.max_position, wanted.min_position = [1.0], [-1.0]
    assert motion.calculate(wanted, found) == ruckig.Result.Working
    highest = max(found.at_time(t)[0][0] for t in np.linspace(0, found.duration, 1000))
    assert highest > 1.08
    assert found.position_extrema[0].max < 0.91
