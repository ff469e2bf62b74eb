"""An operator takes the robot over from the policy and hands it back, on a clock that obeys."""

import os
import pty
import re
import struct
import sys
import termios
import time
from contextlib import ExitStack
from dataclasses import dataclass, field, replace

import numpy as np
import pytest

from robopolicy.components import ConfigError
from robopolicy.control.operators.base import OperatorContext, ToolOperator
from robopolicy.control.operators.keyboard import Keyboard, KeyboardOptions
from robopolicy.control.operators.leader import LeaderOptions, make_leader
from robopolicy.control.operators.spacemouse import Spacemouse, SpacemouseOptions, make_spacemouse
from robopolicy.control.robot_server import RobotServer
from robopolicy.control.robots.fake import FakeRobot
from robopolicy.control.targets import joint_targets
from robopolicy.testing.operator import CHECKS
from robopolicy.types import ActionSpec, Observation
from tests.control.test_loop import ListRecorder, assert_within_limits, forward, make_loop

BACK = np.array([-1.0, 0.3, 0, 0, 0, 0.5, 1.0])


@dataclass
class ScriptedOperator:
    """Has the robot in the control steps `begins` .. `ends` - 1, and moves it by `action`."""

    begins: int = 8
    ends: int = 14
    action: np.ndarray = field(default_factory=BACK.copy)
    step: int = -1

    def act(self, t_s, qpos, policy_action):
        """The scripted action."""
        self.step += 1
        return self.action if self.begins <= self.step < self.ends else None

    def close(self):
        """Nothing to release."""


def test_takeover_and_return_keep_to_the_limits(fake_robot, fake_clock):
    """Guards against: a leap in velocity, acceleration or jerk where operator and policy want opposite directions."""
    recorder = ListRecorder()
    loop = make_loop(fake_robot, fake_clock, forward, recorder=recorder, operator=ScriptedOperator())
    statistics = loop.run(1.0)
    assert_within_limits(fake_robot)
    operated = [tick.intervention for tick in recorder.steps]
    assert operated == [8 <= step < 14 for step in range(20)]
    assert statistics.operated == 6
    assert statistics.failure is None
    for tick in recorder.steps:
        np.testing.assert_allclose(tick.action, BACK if tick.intervention else forward(0, None)[0], atol=1e-6)
        np.testing.assert_allclose(tick.policy_action, forward(0, None)[0], atol=1e-6)
    moved = fake_robot.commands[-1].joint_position_rad - fake_robot.commands[0].joint_position_rad
    assert np.abs(moved).max() > 0.01


@pytest.mark.parametrize("latency_s", [0.0, 0.045], ids=["fast policy", "slow policy"])
def test_a_plan_made_before_the_return_is_dropped(fake_robot, fake_clock, latency_s):
    """Guards against: after the return, the rest of a chunk that was predicted for where the robot was before."""
    script = lambda step, observation: np.tile([0.01 * step, 0, 0, 0, 0, 0, -1.0], (4, 1))  # noqa: E731
    loop = make_loop(
        fake_robot,
        fake_clock,
        script,
        latency_s=latency_s,
        recorder=(recorder := ListRecorder()),
        operator=ScriptedOperator(),
    )
    loop.executor.replan_every = 4
    statistics = loop.run(1.0)
    late = 0 if latency_s == 0 else 1
    assert recorder.steps[14].action[0] == pytest.approx(0.01 * (14 - late))
    assert statistics.failure is None


@pytest.mark.parametrize(
    ("action", "reason"),
    [(np.zeros(3), r"operator: an action of shape \(3,\); expected \(7,\)"), (None, "operator: unplugged")],
    ids=["wrong width", "lost device"],
)
def test_an_operator_that_fails_stops_the_robot(fake_robot, fake_clock, action, reason):
    """Guards against: a robot that carries on with the last action of a device that is gone."""

    class Broken(ScriptedOperator):
        def act(self, t_s, qpos, policy_action):
            given = super().act(t_s, qpos, policy_action)
            if given is not None and action is None:
                raise OSError("unplugged")
            return action if given is not None else None

    loop = make_loop(fake_robot, fake_clock, forward, operator=Broken())
    loop.run(1.0)
    assert loop.stopped is not None
    assert re.fullmatch(reason, loop.stopped)
    assert_within_limits(fake_robot)


# -- devices


HOME = np.array([0.0, 0.2, 0.0, -2.0, 0.0, 2.2, 0.8])
EE = ActionSpec(arm=6, gripper=1, kind="delta", space="ee")
SPECS = [
    EE,
    ActionSpec(arm=7, gripper=1, kind="absolute", space="joint_position"),
    ActionSpec(arm=7, gripper=1, kind="delta", space="joint_position", gripper_values=((0.0, 1.0),)),
    ActionSpec(arm=8, gripper=0, kind="delta", space="joint_velocity", continuous_gripper=(7,)),
    ActionSpec(
        arm=8,
        gripper=0,
        kind="absolute",
        space="joint_position",
        continuous_gripper=(7,),
        continuous_gripper_values=((0.08, 0.0),),
    ),
]


@pytest.mark.parametrize("spec", SPECS, ids=["ee", "absolute", "delta", "velocity", "opening in metres"])
def test_one_motion_is_the_same_in_every_action_space(panda, spec):
    """Guards against: an operator who moves the robot elsewhere where the policy commands joints."""
    motion = np.array([0.3, -0.2, 0.1, 0.1, 0.0, -0.2])
    by_tool = joint_targets(panda, spec, OperatorContext(panda, spec, 0.05).tool_action(motion, 1.0, HOME), HOME, 0.05)
    wanted = joint_targets(panda, EE, np.append(motion, 1.0), HOME, 0.05)
    np.testing.assert_allclose(by_tool.joint_position_rad, wanted.joint_position_rad, atol=1e-9)
    assert by_tool.gripper_opening_m == pytest.approx(0.0)
    target = HOME + 0.01
    by_joints = OperatorContext(panda, spec, 0.05).joint_action(target, 0.0, HOME)
    reached = joint_targets(panda, spec, by_joints, HOME, 0.05)
    assert reached.gripper_opening_m == pytest.approx(panda.opening_m)
    if spec is not EE:  # a tool motion leaves the elbow free
        np.testing.assert_allclose(reached.joint_position_rad, target, atol=1e-9)


class Buttons:
    """A device whose presses are scripted, one entry a step."""

    def __init__(self, *presses):
        self.presses, self.closed = list(presses), False

    def read(self, t_s):
        """The next presses; the tool is moved up."""
        return (np.array([0, 0, 1.0, 0, 0, 0]), *self.presses.pop(0))

    def close(self):
        """Note it."""
        self.closed = True


def test_the_gripper_stays_as_the_policy_had_it(panda):
    """Guards against: a taken robot that drops what it holds."""
    operator = ToolOperator(Buttons((0, 0), (1, 0), (0, 1), (0, 0), (1, 0)), OperatorContext(panda, EE, 0.05))
    holding = np.array([0, 0, 0, 0, 0, 0, 1.0])
    found = [operator.act(0.0, HOME, holding) for _ in range(5)]
    assert found[0] is None
    assert [float(row[6]) for row in found[1:4]] == [1.0, -1.0, -1.0]
    assert found[4] is None


def test_a_tool_that_cannot_be_moved_is_refused(panda):
    """Guards against: a robot that is stopped at the first key instead of a refusal at the start."""
    bare = replace(
        panda,
        kinematics=None,
        speed_m_s=None,
        rotation_speed_rad_s=None,
        workspace_lower_m=None,
        workspace_upper_m=None,
    )
    device = Buttons()
    with pytest.raises(ConfigError, match="has no `kinematics`"):
        ToolOperator(device, OperatorContext(bare, SPECS[1], 0.05))
    assert device.closed


def test_keys_move_the_tool_while_they_are_held():
    """Guards against: a key that sticks, and a terminal left without echo."""
    master, slave = pty.openpty()
    before = termios.tcgetattr(slave)
    keyboard = Keyboard(KeyboardOptions(speed=0.5, hold_s=0.2), slave)
    os.write(master, b"wt")
    time.sleep(0.05)
    motion, taken, gripped = keyboard.read(10.0)
    assert (motion.tolist(), taken, gripped) == ([0.5, 0, 0, 0, 0, 0], 1, 0)
    os.write(master, b"s l")
    time.sleep(0.05)
    motion, taken, gripped = keyboard.read(10.1)
    assert (motion.tolist(), taken, gripped) == ([-0.5, 0, 0, 0, 0, -0.5], 0, 1)
    assert not keyboard.read(10.4)[0].any()
    keyboard.close()
    assert termios.tcgetattr(slave) == before
    os.close(master)
    os.close(slave)


def test_a_keyboard_needs_a_terminal(tmp_path):
    """Guards against: a traceback of termios in a job without a terminal."""
    with open(tmp_path / "file", "w") as file, pytest.raises(ConfigError, match="not a terminal"):
        Keyboard(KeyboardOptions(), file.fileno())


class Reports:
    """An HID device with reports to read."""

    def __init__(self, *reports):
        self.reports = list(reports)

    def read(self, size):
        """The next report, or nothing."""
        return list(self.reports.pop(0)) if self.reports else []


@pytest.mark.parametrize("together", [False, True], ids=["two reports", "one report"])
def test_a_spacemouse_moves_the_tool_as_the_cap_is_moved(together):
    """Guards against: axes swapped between the device and the robot's base frame."""
    cap, turn = (35, -350, 5), (0, 0, 700)
    reports = [b"\x01" + struct.pack("<6h", *cap, *turn)] if together else []
    reports = reports or [b"\x01" + struct.pack("<3h", *cap), b"\x02" + struct.pack("<3h", *turn)]
    mouse = Spacemouse(
        SpacemouseOptions(speed=0.5), Reports(*reports, b"\x03\x02\x00", b"\x03\x03\x00", b"\x03\x00\x00")
    )
    motion, taken, gripped = mouse.read(0.0)
    np.testing.assert_allclose(motion, [0.5, -0.05, 0, 0, 0, -0.5], atol=1e-9)
    assert (taken, gripped) == (1, 1)
    assert mouse.read(0.1)[1:] == (0, 0)


def test_a_missing_spacemouse_is_one_line(panda, monkeypatch):
    """Guards against: a traceback of the USB library."""
    hid = type("hid", (), {"enumerate": staticmethod(lambda vendor: [])})
    monkeypatch.setitem(sys.modules, "hid", hid)
    with pytest.raises(ConfigError, match="none found"):
        make_spacemouse(SpacemouseOptions(), OperatorContext(panda, EE, 0.05))


class Leader(FakeRobot):
    """An arm moved by hand, with a pedal."""

    def __init__(self, profile, pedal=True):
        super().__init__(profile)
        self.turned_rad, self.engaged, self.pedal = 0.0, False, pedal

    def command(self, command):
        """It is moved by hand only."""

    def observe(self):
        """Its joints, gripper and pedal."""
        self._refuse_if_lost()
        qpos = np.add(self.profile.home_rad, [0, 0, 0, 0, 0, 0, self.turned_rad])
        obs = {"qpos": qpos, "gripper": np.array([0.02])} | (
            {"engaged": np.array([self.engaged])} if self.pedal else {}
        )
        return Observation(obs, None, time.monotonic())


def test_a_leader_moves_the_robot_from_where_it_was_taken(panda):
    """Guards against: a leap to where the leader stands, and a leader that is lost unnoticed."""
    leader, spec = Leader(panda), SPECS[1]
    with RobotServer(leader, port=0) as server:
        operator = make_leader(LeaderOptions(address=f"127.0.0.1:{server.port}"), OperatorContext(panda, spec, 0.02))
        assert operator.act(0.0, HOME, np.append(HOME, -1.0)) is None

        def until(condition):
            ends_s = time.monotonic() + 3.0
            while not condition():
                assert time.monotonic() < ends_s
                time.sleep(0.01)

        leader.engaged = True
        until(lambda: operator.act(0.0, HOME, None) is not None)
        np.testing.assert_allclose(operator.act(0.0, HOME, None), np.append(HOME, 1.0), atol=1e-6)
        leader.turned_rad = 0.1
        until(lambda: operator.act(0.0, HOME, None)[6] > HOME[6] + 0.09)
        leader.engaged = False
        until(lambda: operator.act(0.0, HOME, None) is None)
        leader.lost = "unplugged"
        with pytest.raises(ConnectionError, match="unplugged"):
            until(lambda: operator.act(0.0, HOME, None) is not None)
        operator.close()


def test_actions_of_two_grippers_are_refused_at_the_start(panda):
    """Guards against: one device that moves both grippers of a robot alike, and a stop in the middle of a takeover."""
    context = OperatorContext(panda, ActionSpec(arm=7, gripper=2, kind="absolute", space="joint_position"), 0.05)
    with pytest.raises(ConfigError, match="command 2 grippers, and this operator's device has one"):
        ToolOperator(Buttons(), context)
    with RobotServer(Leader(panda), port=0) as server, pytest.raises(ConfigError, match="command 2 grippers"):
        make_leader(LeaderOptions(address=f"127.0.0.1:{server.port}"), context)


def test_a_leader_without_a_pedal_is_refused(panda):
    """Guards against: a leader that can never take over."""
    with RobotServer(Leader(panda, pedal=False), port=0) as server, pytest.raises(ConfigError, match="show 'engaged'"):
        make_leader(LeaderOptions(address=f"127.0.0.1:{server.port}"), OperatorContext(panda, EE, 0.05))


def keyboard(context, stack):
    master, slave = pty.openpty()
    for descriptor in (master, slave):
        stack.callback(os.close, descriptor)
    return ToolOperator(Keyboard(KeyboardOptions(), slave), context), lambda: os.write(master, b"t")


def spacemouse(context, stack):
    reports = Reports()
    reports.close = lambda: None
    press = lambda: reports.reports.append(b"\x03\x02\x00")  # noqa: E731
    return ToolOperator(Spacemouse(SpacemouseOptions(), reports), context), press


def leader(context, stack):
    arm = Leader(context.profile)
    server = stack.enter_context(RobotServer(arm, port=0))
    operator = make_leader(LeaderOptions(address=f"127.0.0.1:{server.port}", timeout_s=5.0), context)
    return operator, lambda: setattr(arm, "engaged", True)


@pytest.mark.parametrize("make", [keyboard, spacemouse, leader])
@pytest.mark.parametrize("check", CHECKS)
def test_operators_keep_their_contract(panda, make, check):
    """Guards against: an operator that holds up the commands, or whose first action stops the robot."""
    context = OperatorContext(panda, SPECS[1], 0.05)
    with ExitStack() as stack:
        operator, take_over = make(context, stack)
        stack.callback(operator.close)
        check(operator, context, take_over)
