"""A record executed again: at another speed, along its path, by the time of what is seen."""

import numpy as np
import pytest

from robopolicy.control.replay import SETTLING_S, Record, RecordedStream, along_path, first_place
from robopolicy.types import ActionSpec, Observation

DELTAS = ActionSpec(arm=2, gripper=1, kind="delta", space="ee", rate_hz=20.0)
TARGETS = ActionSpec(arm=2, gripper=1, kind="absolute", space="joint_position", rate_hz=20.0)


def record(spec: ActionSpec = DELTAS, steps: int = 6) -> Record:
    arm = np.arange(2 * steps).reshape(steps, 2) / 10
    grip = np.where(np.arange(steps) < steps // 2, -1.0, 1.0)[:, None]
    return Record(np.concatenate([arm, grip], axis=1), spec, np.linspace([0.0, 1.0], [0.5, 0.0], steps))


@pytest.mark.parametrize("speed", [0.25, 0.4, 0.7, 1.0, 1.5])
def test_deltas_at_another_speed_add_up_to_the_same_motion(speed):
    """Guards against: a replay at half the speed that goes half the way, or twice as far."""
    original, stretched = record(), record().at_speed(speed)
    assert len(stretched.actions) == np.ceil(6 / speed)
    np.testing.assert_allclose(stretched.actions[:, :2].sum(0), original.actions[:, :2].sum(0), atol=1e-9)
    closes = np.argmax(stretched.actions[:, 2] > 0)
    assert closes == np.ceil(3 / speed)


def test_targets_at_half_the_speed_are_the_same_with_others_between_them():
    """Guards against: a target divided as if it were a step, so that the arm goes to half its angles."""
    original, slow = record(TARGETS), record(TARGETS).at_speed(0.5)
    np.testing.assert_allclose(slow.actions[1::2, :2], original.actions[:, :2], atol=1e-9)
    np.testing.assert_allclose(slow.actions[2, :2], original.actions[:2, :2].mean(0), atol=1e-9)
    np.testing.assert_array_equal(np.unique(slow.actions[:, 2]), [-1, 1])
    np.testing.assert_allclose(slow.path_rad[::2], [*original.path_rad, original.path_rad[-1]], atol=1e-9)


def test_a_path_becomes_targets_one_step_ahead_and_keeps_its_gripper():
    """Guards against: targets that lag one step behind, or a replay that never grasps."""
    followed = along_path(record())
    np.testing.assert_allclose(followed.actions[:5, :2], record().path_rad[1:], atol=1e-6)
    np.testing.assert_allclose(followed.actions[5, :2], [0.6, -0.2], atol=1e-6)
    np.testing.assert_array_equal(followed.actions[:, 2], record().actions[:, 2])
    assert (followed.spec.kind, followed.spec.space, followed.spec.gripper_columns) == (
        "absolute",
        "joint_position",
        (2,),
    )
    smooth = ActionSpec(arm=3, gripper=0, continuous_gripper=(2,), kind="delta", space="ee", rate_hz=20.0)
    assert along_path(record(smooth)).spec.continuous_gripper == (2,)
    without = ActionSpec(arm=2, gripper=0, constant={2: 0.0}, kind="delta", space="ee", rate_hz=20.0)
    assert along_path(record(without)).spec.width == 2
    with pytest.raises(ValueError, match="the record has no joint positions"):
        along_path(Record(record().actions, DELTAS))


def test_the_speed_within_the_limits_is_that_of_the_fastest_joint(panda):
    """Guards against: a suggestion that is still too fast, or needlessly slow."""
    path = np.array(panda.home_rad) + 0.4 * np.sin(np.linspace(0, 2 * np.pi, 21))[:, None] ** 2
    spec = ActionSpec(arm=7, gripper=0, kind="absolute", space="joint_position", rate_hz=20.0)
    fast = Record(path[1:], spec, path)
    speed = fast.speed_within(panda)
    assert 0.1 < speed < 0.9
    slowed = fast.at_speed(speed).path_rad
    rates = np.abs(np.diff(slowed, axis=0)).max(0) * 20, np.abs(np.diff(slowed, 2, axis=0)).max(0) * 400
    assert (rates[0] <= np.array(panda.velocity_rad_s) * 1.001).all()
    assert (rates[1] <= np.array(panda.acceleration_rad_s2) * 1.001).all()
    assert fast.at_speed(speed / 2).speed_within(panda) == 1.0


def test_a_record_that_begins_and_ends_in_mid_motion_is_entered_and_left_at_rest(panda):
    """Guards against: an arm asked for full speed in its first step, which lags behind to the end."""
    path = np.array(panda.home_rad) + np.linspace(0, 0.8, 21)[:, None]
    spec = ActionSpec(arm=7, gripper=0, kind="absolute", space="joint_position", rate_hz=20.0)
    fast = Record(path[1:], spec, path)
    slow = fast.at_speed(fast.speed_within(panda))
    rates = np.abs(np.diff(np.pad(slow.path_rad, ((2, 2), (0, 0)), mode="edge"), 2, axis=0)).max(0) * 400
    assert (rates <= np.array(panda.acceleration_rad_s2) * 1.001).all()
    assert slow.speed_within(panda) > 0.9
    assert Record(path[:1], spec, path[:1]).speed_within(panda) == 1.0


def test_what_is_done_when_depends_on_the_time_alone():
    """Guards against: an observation that is late or lost and shifts everything after it."""
    stream = RecordedStream(record(), 0.05)
    seen = [stream(Observation({}, None, 7.0 + stamp_s)) for stamp_s in (0.0, 0.051, 0.149, 0.35)]
    np.testing.assert_allclose([rows[0, 0] for rows in seen], [0.0, 0.2, 0.6, 0.0], atol=1e-6)
    np.testing.assert_allclose(seen[1][:5, 0], [0.2, 0.4, 0.6, 0.8, 1.0], atol=1e-6)
    assert (seen[3][:, :2] == 0).all(), "a delta must not be repeated beyond the end"
    assert (seen[3][:, 2] == 1).all(), "and the gripper not be opened"
    assert not stream.finished
    stream(Observation({}, None, 7.0 + 0.3 + SETTLING_S))
    assert stream.finished
    stream.reset()
    assert not stream.finished
    assert stream(Observation({}, None, 99.0))[0, 2] == -1


def test_the_outcome_tells_the_largest_deviation_and_whether_it_was_followed():
    """Guards against: a replay that strayed half a radian and reports success."""
    stream = RecordedStream(along_path(record()), 0.05)
    for step in range(17):
        place = stream.record.path_rad[min(step, 6)] + [0.0, 0.02 * (step == 3)]
        stream(Observation({"qpos": place}, None, step * 0.05))
    outcome = stream.outcome()
    assert (outcome["steps"], outcome["done"], outcome["followed"], outcome["joint"]) == (6, 6, True, 1)
    assert outcome["largest_rad"] == pytest.approx(0.02)
    assert outcome["at_s"] == pytest.approx(0.15)
    assert outcome["end_rad"] == pytest.approx(0.0)
    stream(Observation({"qpos": np.array([3.0, 0.0])}, None, 17 * 0.05))
    assert not stream.outcome()["followed"]
    blind = RecordedStream(Record(record().actions, DELTAS), 0.05)
    assert blind.outcome() == {"steps": 6, "done": 0, "followed": False}


def test_a_record_of_another_robot_is_refused(panda):
    """Guards against: two joints' angles sent to the first two of seven."""
    with pytest.raises(ValueError, match="the record has 2 joint positions; panda has 7 joints"):
        first_place(record(), panda)
    assert first_place(Record(record().actions, DELTAS), panda) is None


def test_the_commanded_positions_are_followed_where_recorded():
    """Guards against: a replay that lags behind its record by the lag of the arm."""
    original = record()
    reference = original.path_rad + 0.01
    followed = along_path(Record(original.actions, original.spec, original.path_rad, reference))
    np.testing.assert_allclose(followed.actions[:5, :2], reference[1:6], atol=1e-6)
    np.testing.assert_array_equal(followed.path_rad[:6], original.path_rad[:6])
