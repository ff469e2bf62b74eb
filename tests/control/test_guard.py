"""The robot's own guard: even playback of uneven arrivals, and rest when commands cease."""

import numpy as np
import pytest

from robopolicy.control.guard import CommandGuard
from robopolicy.control.robot import RobotError
from robopolicy.control.smoothing import JointSmoother

PERIOD = 0.005


def sweep(panda, seconds: float) -> np.ndarray:
    """A motion within the limits from rest to rest, one row each period."""
    smoother = JointSmoother(panda, PERIOD, 0.05)
    rows = [smoother.state[0]] * 3
    for step in range(round(seconds / PERIOD)):
        if step % 10 == 0:
            smoother.aim(np.add(panda.home_rad, 0.1 * np.sin([step / 30 + joint for joint in range(7)])))
        rows.append(smoother.step())
    smoother.brake()
    return np.stack([*rows, *(smoother.step() for _ in range(100))])


def assert_within_limits(panda, rates: np.ndarray, period_s: float, slack: float) -> None:
    for order, limit in enumerate((panda.velocity_rad_s, panda.acceleration_rad_s2, panda.jerk_rad_s3), start=1):
        rates = np.diff(rates, axis=0) / period_s
        assert (np.abs(rates) <= np.multiply(limit, 1 + slack)).all(), f"derivative {order}"


def play(guard: CommandGuard, rows: np.ndarray, arrivals_s: np.ndarray, seconds: float) -> np.ndarray:
    """What the joints are told every period, commands arriving when they do."""
    played, place = [], 0
    for tick in range(round(seconds / PERIOD)):
        t_s = 50.0 + tick * PERIOD
        while place < len(rows) and arrivals_s[place] <= t_s:
            guard.receive(rows[place], place * PERIOD, arrivals_s[place])
            place += 1
        played.append(guard.position(t_s))
    return np.stack(played)


def test_commands_that_arrive_in_bursts_move_the_joints_as_evenly_as_they_were_sent(panda):
    """Following the newest command turns network jitter into jerk: two steps in one period, none in the next."""
    rows = sweep(panda, 2.0)
    rng = np.random.default_rng(0)
    arrivals_s = 50.0021 + np.arange(len(rows)) * PERIOD + rng.uniform(0, 2 * PERIOD, len(rows))
    arrivals_s = np.maximum.accumulate(arrivals_s)
    guard = CommandGuard(panda, PERIOD, rows[0])
    played = play(guard, rows, arrivals_s, 2.6)
    assert guard.bridged == 0
    assert_within_limits(panda, played, PERIOD, slack=0.02)
    np.testing.assert_array_equal(played[-1], rows[-1])


def test_commands_that_arrive_evenly_are_played_within_the_limits_exactly(panda):
    """An interpolation that is rougher than what it interpolates."""
    rows = sweep(panda, 2.0)
    guard = CommandGuard(panda, PERIOD, rows[0])
    played = play(guard, rows, 50.0021 + np.arange(len(rows)) * PERIOD, 2.6)
    assert_within_limits(panda, played, PERIOD, slack=1e-6)


def test_a_gap_in_a_motion_is_bridged_and_a_long_one_ends_in_rest_within_the_limits(panda):
    """An arm that stops dead at every lost packet, or flies on when the client has died."""
    rows = sweep(panda, 1.0)
    arrivals_s = 50.0021 + np.arange(len(rows)) * PERIOD
    short = arrivals_s.copy()
    short[100:107] = short[107]
    guard = CommandGuard(panda, PERIOD, rows[0])
    play(guard, rows, short, 0.9)
    assert guard.bridged > 0
    assert guard.stopped is None

    guard = CommandGuard(panda, PERIOD, rows[0])
    played = play(guard, rows[:133], arrivals_s[:133], 1.4)
    assert guard.stopped == "no command for 0.05 s"
    assert guard.at_rest
    np.testing.assert_array_equal(played[-1], played[-2])
    assert_within_limits(panda, played, PERIOD, slack=0.02)
    with pytest.raises(RobotError, match=r"stopped itself: no command for 0\.05 s"):
        guard.receive(rows[0], 10.0, 60.0)


@pytest.mark.parametrize("stride", [1, 2, 5])
def test_a_busy_machine_that_asks_too_seldom_still_brakes_within_the_limits(panda, stride):
    """A velocity reckoned over periods that did not take place: braking begins with a jerk, and lasts too long."""
    rows = sweep(panda, 1.0)
    guard = CommandGuard(panda, PERIOD, rows[0])
    asked_s, played, place = [], [], 0
    for tick in range(320):
        t_s = 50.0 + tick * PERIOD
        while place < 133 and 50.0021 + place * PERIOD <= t_s:
            guard.receive(rows[place], place * PERIOD, t_s)
            place += 1
        if tick < 120 or tick % stride == 0:
            asked_s.append(t_s)
            played.append(guard.position(t_s))
    assert guard.at_rest
    rates, times_s = np.stack(played), np.array(asked_s)
    for limit in (panda.velocity_rad_s, panda.acceleration_rad_s2):
        rates = np.diff(rates, axis=0) / np.diff(times_s)[:, None]
        times_s = (times_s[1:] + times_s[:-1]) / 2
        assert (np.abs(rates) <= np.multiply(limit, 1.05)).all()


def test_a_robot_at_rest_may_be_left_alone_and_must_be_met_where_it_stands(panda):
    """A watchdog that bites while the robot waits between two episodes; a leap after the wait."""
    guard = CommandGuard(panda, PERIOD, np.asarray(panda.home_rad))
    rows = np.tile(panda.home_rad, (5, 1))
    play(guard, rows, np.full(5, 50.0), 3.0)
    assert guard.stopped is None
    with pytest.raises(RobotError, match=r"first command is 0\.50 rad away"):
        guard.receive(np.add(panda.home_rad, 0.5), 99.0, 99.0)


def test_a_first_command_that_was_held_up_does_not_delay_the_motion_after_it(panda):
    """An arm that plays everything as late as its first packet came, half a second behind what its policy sees."""
    rows = sweep(panda, 2.0)
    arrivals_s = 50.0021 + np.arange(len(rows)) * PERIOD
    on_time = play(CommandGuard(panda, PERIOD, rows[0]), rows, arrivals_s, 2.6)
    guard = CommandGuard(panda, PERIOD, rows[0], deadline_s=1.0)
    guard.receive(rows[0], -PERIOD, 50.4)
    played = play(guard, rows, arrivals_s, 2.6)
    np.testing.assert_allclose(played[20:], on_time[20:], atol=1e-3)


def test_a_stride_between_two_commands_that_no_joint_could_make_ends_them(panda):
    """A sender that skips its own limits in the middle of a motion, trusted because the motion began well."""
    rows = sweep(panda, 1.0)
    rows[60:] += [0, 0, 0.05, 0, 0, 0, 0]
    guard = CommandGuard(panda, PERIOD, rows[0])
    with pytest.raises(RobotError, match=r"commands for panda_joint3 ask for 4\.\d times its velocity limit"):
        play(guard, rows, 50.0021 + np.arange(len(rows)) * PERIOD, 1.0)
    played = np.stack([guard.position(60.0 + tick * PERIOD) for tick in range(200)])
    assert guard.at_rest
    assert np.abs(np.diff(played, axis=0)).max() <= max(panda.velocity_rad_s) * PERIOD


@pytest.mark.parametrize(
    ("command", "reason"),
    [(np.full(7, np.nan), "finite"), (np.zeros(6), "7 finite"), (np.full(7, 3.0), "panda_joint. is beyond its limits")],
    ids=["nan", "too-few", "beyond"],
)
def test_a_command_that_no_robot_should_follow_ends_the_commands(panda, command, reason):
    """A driver that trusts whoever is connected."""
    guard = CommandGuard(panda, PERIOD, np.asarray(panda.home_rad))
    with pytest.raises(RobotError, match=reason):
        guard.receive(command, 1.0, 50.0)
    np.testing.assert_array_equal(guard.position(50.0), panda.home_rad)
