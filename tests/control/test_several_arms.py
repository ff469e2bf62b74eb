"""Robots of several arms and grippers, of a hand, of a base: one control law for all of them."""

import time
from dataclasses import replace

import numpy as np
import pytest
import torch

from robopolicy.client import pack
from robopolicy.control.kinematics import matrix_to_quaternion, rotation_vector, tool_pose
from robopolicy.control.limits import base_target, limit_targets
from robopolicy.control.profile import RobotProfile, of_arms, profile_from_dict, read_profile
from robopolicy.control.replay import CHUNK, Record, RecordedStream, along_path, first_place
from robopolicy.control.robot_server import RobotServer
from robopolicy.control.robots.fake import FakeRobot
from robopolicy.control.robots.websocket import WebsocketRobot
from robopolicy.control.smoothing import BaseRamp
from robopolicy.control.targets import action_at, joint_targets
from robopolicy.demos.formats.act import aloha_action_spec
from robopolicy.sim.scene import VIPERX_PAIR
from robopolicy.types import ActionSpec, Command
from tests.control.test_loop import assert_within_limits, make_loop
from tests.waiting import PATIENCE_S

PAIR, PANDA = read_profile("viperx_pair"), read_profile("panda")
ALOHA = aloha_action_spec(14)
PANDAS = of_arms("pandas", {"left": PANDA, "right": PANDA})
EE_PAIR = ActionSpec(
    arm=[*range(6), *range(7, 13)],
    gripper=[6, 13],
    arms={"left": range(7), "right": range(7, 14)},
    kind="delta",
    space="ee",
)
HOME = np.asarray(PAIR.home_rad)


def row_at(qpos: np.ndarray, opening_m: np.ndarray) -> np.ndarray:
    return action_at(PAIR, ALOHA, qpos, opening_m)


def test_the_spec_says_which_columns_belong_to_which_arm():
    """Guards against: a column of the left arm that moves the right one after a file was written and read."""
    assert ActionSpec.from_dict(ALOHA.to_dict()) == ALOHA
    assert VIPERX_PAIR.actions == ALOHA
    right = ALOHA.arm_specs["right"]
    assert (right.joint_columns, right.gripper_ends) == (tuple(range(6)), ((6, 1.0, 0.0),))
    mobile = aloha_action_spec(16)
    assert (mobile.base, mobile.joint_columns) == ((14, 15), (*range(6), *range(7, 13)))
    with pytest.raises(ValueError, match="must hold each arm and gripper column once"):
        replace(ALOHA, arms={"left": range(7), "right": range(6, 13)})
    with pytest.raises(ValueError, match="base \\[20\\] must be among the arm columns"):
        ActionSpec(arm=6, gripper=0, base=[20])
    with pytest.raises(ValueError, match="give a pair of different values for each"):
        replace(ALOHA, continuous_gripper_values=((1.0, 1.0), (1.0, 0.0)))


def test_each_arm_is_limited_as_if_it_were_alone():
    """Guards against: one arm's limit that shortens the other's motion, a gripper that follows the other's column."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        qpos = np.concatenate([np.add(PANDA.home_rad, 0.2 * rng.uniform(-1, 1, 7)) for _ in range(2)])
        action, opening_m = rng.uniform(-1.5, 1.5, 14), np.array([0.01, 0.07])
        both = limit_targets(PANDAS, joint_targets(PANDAS, EE_PAIR, action, qpos, 0.05), qpos, opening_m, 0.05)
        single = ActionSpec(arm=6, gripper=1, kind="delta", space="ee")
        for place, (_, arm, joints, gripper) in enumerate(PANDAS.parts):
            asked = joint_targets(arm, single, action[7 * place : 7 * place + 7], qpos[joints], 0.05)
            alone = limit_targets(arm, asked, qpos[joints], opening_m[gripper], 0.05)
            np.testing.assert_array_equal(both.joint_position_rad[joints], alone.joint_position_rad)
            np.testing.assert_array_equal(both.gripper_opening_m[gripper], alone.gripper_opening_m)
    torched = joint_targets(PANDAS, EE_PAIR, torch.from_numpy(action)[None], torch.from_numpy(qpos)[None], 0.05)
    here = joint_targets(PANDAS, EE_PAIR, action, qpos, 0.05)
    np.testing.assert_allclose(torched.joint_position_rad[0].numpy(), here.joint_position_rad, atol=1e-9)


def test_what_is_not_finite_for_one_arm_holds_both():
    """Guards against: a bimanual grasp in which one hand keeps moving while the other has no target."""
    qpos = np.tile(PANDA.home_rad, 2)
    action = np.zeros(14)
    action[2], action[9] = np.nan, 1.0
    targets = limit_targets(PANDAS, joint_targets(PANDAS, EE_PAIR, action, qpos, 0.05), qpos, np.zeros(2), 0.05)
    assert targets.limited["non_finite"]
    assert np.isfinite(targets.joint_position_rad).all()
    np.testing.assert_array_equal(targets.joint_position_rad[:7], qpos[:7])


def test_alohas_rows_are_the_robots_state():
    """Guards against: a policy of ALOHA's that sees an open gripper as closed, or a joint in another column."""
    opening_m = np.array([0.02, 0.072])
    row = row_at(HOME, opening_m)
    np.testing.assert_allclose(row[[6, 13]], [0.02 / 0.072, 1.0])
    back = joint_targets(PAIR, ALOHA, row, HOME, 0.02)
    np.testing.assert_allclose(back.joint_position_rad, HOME)
    np.testing.assert_allclose(back.gripper_opening_m, opening_m)


@pytest.mark.parametrize("columns", [6, 7])
def test_an_absolute_pose_is_reached(columns):
    """Guards against: a pose in another frame, a quaternion in another order, an error of the damping that stays."""
    spec = ActionSpec(arm=columns, gripper=0, kind="absolute", space="ee")
    rng = np.random.default_rng(1)
    for _ in range(20):
        qpos = np.add(PANDA.home_rad, 0.3 * rng.uniform(-1, 1, 7))
        position, rotation = tool_pose(PANDA.arm, qpos + 0.05 * rng.uniform(-1, 1, 7))
        turned = rotation_vector(rotation) if columns == 6 else matrix_to_quaternion(rotation)
        asked = joint_targets(PANDA, spec, np.concatenate([position, turned]), qpos, 0.05)
        reached, found = tool_pose(PANDA.arm, asked.joint_position_rad)
        np.testing.assert_allclose(reached, position, atol=1e-5)
        np.testing.assert_allclose(found, rotation, atol=1e-4)
        assert np.abs(asked.joint_position_rad - qpos).max() < 0.2


def hand_profile() -> RobotProfile:
    limits = {
        "position_lower_rad": [-0.3] * 16,
        "position_upper_rad": [1.6] * 16,
        "velocity_rad_s": [5.0] * 16,
        "acceleration_rad_s2": [30.0] * 16,
        "jerk_rad_s3": [1000.0] * 16,
        "home_rad": [0.2] * 16,
    }
    names = [f"joint_{number}" for number in range(16)]
    return profile_from_dict({"name": "hand", "joint_names": names, "opening_m": 0.0, **limits})


def test_a_hand_of_sixteen_joints_is_driven_without_a_gripper(fake_clock):
    """Guards against: a robot without gripper and kinematics that can't be driven, or is sent an opening."""
    spec = ActionSpec(arm=16, gripper=0, kind="absolute", space="joint_position", rate_hz=20.0)
    robot = FakeRobot(hand_profile(), clock=fake_clock)
    target = np.linspace(0.1, 0.35, 16)
    loop = make_loop(robot, fake_clock, lambda *_: np.tile(target, (4, 1)), spec)
    statistics = loop.run(1.0)
    assert loop.stopped is None
    np.testing.assert_allclose(robot.qpos(), target, atol=1e-3)
    assert statistics.acted > 10
    assert robot.commands[-1].gripper_opening_m.shape == (0,)
    assert set(robot.observe().obs) == {"qpos"}
    assert_within_limits(robot)
    gripper = ActionSpec(arm=16, gripper=1, kind="absolute", space="joint_position")
    with pytest.raises(ValueError, match=r"the actions command 1 grippers \(columns 16\), robot hand has none"):
        make_loop(robot, fake_clock, lambda *_: None, gripper)


def test_two_arms_move_within_every_limit_and_grip_apart(fake_clock):
    """Guards against: a second arm that moves without limits, or a second gripper that is ignored without a word."""
    robot = FakeRobot(PAIR, control_dt=0.05, clock=fake_clock, opening_m=0.03)
    rng = np.random.default_rng(2)

    def wander(step, observation):
        rows = np.tile(row_at(observation.obs["qpos"], np.array([0.072, 0.0])), (4, 1))
        rows[:, ALOHA.joint_columns] += 0.15 * rng.uniform(-1, 1, (1, 12))
        return rows

    loop = make_loop(robot, fake_clock, wander, replace(ALOHA, rate_hz=20.0))
    loop.go_home()
    assert np.isnan(robot.commands[-1].gripper_opening_m).all()
    statistics = loop.run(3.0)
    assert loop.stopped is None, loop.stopped
    assert statistics.acted > 50
    np.testing.assert_allclose(robot.observe().obs["gripper"], [0.072, 0.0], atol=1e-6)
    assert_within_limits(robot)
    moved = np.ptp([command.joint_position_rad for command in robot.commands], axis=0)
    assert (moved > 0.01).all(), "every joint of both arms"


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (
            replace(ALOHA, arms={"a": range(7), "b": range(7, 14)}),
            "move the arms a, b; robot viperx_pair has left, right",
        ),
        (
            ActionSpec(arm=6, gripper=0, kind="delta", space="ee"),
            "without saying whose; robot viperx_pair has the arms",
        ),
        (replace(ALOHA, continuous_gripper=(), continuous_gripper_values=()), "arm left: can't turn 7 arm columns"),
        (ActionSpec(arm=12, gripper=1, kind="absolute", space="joint_position"), "command 1 grippers .* has 2"),
    ],
)
def test_actions_that_do_not_fit_the_arms_are_refused(fake_clock, spec, message):
    """Guards against: a robot that moves one arm by the columns of another."""
    with pytest.raises(ValueError, match=message):
        make_loop(FakeRobot(PAIR, clock=fake_clock), fake_clock, lambda *_: None, spec)


def test_targets_in_degrees_stop_the_robot_before_it_moves(fake_clock):
    """Guards against: a data set in degrees, at whose first action the arm leaves at full speed."""
    robot = FakeRobot(PAIR, clock=fake_clock)
    rows = row_at(HOME, np.zeros(2))
    rows[list(ALOHA.joint_columns)] = np.rad2deg(HOME)
    loop = make_loop(robot, fake_clock, lambda *_: np.tile(rows, (4, 1)), ALOHA)
    loop.run(0.5)
    assert loop.stopped is not None
    assert loop.stopped.endswith("at most 0.2 rad allowed; are the actions in degrees?")
    np.testing.assert_allclose(robot.qpos(), HOME, atol=1e-9)


MOBILE = replace(PAIR, base_velocity=(0.5, 1.0), base_acceleration=(1.0, 2.0))
MOBILE_ALOHA = replace(aloha_action_spec(16), rate_hz=20.0)


def test_a_base_follows_its_columns_and_rests_when_nothing_is_asked(fake_clock):
    """Guards against: a base that jumps to its speed, exceeds it, or rolls on after the last action."""
    robot = FakeRobot(MOBILE, clock=fake_clock)
    asked = np.concatenate([row_at(HOME, np.zeros(2)), [2.0, -0.3]])
    loop = make_loop(robot, fake_clock, lambda *_: np.tile(asked, (4, 1)), MOBILE_ALOHA, silent_after=20)
    statistics = loop.run(3.0)
    velocity = np.array([command.base_velocity for command in robot.commands])
    assert loop.stopped is not None, "the policy fell silent"
    np.testing.assert_allclose(velocity.max(0)[0], 0.5)
    np.testing.assert_allclose(velocity.min(0)[1], -0.3)
    assert (np.abs(np.diff(velocity, axis=0)) <= 0.01 * np.array([1.0, 2.0]) + 1e-9).all()
    assert not velocity[-1].any()
    assert statistics.limited["base_velocity"] > 0
    with pytest.raises(ValueError, match="the actions command a base in 2 directions"):
        base_target(PAIR, MOBILE_ALOHA, asked)


def test_a_base_rests_when_its_client_falls_silent():
    """Guards against: a base that rolls on for ever because the policy's computer lost its network."""
    robot = FakeRobot(MOBILE)
    with RobotServer(robot, port=0, deadline_s=0.1) as server:
        client = WebsocketRobot(port=server.port, timeout_s=2.0)
        home = client.qpos()
        for step in range(1, 40):
            client.command(Command(home, [0.03, 0.04], 0.01 * step, np.array([0.2, 0.1])))
            time.sleep(0.01)
        np.testing.assert_allclose(robot.commands[-1].base_velocity, [0.2, 0.1])
        np.testing.assert_allclose(robot.commands[-1].gripper_opening_m, [0.03, 0.04])
        time.sleep(1.0)
        assert not robot.commands[-1].base_velocity.any()
        client.stop()


def test_a_command_for_other_grippers_stops_the_robot():
    """Guards against: a client set up for one gripper that moves the first of two."""
    robot = FakeRobot(PAIR)
    with RobotServer(robot, port=0, deadline_s=1.0) as server:
        client = WebsocketRobot(port=server.port, timeout_s=2.0)
        assert client.profile == PAIR, "the profile of two arms travels"
        client._send({"qpos": client.qpos(), "opening_m": 0.01, "stamp_s": 0.0})
        ends_s = time.monotonic() + 5
        while client._lost is None and time.monotonic() < ends_s:
            time.sleep(0.01)
        assert client._lost == "the robot stopped itself: a command has 1 gripper openings; the robot has 2 grippers"
        client.stop()


def test_a_record_of_two_arms_is_followed_with_both_grippers():
    """Guards against: a replay that leaves out the second gripper, or takes a gripper's column for a joint."""
    steps = np.linspace(0.0, 0.1, 21)
    path = HOME + steps[:, None] * np.ones(12)
    actions = np.stack([row_at(qpos, np.array([0.072, 0.02])) for qpos in path[1:]])
    record = along_path(Record(actions, ALOHA, path))
    assert record.spec.arm_width == 14
    assert first_place(record, PAIR) is not None
    stream = RecordedStream(record.at_speed(0.5), 0.02)
    targets = joint_targets(PAIR, record.spec, record.actions[0].astype(float), HOME, 0.02)
    np.testing.assert_allclose(targets.joint_position_rad, path[1], atol=1e-6)
    np.testing.assert_allclose(targets.gripper_opening_m, [0.072, 0.02], atol=1e-6)
    assert stream._rows.shape == (41, 14)
    assert CHUNK == 8


def test_a_profile_of_arms_is_read_with_what_an_arm_changes(tmp_path):
    """Guards against: an arm whose own base pose is lost, or a file that mixes fields of the robot and of its arms."""
    left, right = (arm for _, arm, _, _ in PAIR.parts)
    np.testing.assert_allclose(
        tool_pose(left.arm, HOME[:6])[0] * [-1, 1, 1], tool_pose(right.arm, HOME[6:])[0], atol=1e-12
    )
    assert PAIR.joint_names[0] == "left_waist"
    assert profile_from_dict(PAIR.to_dict()) == PAIR
    with pytest.raises(ValueError, match="velocity_rad_s belongs to an arm"):
        profile_from_dict({"name": "x", "arms": {"left": {}}, "velocity_rad_s": [1.0]})
    with pytest.raises(ValueError, match="arm 'left': profile 'panda' can be named only in a file; give its fields"):
        profile_from_dict({"name": "x", "arms": {"left": {"profile": "panda"}}})
    with pytest.raises(ValueError, match="assumed names 'speed'"):
        replace(PANDA, assumed=("speed",))


def test_a_base_ramp_counts_the_commands_that_were_missed():
    """Guards against: a base that accelerates too slowly, or jumps, where ticks were missed."""
    ramp = BaseRamp(MOBILE, 0.01)
    ramp.target = np.array([0.5, -1.0])
    np.testing.assert_allclose(ramp.step(), [0.01, -0.02])
    np.testing.assert_allclose(ramp.step(3), [0.04, -0.08])
    ramp.brake()
    assert not ramp.at_rest
    for _ in range(10):
        ramp.step()
    assert ramp.at_rest
    pack({"base": ramp.velocity})


def test_an_unknown_field_is_reported_once(caplog):
    """Guards against: a client whose misspelled field has no effect and no message."""
    with RobotServer(FakeRobot(PANDA), port=0, deadline_s=2.0) as server:
        client = WebsocketRobot(port=server.port, timeout_s=PATIENCE_S)
        for _ in range(3):
            client._send({"reset": True, "obserev": 1})
            client.observe()
        client.stop()
    messages = [record.getMessage() for record in caplog.records if "is not read" in record.getMessage()]
    assert messages == [
        "the client sends obserev, reset, which is not read; expected base, observe, opening_m, qpos, stamp_s, stop"
    ]
