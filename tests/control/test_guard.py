"""The robot's own guard: even playback of uneven arrivals, and rest when commands cease."""

from dataclasses import replace

import numpy as np
import pytest

from robopolicy.control.guard import CommandGuard
from robopolicy.control.limits import limit_targets
from robopolicy.control.profile import RobotProfile, of_arms, read_profile
from robopolicy.control.robot import RobotError
from robopolicy.control.smoothing import JointSmoother
from robopolicy.control.targets import Targets

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
    """The joint commands of every period, for commands that arrive at these times."""
    played, place = [], 0
    for tick in range(round(seconds / PERIOD)):
        t_s = 50.0 + tick * PERIOD
        while place < len(rows) and arrivals_s[place] <= t_s:
            guard.receive(rows[place], place * PERIOD, arrivals_s[place])
            place += 1
        played.append(guard.position(t_s))
    return np.stack(played)


def test_commands_that_arrive_in_bursts_move_the_joints_as_evenly_as_they_were_sent(panda):
    """Guards against: network jitter turned into jerk: two steps in one period, none in the next."""
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
    """Guards against: an interpolation that is rougher than what it interpolates."""
    rows = sweep(panda, 2.0)
    guard = CommandGuard(panda, PERIOD, rows[0])
    played = play(guard, rows, 50.0021 + np.arange(len(rows)) * PERIOD, 2.6)
    assert_within_limits(panda, played, PERIOD, slack=1e-6)


def test_a_motion_at_the_limits_passes_the_guard_unchanged(panda):
    """Guards against: rounding that counts as a broken limit, after which the joints lag for the rest of the motion."""
    period_s = 0.001
    smoother = JointSmoother(panda, period_s, 0.05)
    rng = np.random.default_rng(0)
    guard = CommandGuard(panda, period_s, smoother.state[0])
    target = np.asarray(panda.home_rad)
    for tick in range(2000):
        if tick % 50 == 0 and tick < 1500:
            target = (target + rng.uniform(-0.08, 0.08, 7)).clip(*panda.soft_limits_rad)
            smoother.aim(target)
        guard.receive(smoother.step(), tick * period_s, tick * period_s)
        guard.position(tick * period_s)
    assert guard.tracker.deviated == 0
    np.testing.assert_allclose(guard.tracker.position, smoother.state[0], atol=1e-9)


def test_a_gap_in_a_motion_is_bridged_and_a_long_one_ends_in_rest_within_the_limits(panda):
    """Guards against: an arm that stops dead at every lost packet, or flies on when the client has died."""
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
    """Guards against: a velocity computed over periods that did not take place, so that braking begins with a jerk."""
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
    """Guards against: a watchdog that bites while the robot waits between two episodes; a leap after the wait."""
    guard = CommandGuard(panda, PERIOD, np.asarray(panda.home_rad))
    rows = np.tile(panda.home_rad, (5, 1))
    play(guard, rows, np.full(5, 50.0), 3.0)
    assert guard.stopped is None
    with pytest.raises(RobotError, match=r"first command is 0\.50 rad away"):
        guard.receive(np.add(panda.home_rad, 0.5), 99.0, 99.0)


def test_a_first_command_that_was_held_up_does_not_delay_the_motion_after_it(panda):
    """Guards against: an arm that stays as late as its first packet, half a second behind what its policy sees."""
    rows = sweep(panda, 2.0)
    arrivals_s = 50.0021 + np.arange(len(rows)) * PERIOD
    on_time = play(CommandGuard(panda, PERIOD, rows[0]), rows, arrivals_s, 2.6)
    guard = CommandGuard(panda, PERIOD, rows[0], deadline_s=1.0)
    guard.receive(rows[0], -PERIOD, 50.4)
    played = play(guard, rows, arrivals_s, 2.6)
    np.testing.assert_allclose(played[20:], on_time[20:], atol=1e-3)


def test_a_stride_between_two_commands_that_no_joint_could_make_ends_them(panda):
    """Guards against: a sender that skips its own limits in the middle of a motion, trusted because the motion began well."""
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
    """Guards against: a driver that trusts whoever is connected."""
    guard = CommandGuard(panda, PERIOD, np.asarray(panda.home_rad))
    with pytest.raises(RobotError, match=reason):
        guard.receive(command, 1.0, 50.0)
    np.testing.assert_array_equal(guard.position(50.0), panda.home_rad)


def hostile_stream(kind: str, panda, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Positions (n, joints), stamps (n) and arrivals (n) of a client that means well, badly."""
    rng = np.random.default_rng(seed)
    rows = sweep(panda, 1.5)
    stamps_s = np.arange(len(rows)) * PERIOD
    arrivals_s = 50.0021 + stamps_s
    if kind == "first command away":
        rows = rows + rng.choice([-0.019, 0.019], 7)
    elif kind == "gaps":
        for start in rng.integers(20, len(rows) - 60, 4):
            arrivals_s[start : start + 17] = arrivals_s[start + 17]
    elif kind == "trembling":
        rows = rows + rng.choice([-1, 1], rows.shape) * 0.2 * np.multiply(panda.velocity_rad_s, PERIOD)
    elif kind == "slow clock":
        arrivals_s = 50.0021 + 2 * stamps_s
    elif kind == "fast clock":
        arrivals_s = 50.0021 + 0.7 * stamps_s
    elif kind == "full speed into a limit":
        reach = np.subtract(panda.position_upper_rad, panda.home_rad)
        turned = np.minimum(np.arange(len(rows))[:, None] * PERIOD * np.multiply(panda.velocity_rad_s, 1.04), reach)
        rows = np.add(panda.home_rad, turned)
    elif kind == "zigzag at full speed":
        swing = 0.2 * np.abs((np.arange(len(rows)) * PERIOD * 5) % 2 - 1)
        rows = np.add(panda.home_rad, (swing - swing[0])[:, None])
    else:  # everything together
        arrivals_s = np.maximum.accumulate(arrivals_s + rng.exponential(0.01, len(rows)))
        rows = rows + rng.normal(size=rows.shape) * 0.1 * np.multiply(panda.velocity_rad_s, PERIOD)
    return rows, stamps_s, arrivals_s


KINDS = [
    "first command away",
    "gaps",
    "trembling",
    "slow clock",
    "fast clock",
    "full speed into a limit",
    "zigzag at full speed",
    "all",
]


@pytest.mark.parametrize("stutter", [False, True], ids=["even", "stuttering"])
@pytest.mark.parametrize("kind", KINDS)
def test_what_reaches_the_joints_is_within_all_limits(panda, kind, stutter):
    """Guards against: a robot server whose joints do what a careless client says: 90 times the acceleration limit."""
    for seed in range(3):
        rows, stamps_s, arrivals_s = hostile_stream(kind, panda, seed)
        rng = np.random.default_rng(seed)
        guard = CommandGuard(panda, PERIOD, np.asarray(panda.home_rad), deadline_s=0.2)
        asked_s, played, place = [], [], 0
        tick = 0
        while tick * PERIOD < arrivals_s[-1] - 49.0:
            t_s = 50.0 + tick * PERIOD
            while place < len(rows) and arrivals_s[place] <= t_s and guard.stopped is None:
                try:
                    guard.receive(rows[place], stamps_s[place], arrivals_s[place])
                except RobotError:
                    break
                place += 1
            asked_s.append(t_s)
            played.append(guard.position(t_s))
            tick += 1 + int(stutter and rng.random() < 0.1) * int(rng.integers(1, 5))
        positions, times_s = np.stack(played), np.array(asked_s)
        assert (positions >= panda.position_lower_rad).all()
        assert (positions <= panda.position_upper_rad).all(), (positions - panda.position_upper_rad).max()
        assert np.ptp(positions, axis=0).max() > 0.01
        rates = positions
        limits = (panda.velocity_rad_s, panda.acceleration_rad_s2, panda.jerk_rad_s3)
        for order, limit in enumerate(limits, start=1):
            rates = np.diff(rates, axis=0) / ((times_s[order:] - times_s[:-order]) / order)[:, None]
            assert (np.abs(rates) <= np.multiply(limit, 1 + 1e-6)).all(), (order, np.abs(rates / limit).max())


@pytest.mark.parametrize("kind", ["first command away", "trembling", "all"])
def test_a_motion_within_the_limits_is_reached_again(panda, kind):
    """Guards against: a guard that limits once and then lags behind for good."""
    rows, _, arrivals_s = hostile_stream(kind, panda, 0)
    rows = np.concatenate([rows, np.repeat(rows[-1:], 100, axis=0)])
    arrivals_s = np.concatenate([arrivals_s, arrivals_s[-1] + np.arange(1, 101) * PERIOD])
    guard = CommandGuard(panda, PERIOD, np.asarray(panda.home_rad), deadline_s=0.2)
    played = play(guard, rows, arrivals_s, 3.0)
    assert guard.tracker.deviated > 0
    np.testing.assert_allclose(played[-1], rows[-1], atol=1e-9)


def test_commands_far_ahead_of_their_time_end_the_commands(panda):
    """Guards against: a client that fills the memory with commands for next week."""
    guard = CommandGuard(panda, PERIOD, np.asarray(panda.home_rad))
    for number in range(200):
        guard.receive(np.add(panda.home_rad, 1e-6 * number), number * PERIOD, 50.0)
    with pytest.raises(RobotError, match=r"more than 1 s ahead"):
        guard.receive(np.add(panda.home_rad, 1e-3), 1000 * PERIOD, 50.0)


def test_a_robot_computer_that_stood_still_is_not_taken_for_a_client_ahead(panda):
    """Guards against: a stop for commands `1 s ahead` after a second in which neither end was scheduled."""
    rows = sweep(panda, 3.0)
    guard = CommandGuard(panda, PERIOD, np.asarray(panda.home_rad), deadline_s=2.0)
    stamps_s = np.arange(len(rows)) * PERIOD
    for tick, stamp_s in enumerate(stamps_s):
        if 0.5 < stamp_s < 1.7:
            continue
        guard.receive(rows[tick], stamp_s, 50.0 + stamp_s)
        guard.position(50.0 + stamp_s)
    assert guard.stopped is None


def test_commands_that_nobody_plays_are_bounded(panda):
    """Guards against: memory filled by a client while the robot's driver hangs."""
    guard = CommandGuard(panda, PERIOD, np.asarray(panda.home_rad))
    for number in range(10_001):
        guard.receive(np.asarray(panda.home_rad), number * 1e-6, 50.0 + number * 1e-6)
    with pytest.raises(RobotError, match="more than 10000 commands wait"):
        guard.receive(np.asarray(panda.home_rad), 1.0, 51.0)


def colliding(name: str, count: int) -> tuple[RobotProfile, np.ndarray]:
    """A shipped profile with a margin of 2 cm, and random postures in which its links overlap."""
    if name == "viperx_pair":
        arms = read_profile(name).arms
        profile = of_arms(name, {side: replace(arm, collision_margin_m=0.02) for side, arm in arms.items()})
    else:
        profile = replace(read_profile(name), collision_margin_m=0.02)
    qpos = np.random.default_rng(0).uniform(*profile.soft_limits_rad, (4000, profile.joints))
    found = qpos[profile.clearance_m(qpos, margin_share=0.0) < 0][:count]
    assert len(found) == count
    return profile, found


@pytest.mark.parametrize("name", ["panda", "ur5e", "xarm7", "so101", "viperx_pair"])
def test_links_never_touch_at_commands_within_the_joint_limits(name):
    """Guards against: a client without the loop's limits that drives an arm into itself, or into the other arm."""
    profile, postures = colliding(name, 12)
    home = np.asarray(profile.home_rad)
    for posture in postures:
        guard, played = CommandGuard(profile, PERIOD, home), []
        way = posture - home
        step = 0.9 * PERIOD * way / np.abs(way / profile.velocity_rad_s).max()
        position, tick = home, 0
        while guard.stopped is None:
            assert np.abs(posture - position).max() > np.abs(step).max(), "it arrived, with its links in one another"
            try:
                guard.receive(position, tick * PERIOD, 50.0 + tick * PERIOD)
            except RobotError:
                break
            played.append(guard.position(50.0 + tick * PERIOD))
            # the first commands stand still, then up to full speed within every joint's acceleration limit
            position, tick = position + min(max(tick - 3, 0) * PERIOD / 1.2, 1.0) * step, tick + 1
        assert "brings links" in str(guard.stopped)
        while not guard.at_rest:
            played.append(guard.position(50.0 + tick * PERIOD))
            tick += 1
        assert profile.clearance_m(np.stack(played), margin_share=0.0).min() >= 0
        assert len(played) > 50, "not refused at once"


@pytest.mark.parametrize("name", ["panda", "viperx_pair"])
def test_motions_of_the_loop_are_never_too_near(name):
    """Guards against: a guard that stops the loop's own motions at the margin that both keep."""
    profile, postures = colliding(name, 2)
    for posture in postures:
        smoother = JointSmoother(profile, PERIOD, 0.05)
        guard = CommandGuard(profile, PERIOD, smoother.state[0])
        closed = np.full(profile.grippers, np.nan)
        for tick in range(400):
            if tick % 10 == 0:
                asked = Targets(posture, closed, {"non_finite": np.zeros((), bool)})
                commanded = smoother.state[0]
                targets = limit_targets(profile, asked, commanded, closed, 0.05, commanded)
                smoother.aim(targets.joint_position_rad)
            guard.receive(smoother.step(), tick * PERIOD, 50.0 + tick * PERIOD)
            played = guard.position(50.0 + tick * PERIOD)
        assert guard.stopped is None
        assert np.abs(played - profile.home_rad).max() > 0.1


def test_a_posture_that_is_too_near_may_be_left():
    """Guards against: an arm that was brought by hand to where its links are close, and takes no command."""
    profile, postures = colliding("panda", 1)
    guard, position = CommandGuard(profile, PERIOD, postures[0]), postures[0]
    way = np.asarray(profile.home_rad) - position
    for tick in range(20):
        guard.receive(position, tick * PERIOD, 50.0 + tick * PERIOD)
        guard.position(50.0 + tick * PERIOD)
        position = position + min(tick / 100, 1.0) * PERIOD * way / np.abs(way / profile.velocity_rad_s).max()
    assert guard.stopped is None
