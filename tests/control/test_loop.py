"""The control loop on a clock that obeys: grid, strategies of failure, and what a robot is sent."""

from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import pytest
from jaxtyping import Float

from robopolicy.control.executor import ChunkExecutor
from robopolicy.control.inference import TimedChunk
from robopolicy.control.loop import ControlLoop, LoopOptions
from robopolicy.control.robot import DriverError, RobotError, StepRecord
from robopolicy.control.robots.fake import FakeRobot
from robopolicy.types import ActionSpec, Observation

EE = ActionSpec(arm=6, gripper=1, kind="delta", space="ee", rate_hz=20.0)
JOINTS = ActionSpec(arm=7, gripper=0, kind="absolute", space="joint_position")


@dataclass
class ScriptedInference:
    """Thinks `latency_s` long, on the fake clock; what it thinks is scripted."""

    robot: object
    clock: object
    script: object
    latency_s: float = 0.0
    silent_after: int = 10**9
    missed: int = 0
    resets: int = 0
    waiting: list[tuple[float, TimedChunk]] = field(default_factory=list)
    asked: int = 0

    def request(self, t_s: float, prefix=None) -> None:
        """Think, unless fallen silent."""
        self.asked += 1
        if self.asked <= self.silent_after:
            observation = self.robot.observe()
            actions = np.asarray(self.script(self.asked - 1, observation), np.float32)
            self.waiting.append((self.clock.now() + self.latency_s, TimedChunk(observation, actions, self.latency_s)))

    def finished(self) -> list[TimedChunk]:
        """What is due."""
        due = [chunk for ready_s, chunk in self.waiting if ready_s <= self.clock.now() + 1e-9]
        self.waiting = [entry for entry in self.waiting if entry[0] > self.clock.now() + 1e-9]
        return due

    def reset(self) -> None:
        """Forget."""
        self.resets += 1
        self.waiting = []

    def close(self) -> None:
        """Nothing to end."""


@dataclass
class ListRecorder:
    """Keeps the records."""

    steps: list[StepRecord] = field(default_factory=list)

    def record(self, step: StepRecord) -> None:
        """Keep it."""
        self.steps.append(step)

    def close(self) -> None:
        """Nothing to write."""


def make_loop(robot, clock, script, spec=EE, chunk=4, latency_s=0.0, silent_after=10**9, **options) -> ControlLoop:
    inference = ScriptedInference(robot, clock, script, latency_s, silent_after)
    executor = ChunkExecutor(chunk, 0.05, action_spec=spec)
    others = {name: options.pop(name) for name in ("recorder", "operator") if name in options}
    return ControlLoop(robot, inference, executor, spec, options=LoopOptions(**options), clock=clock, **others)


def forward(step: int, observation: Observation) -> Float[np.ndarray, "chunk width"]:
    """Moves the tool to the front, a little."""
    return np.tile([0.2, 0, 0, 0, 0, 0, -1.0], (4, 1))


def assert_within_limits(robot, tolerance: float = 1e-6) -> None:
    """Divided differences of all commands, over their own stamps, against the profile."""
    profile = robot.profile
    rates = np.stack([command.joint_position_rad for command in robot.commands])
    stamps = np.array([command.stamp_s for command in robot.commands])
    assert (rates >= profile.position_lower_rad).all()
    assert (rates <= profile.position_upper_rad).all()
    for order, limit in enumerate((profile.velocity_rad_s, profile.acceleration_rad_s2, profile.jerk_rad_s3), start=1):
        spans = (stamps[order:] - stamps[:-order]) / order
        rates = np.diff(rates, axis=0) / spans[:, None]
        assert (np.abs(rates) <= np.asarray(limit) * (1 + tolerance)).all(), f"derivative {order}"


def test_every_step_acts_on_its_own_observation_where_the_policy_is_fast(fake_robot, fake_clock):
    """Guards against: a whole period of delay that training never saw, from waiting for the next step."""
    acted = []

    def script(step, observation):
        return np.tile([0.01 * step, 0, 0, 0, 0, 0, -1], (4, 1))

    loop = make_loop(fake_robot, fake_clock, script, latency_s=0.012, recorder=(recorder := ListRecorder()))
    statistics = loop.run(1.0)
    acted = [tick.action[0] for tick in recorder.steps if tick.action is not None]
    np.testing.assert_allclose(acted, 0.01 * np.arange(len(acted)), atol=1e-6)
    assert all(tick.observation is not None for tick in recorder.steps)
    assert statistics.late_chunks == 0
    assert statistics.held == 0
    assert statistics.steps == 20


def test_a_slow_policy_is_executed_by_time_from_its_earlier_chunk(fake_robot, fake_clock):
    """Guards against: a loop that drops the arm's command rate to that of a slow policy."""
    script = lambda step, observation: np.arange(4)[:, None] * [0.1, 0, 0, 0, 0, 0, 0] + [0, 0, 0, 0, 0, 0, -1]  # noqa: E731
    loop = make_loop(fake_robot, fake_clock, script, latency_s=0.045, recorder=(recorder := ListRecorder()))
    statistics = loop.run(1.0)
    acted = [tick.action[0] for tick in recorder.steps if tick.action is not None]
    assert acted[0] == 0.0  # of the first chunk, for which the robot has waited
    np.testing.assert_allclose(acted[1:], 0.1, atol=1e-6)
    assert statistics.late_chunks == len(acted)
    assert statistics.commands >= 100


def test_commands_obey_the_limits_although_ticks_are_missed_and_the_policy_stutters(fake_robot, fake_clock):
    """Guards against: limits that hold only while the computer keeps up."""
    rng = np.random.default_rng(0)
    fake_clock.late_s = {int(sleep): float(rng.uniform(0, 0.04)) for sleep in rng.integers(0, 300, 40)}
    wild = lambda step, observation: rng.normal(size=(4, 7)) * rng.choice([0.3, 3.0, np.nan, 1e9])  # noqa: E731
    loop = make_loop(fake_robot, fake_clock, wild, latency_s=0.02, deadline_s=1.0)
    statistics = loop.run(3.0)
    assert statistics.overruns > 0
    assert statistics.limited["non_finite_chunk"] > 0
    assert statistics.limited["action"] > 0
    assert_within_limits(fake_robot)


@pytest.mark.parametrize("latency_s", [0.0, 0.03])
def test_without_fresh_chunks_the_robot_is_stopped_within_the_deadline_and_the_limits(
    fake_robot, fake_clock, latency_s
):
    """Guards against: a policy that hangs while the arm follows its last chunk."""
    loop = make_loop(fake_robot, fake_clock, forward, latency_s=latency_s, silent_after=20, deadline_s=0.2)
    began_s = fake_clock.now()
    statistics = loop.run(60.0)
    assert loop.stopped == "no fresh chunk within 0.2 s"
    assert statistics.stops == [loop.stopped]
    assert fake_clock.now() - began_s < 20 * 0.05 + 0.2 + 0.3
    assert statistics.stop_s[0] < 0.3
    assert_within_limits(fake_robot)
    with pytest.raises(RobotError, match="not armed: no fresh chunk"):
        loop.run(1.0)


def test_rearming_is_explicit_and_forgets_the_old_episode(fake_robot, fake_clock):
    """Guards against: a robot that starts again by itself when the network comes back."""
    loop = make_loop(fake_robot, fake_clock, forward, silent_after=5)
    loop.run(60.0)
    resets = loop.inference.resets
    loop.inference.silent_after = 10**9
    loop.rearm()
    loop.run(0.5)
    assert loop.inference.resets == resets + 1
    assert loop.stopped is None
    loop.clock.t_s += 60.0
    loop.run(0.5)
    assert loop.stopped is None
    assert_within_limits(fake_robot)


def test_an_error_of_the_policy_stops_the_robot_at_once_and_is_told(fake_robot, fake_clock):
    """Guards against: waiting for the watchdog when the failure is already known."""

    def script(step, observation):
        if step == 7:
            raise ConnectionError("server gone")
        return forward(step, observation)

    loop = make_loop(fake_robot, fake_clock, script)
    loop.run(60.0)
    assert loop.stopped == "ConnectionError: server gone"
    assert_within_limits(fake_robot)


def test_a_lost_robot_ends_the_run_with_its_reason(fake_robot, fake_clock):
    """Guards against: commands sent into nowhere for the rest of the episode."""

    def script(step, observation):
        if step == 5:
            fake_robot.lost = "cable pulled"
        return forward(step, observation)

    loop = make_loop(fake_robot, fake_clock, script)
    loop.run(60.0)
    assert loop.stopped == "cable pulled"


def test_a_first_target_far_away_is_refused(fake_robot, fake_clock, panda):
    """Guards against: an arm that leaps to the first absolute target of a policy trained from another pose."""
    far = np.tile(np.add(panda.home_rad, [1.0, 0, 0, 0, 0, 0, 0]), (4, 1))
    loop = make_loop(fake_robot, fake_clock, lambda step, observation: far, spec=JOINTS)
    statistics = loop.run(1.0)
    assert loop.stopped == "the first target is 1.00 rad away, at most 0.2 rad allowed"
    assert statistics.limited["first_jump"] == 1
    assert np.ptp([command.joint_position_rad for command in fake_robot.commands], axis=0).max() == 0.0


def test_the_control_loop_standing_still_is_a_stop_of_its_own(fake_robot, fake_clock):
    """Guards against: a plan's later part sent as one leap after a suspended process."""
    fake_clock.late_s = {60: 2.0}
    loop = make_loop(fake_robot, fake_clock, forward)
    loop.run(60.0)
    assert loop.stopped == "the control loop itself was blocked for 2.00 s"
    last, before = fake_robot.commands[-1], fake_robot.commands[-2]
    np.testing.assert_array_equal(last.joint_position_rad, before.joint_position_rad)


def test_a_robot_set_up_for_another_rate_is_refused(panda, fake_clock, fake_robot):
    """Guards against: a 20 Hz policy that moves a 15 Hz robot at three quarters of the speed, silently."""
    fake_robot.control_dt = 1 / 15
    with pytest.raises(ValueError, match="set up for 15 actions/s, the policy was trained for 20"):
        make_loop(fake_robot, fake_clock, forward)
    fake_robot.control_dt, fake_robot.command_dt = 0.05, 0.02
    with pytest.raises(ValueError, match=r"not a whole multiple of command_dt 0\.02 s; use .* such as 0\.025 s"):
        make_loop(fake_robot, fake_clock, forward)


def test_home_is_reached_slowly(fake_robot, fake_clock, panda):
    """Guards against: a home pose taken at full speed from wherever the arm was left."""
    away = np.add(panda.home_rad, [0.5, 0.1, -0.3, 0.2, 0.4, -0.2, 0.6])
    fake_robot._qpos = away
    loop = make_loop(fake_robot, fake_clock, forward)
    loop.go_home()
    positions = np.stack([command.joint_position_rad for command in fake_robot.commands])
    np.testing.assert_allclose(positions[-1], panda.home_rad, atol=1e-9)
    assert (np.abs(np.diff(positions, axis=0)) <= 0.1 * np.asarray(panda.velocity_rad_s) * 0.01 + 1e-9).all()
    assert_within_limits(fake_robot)


@pytest.mark.parametrize("spec", [EE, ActionSpec(arm=7, gripper=0, kind="delta", space="joint_position")])
def test_the_gripper_keeps_what_it_holds_until_an_action_says_otherwise(panda, fake_clock, spec):
    """Guards against: an object dropped on the way home, while the policy loads, or by a policy that has no gripper."""
    robot = FakeRobot(panda, clock=fake_clock, opening_m=0.03)
    robot._qpos = np.add(panda.home_rad, [0.1, 0, 0, 0, 0, 0, 0])
    loop = make_loop(robot, fake_clock, lambda *_: np.tile([0, 0, 0, 0, 0, 0, -1.0 if spec is EE else 0], (4, 1)), spec)
    loop.go_home()
    loop.inference.silent_after, loop.options = 0, replace(loop.options, startup_s=0.5)
    loop.run(2.0)
    assert loop.stopped == "no fresh chunk within 0.5 s"
    assert len(robot.commands) > 50
    assert all(np.isnan(command.gripper_opening_m) for command in robot.commands)
    assert robot.observe().obs["gripper"] == np.float32(0.03)
    loop.inference.silent_after = 10**9
    loop.rearm()
    loop.run(0.5)
    assert robot.observe().obs["gripper"] == np.float32(panda.opening_m if spec is EE else 0.03)


def test_a_dry_run_computes_and_records_but_sends_nothing(fake_robot, fake_clock):
    """Guards against: a rehearsal that moves the arm."""
    loop = make_loop(fake_robot, fake_clock, forward, dry_run=True, recorder=(recorder := ListRecorder()))
    statistics = loop.run(1.0)
    assert fake_robot.commands == []
    assert statistics.commands >= 100
    assert sum(tick.action is not None for tick in recorder.steps) == 20


@pytest.mark.parametrize("failures", [1, 10**9])
def test_an_error_of_a_robots_driver_names_the_robot(failures, fake_robot, fake_clock):
    """Guards against: "'joint7'" as the whole message, where a driver of the user's fails in the middle of a motion."""
    calls, command = [], fake_robot.command

    def failing(given):
        calls.append(given)
        if 100 <= len(calls) < 100 + failures:
            raise KeyError("joint7")
        command(given)

    loop = make_loop(fake_robot, fake_clock, forward)
    fake_robot.command = failing
    expected = r"robot panda: its driver \S+FakeRobot failed in command\(\): KeyError: 'joint7'"
    with pytest.raises(DriverError, match=expected):
        loop.run(2.0)
    with pytest.raises(RobotError, match="was stopped"):
        command(calls[0])


def test_an_interrupt_brakes_and_stops_the_robot_before_it_is_raised(fake_robot, fake_clock):
    """Guards against: Ctrl-C that leaves the arm with its last velocity."""

    def script(step, observation):
        if step == 10:
            raise KeyboardInterrupt
        return forward(step, observation)

    loop = make_loop(fake_robot, fake_clock, script)
    with pytest.raises(KeyboardInterrupt):
        loop.run(60.0)
    assert_within_limits(fake_robot)
    with pytest.raises(RobotError, match="was stopped"):
        fake_robot.command(replace(fake_robot.commands[-1]))


def test_an_interrupt_on_the_way_home_brakes_too_and_a_second_one_still_stops_the_robot(fake_robot, fake_clock):
    """Guards against: commands that just cease, and jerk the arm, when Ctrl-C comes on the way home."""
    loop = make_loop(fake_robot, fake_clock, forward)
    fake_robot._qpos = np.add(fake_robot.profile.home_rad, [0.3, 0.1, 0, 0, 0, 0, 0])
    loop.smoother.start(fake_robot.qpos())
    pressed, command = [], fake_robot.command

    def interrupted(sent) -> None:
        command(sent)
        if len(fake_robot.commands) in (50, 55):
            pressed.append(len(fake_robot.commands))
            raise KeyboardInterrupt

    fake_robot.command = interrupted
    with pytest.raises(KeyboardInterrupt):
        loop.go_home()
    assert pressed == [50, 55]
    with pytest.raises(RobotError, match="was stopped"):
        command(fake_robot.commands[-1])


def test_an_observation_from_the_future_is_no_fresh_chunk(fake_robot, fake_clock):
    """Guards against: a driver that stamps by another clock silences the watchdog for good: its chunks never grow old."""
    observe = fake_robot.observe
    fake_robot.observe = lambda: replace(observe(), stamp_s=1.7e9)
    loop = make_loop(fake_robot, fake_clock, forward)
    loop.run(5.0)
    assert loop.stopped == "an observation is stamped 1.7e+09 s in the future; stamp observations with the loop's clock"
    assert np.ptp([command.joint_position_rad for command in fake_robot.commands], axis=0).max() == 0.0


@pytest.mark.parametrize(
    ("stamped", "message"),
    [
        (
            lambda stamp_s: stamp_s - 3600,
            "an observation was already 3.6e+03 s old when it was taken: a sensor or its clock",
        ),
        (
            lambda stamp_s: min(stamp_s, 101.0),
            "an observation was already 0.26 s old when it was taken: a sensor or its clock",
        ),
        (lambda stamp_s: float("nan"), "an observation is stamped nan s in the future"),
    ],
)
def test_a_sensor_that_stands_still_or_has_another_clock_is_a_stop_that_says_so(
    fake_robot, fake_clock, stamped, message
):
    """Guards against: a driver whose clock jumps, or that gives its last reading again and again, taken for a slow policy."""
    observe = fake_robot.observe
    fake_clock.t_s = 100.0
    fake_robot.observe = lambda: replace(observe(), stamp_s=stamped(observe().stamp_s))
    loop = make_loop(fake_robot, fake_clock, forward)
    loop.run(5.0)
    assert loop.stopped is not None
    assert loop.stopped.startswith(message)
    assert_within_limits(fake_robot)


def test_a_policy_that_never_answers_is_a_stop_however_short_the_run(fake_robot, fake_clock):
    """Guards against: a run that ends well, and in which nothing ever moved."""
    loop = make_loop(fake_robot, fake_clock, forward, silent_after=0)
    loop.run(2.0)
    assert loop.stopped == "the policy did not answer within 2 s"
    loop.rearm()
    loop.run(2.0, lambda: True)
    assert loop.stopped is None


def test_an_arm_that_does_not_follow_its_commands_is_stopped(fake_robot, fake_clock, panda):
    """Guards against: commands that run away from a blocked arm, which leaps when it comes free."""
    ahead = [np.add(panda.home_rad, [0.01 * step, 0, 0, 0, 0, 0, 0]) for step in range(80)]
    loop = make_loop(
        fake_robot, fake_clock, lambda step, observation: np.tile(ahead[step], (4, 1)), spec=JOINTS, deadline_s=1.0
    )
    loop.robot.profile = replace(panda, following_rad=0.1)
    fake_robot.qpos = lambda: np.array(panda.home_rad)
    loop.run(4.0)
    assert loop.stopped is not None
    assert loop.stopped.startswith("panda_joint1 is 0.1")
    assert loop.stopped.endswith("blocked, or not moving?")
    assert_within_limits(fake_robot)


def test_the_first_of_several_reasons_is_the_one_that_is_told(fake_robot, fake_clock):
    """Guards against: a policy's failure hidden behind the robot that was lost while it braked."""

    def script(step, observation):
        if step == 7:
            fake_robot.lost = "cable pulled"
            raise ValueError("weights are missing")
        return forward(step, observation)

    loop = make_loop(fake_robot, fake_clock, script)
    statistics = loop.run(5.0)
    assert loop.stopped == "ValueError: weights are missing"
    assert statistics.stops == [loop.stopped]
    assert len(statistics.stop_s) == 1


def test_a_loop_that_stands_still_while_it_brakes_does_not_leap(fake_robot, fake_clock):
    """Guards against: the part of a braking motion that was missed in a pause, sent as one step."""
    loop = make_loop(fake_robot, fake_clock, forward, silent_after=15, deadline_s=0.2)
    brake = loop.smoother.brake

    def held_up() -> None:
        brake()
        fake_clock.late_s = {fake_clock.sleeps + 1: 0.5}

    loop.smoother.brake = held_up
    assert loop.run(60.0).overruns >= 40
    positions = np.stack([command.joint_position_rad for command in fake_robot.commands])
    limit = np.array(fake_robot.profile.velocity_rad_s) * fake_robot.command_dt
    assert (np.abs(np.diff(positions, axis=0)) <= limit).all()
    assert not np.diff(positions[-3:], axis=0).any()


@pytest.mark.parametrize("command_hz", [20.0, 40.0, 100.0])
@pytest.mark.parametrize("latency_s", [0.0, 0.004, 0.024])
def test_every_control_step_is_acted_on_at_any_command_rate(panda, fake_clock, command_hz, latency_s):
    """Guards against: a loop with one command per control step whose decision always belongs to the step before."""
    robot = FakeRobot(panda, control_dt=0.05, command_dt=1 / command_hz, clock=fake_clock)
    recorder = ListRecorder()
    loop = make_loop(robot, fake_clock, forward, latency_s=latency_s, recorder=recorder, deadline_s=0.2)
    statistics = loop.run(4.0)
    assert loop.stopped is None
    assert statistics.steps in (79, 80)
    assert statistics.acted >= statistics.steps - 1
    assert statistics.idle == 0
    assert statistics.failure is None
    assert statistics.late_chunks == 0
    assert sum(tick.action is not None for tick in recorder.steps) == statistics.acted
    assert np.abs(robot.qpos() - panda.home_rad).max() > 0.1


def test_missed_ticks_do_not_take_a_step_its_action(panda, fake_clock):
    """Guards against: a step dropped because the tick at which it would have acted was missed."""
    robot = FakeRobot(panda, control_dt=0.05, command_dt=0.025, clock=fake_clock)
    fake_clock.late_s = {sleep: 0.03 for sleep in range(10, 100, 7)}
    loop = make_loop(robot, fake_clock, forward, latency_s=0.01, deadline_s=0.2)
    statistics = loop.run(4.0)
    assert statistics.overruns > 5
    assert statistics.idle == 0


def test_commands_due_while_an_action_is_prepared_are_sent(panda, fake_clock):
    """Guards against: commands missed at every control step because an action takes longer than a command's period."""
    robot = FakeRobot(panda, control_dt=0.05, command_dt=0.005, clock=fake_clock)
    recorder = ListRecorder()
    loop = make_loop(robot, fake_clock, forward, latency_s=0.01, recorder=recorder)
    add, planned = loop._add_chunks, loop._planned

    def slow(part):
        fake_clock.t_s += 0.004
        return part()

    loop._add_chunks, loop._planned = partial(slow, add), partial(slow, planned)  # 8 ms: longer than 5 ms
    statistics = loop.run(2.0)
    assert loop.stopped is None
    assert statistics.overruns == 0
    assert statistics.acted >= 39
    assert_within_limits(robot)
    np.testing.assert_allclose(np.diff([command.stamp_s for command in robot.commands]), 0.005)


def test_the_next_steps_command_waits_for_a_slow_action(panda, fake_clock):
    """Guards against: control steps missed because their first command was sent before the action of the step before."""
    robot = FakeRobot(panda, control_dt=0.05, command_dt=0.05, clock=fake_clock)
    loop = make_loop(robot, fake_clock, forward, latency_s=0.024)
    planned = loop._planned

    def late():
        fake_clock.t_s += 0.03  # to 54 ms after the step began
        return planned()

    loop._planned = late
    statistics = loop.run(2.0)
    assert statistics.acted >= 38
    assert statistics.missed_steps == 0
    assert statistics.overruns == 0


def test_steps_without_an_action_are_counted_as_a_failure(fake_robot, fake_clock):
    """Guards against: an exit code of 0 for a run in which the robot was held most of the time."""
    script = lambda step, observation: np.full((4, 7), np.nan if step % 8 else 0.1)  # noqa: E731
    loop = make_loop(fake_robot, fake_clock, script)
    statistics = loop.run(4.0)
    assert loop.stopped is None
    assert statistics.held > 20
    assert statistics.failure is not None
    assert statistics.failure.startswith(f"no action in {statistics.held} of ")
    assert statistics.to_dict()["idle"] == statistics.held


def test_waiting_for_the_first_chunk_is_no_failure(fake_robot, fake_clock):
    """Guards against: a policy whose first chunk takes a second to warm up taken for a loop that fails."""
    loop = make_loop(fake_robot, fake_clock, forward, latency_s=0.0)
    request, ready_s = loop.inference.request, fake_clock.now() + 1.0
    loop.inference.request = lambda t_s, prefix=None: request(t_s) if fake_clock.now() >= ready_s else None
    statistics = loop.run(3.0)
    assert statistics.waiting >= 19
    assert statistics.acted >= 39
    assert statistics.failure is None


def test_actions_that_the_robot_cannot_execute_are_refused_before_it_moves(panda, fake_clock):
    """Guards against: a second gripper that is ignored, and a robot without kinematics that passes for one with them."""
    still = lambda step, observation: np.zeros((4, 8))  # noqa: E731
    two = ActionSpec(arm=6, gripper=2, kind="delta", space="ee", rate_hz=20.0)
    with pytest.raises(ValueError, match=r"the actions command 2 grippers \(columns 6, 7\), robot panda has one"):
        make_loop(FakeRobot(panda, clock=fake_clock), fake_clock, still, spec=two)
    bare = replace(
        panda,
        kinematics=None,
        speed_m_s=None,
        rotation_speed_rad_s=None,
        workspace_lower_m=None,
        workspace_upper_m=None,
    )
    with pytest.raises(ValueError, match="move the end effector, and the profile of panda has no `kinematics`"):
        make_loop(FakeRobot(bare, clock=fake_clock), fake_clock, still)
    robot = FakeRobot(panda, clock=fake_clock)
    robot.qpos = lambda: np.zeros(5)
    with pytest.raises(
        ValueError, match=r"positions of shape \(5,\); expected \(7,\), one for each joint of its profile"
    ):
        make_loop(robot, fake_clock, forward)
