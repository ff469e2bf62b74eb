"""The simulated robot: a process of its own that can be driven, frozen and killed."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import suppress

import numpy as np
import pytest

from robopolicy.control.executor import ChunkExecutor
from robopolicy.control.inference import ThreadedInference
from robopolicy.control.loop import ControlLoop, LoopOptions
from robopolicy.control.replay import CHUNK, Record, RecordedStream
from robopolicy.control.robot import RobotError
from robopolicy.sim.env import RobotVectorEnv
from robopolicy.sim.robot import STOPPED, ProcessOptions, SimRobot
from robopolicy.sim.stepped import WorldOptions
from robopolicy.types import ActionSpec, Command
from tests.waiting import wait_until

EE = ActionSpec(arm=6, gripper=1, kind="delta", space="ee", rate_hz=20.0)


@pytest.fixture(scope="module")
def robot() -> Iterator[SimRobot]:
    """One that waits long for a busy machine."""
    with SimRobot(WorldOptions("reach", seed=3, command_dt=0.005), ProcessOptions(30.0, 30.0)) as made:
        yield made


def test_an_unknown_task_is_refused_before_a_process_is_started():
    """Guards against: a traceback of a child process, and a parent that waits for ever."""
    with pytest.raises((ValueError, KeyError), match="juggle"):
        SimRobot(WorldOptions("juggle"))


def test_the_robot_shows_what_its_tasks_environment_shows_and_starts_anew_by_seed(robot):
    """Guards against: a policy that finds other keys on the robot than in its demos."""
    env = RobotVectorEnv("reach", 1)
    obs, info = env.reset(seed=3)
    robot.reset(3)
    seen = robot.observe()
    assert {key: value.shape for key, value in seen.obs.items()} == {key: rows[0].shape for key, rows in obs.items()}
    np.testing.assert_allclose(seen.obs["cube_red"][:2], obs["cube_red"][0, :2], atol=1e-3)
    assert seen.instruction == info["instruction"][0]
    assert not robot.success
    env.close()


def test_an_answer_that_comes_too_late_is_not_taken_for_the_next_one(robot):
    """Guards against: a policy that is one moment behind after its simulator was paused once."""
    env = RobotVectorEnv("reach", 1)
    obs, _ = env.reset(seed=11)
    os.kill(robot.process.pid, signal.SIGSTOP)
    robot.timeout_s, patient_s = 0.5, robot.timeout_s
    with pytest.raises(RobotError, match="did not answer within"):
        robot.observe()
    robot.timeout_s = patient_s
    os.kill(robot.process.pid, signal.SIGCONT)
    robot.reset(11)
    np.testing.assert_allclose(robot.observe().obs["cube_red"][:2], obs["cube_red"][0, :2], atol=1e-3)
    env.close()


def test_the_arm_goes_where_the_control_loop_sends_it(robot):
    """Guards against: commands that never reach the joints, or reach them scaled."""
    actions = np.tile(np.float32([0.3, 0, 0, 0, 0, 0, -1]), (20, 1))
    for _ in range(20):
        robot.reset(4)
        stream = RecordedStream(Record(actions, EE), 0.05)
        inference = ThreadedInference(robot, stream)
        executor, options = ChunkExecutor(CHUNK, 0.05, action_spec=EE), LoopOptions(deadline_s=30.0)
        loop = ControlLoop(robot, inference, executor, EE, options=options)
        before = robot.observe().obs["ee_pose"]
        statistics = loop.run(60.0, lambda stream=stream: stream.finished)
        inference.close()
        if loop.stopped is None or statistics.overruns == 0:  # a loop that the machine held up is rightly refused
            break
    moved = robot.observe().obs["ee_pose"] - before
    assert loop.stopped is None
    assert 0.05 < moved[0] < 0.35
    assert np.abs(moved[1:3]).max() < 0.02


def test_commands_that_cease_in_mid_motion_leave_the_arm_at_rest_and_are_refused_from_then_on():
    """Guards against: a simulator that is kinder than a real robot's controller, and hides a loop that dies."""
    with SimRobot(WorldOptions("reach", seed=5, command_dt=0.005), ProcessOptions(0.2, 30.0)) as robot:
        home, began_s = robot.qpos(), time.monotonic()
        with suppress(RobotError):  # on a busy machine the commands may cease before the last one
            for step in range(1, 80):
                t_s = step * 0.005
                robot.command(Command(home + 0.3 * (t_s - 0.1 * (1 - np.exp(-t_s / 0.1))), 0.08, began_s + t_s))
                time.sleep(0.005)
        wait_until(lambda: robot._state.read()[STOPPED])
        wait_until(lambda: np.abs(robot.qpos() - (time.sleep(0.1), robot.qpos())[1]).max() < 1e-3)
        rested = robot.qpos()
        assert np.abs(rested - home).max() < 0.3
        time.sleep(0.1)
        np.testing.assert_allclose(robot.qpos(), rested, atol=1e-3)
        with pytest.raises(RobotError, match="stopped itself"):
            robot.command(Command(rested, 0.08, time.monotonic()))


def test_a_frozen_or_killed_process_is_a_robot_that_is_lost():
    """Guards against: commands into shared memory that nobody reads any more."""
    with SimRobot(WorldOptions("reach", command_dt=0.005), ProcessOptions(timeout_s=0.5)) as robot:
        assert robot.process.pid is not None
        os.kill(robot.process.pid, signal.SIGSTOP)
        time.sleep(0.7)
        with pytest.raises(RobotError, match="has not updated its state for"):
            robot.command(Command(robot.qpos(), 0.08, time.monotonic()))
        os.kill(robot.process.pid, signal.SIGKILL)
        robot.process.join()
        with pytest.raises(RobotError, match="has ended"):
            robot.observe()
