"""The simulator's arms as a robot: a separate process in real time that takes commands and returns observations."""

import multiprocessing
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, replace
from importlib import import_module
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

import numpy as np
from jaxtyping import Float

from robopolicy.control.robot import RobotError
from robopolicy.control.timing import FixedGrid, SystemClock, request_realtime
from robopolicy.sim.stepped import SteppedRobot, WorldOptions
from robopolicy.types import Command, Observation

START_TIMEOUT_S = 180.0
"""Longest wait for the process to start or reset [s]; the renderer's kernels may have to be compiled first."""
MAX_CATCH_UP = 100
"""Maximum number of physics steps run at once after a delay; simulated time beyond that is skipped."""
POLL_MARGIN_S = 0.0015
"""Time before a tick at which the process stops waiting for requests [s]: a poll's timeout is rounded up to whole ms."""
SIM_PRIORITY = 30
"""Real-time priority of the simulator's process, if `ProcessOptions.priority` asks for one."""
SUCCESS, FAILED, STOPPED, STAMP = range(-4, 0)
"""Indices of the values after the joint positions in the row that the simulator's process publishes."""


@dataclass(frozen=True)
class ProcessOptions:
    """Timeouts and priority of the process of a simulated robot in real time."""

    deadline_s: float = 0.05
    """Longest time without a command during a motion [s]."""
    timeout_s: float = 0.25
    """Time without an update from the process after which the robot is reported as lost [s]."""
    priority: bool = False
    """Ask for real-time priority for the process."""


class SimRobot(AbstractContextManager["SimRobot", None]):
    """One world of a task, stepped in real time by its own process; a `Robot` for the control loop.

    The process follows the newest command and, like a real arm's controller, comes to rest within its limits when
    none has come for `deadline_s`.

    Args:
        world: its task, observations and rates.
        process: waiting times and priority; None: the defaults.
    """

    def __init__(self, world: WorldOptions, process: ProcessOptions | None = None) -> None:
        plugin = type(world.make_task()).__module__  # a new process has not imported the plug-ins of this one
        timing = process or ProcessOptions()
        self.profile = world.profile
        self.command_dt, self.timeout_s = world.command_dt, timing.timeout_s
        self.env_args: dict[str, Any] | None = None
        context = multiprocessing.get_context("spawn")
        self._commands = _SharedRows(context, self.profile.joints + self.profile.grippers + 1)
        self._state = _SharedRows(context, self.profile.joints + 4)
        self._pipe, theirs = context.Pipe()
        self.process: BaseProcess = context.Process(
            target=_simulate,
            args=(theirs, self._commands, self._state, world, timing, plugin),
            name="robopolicy-sim",
            daemon=True,
        )
        self.process.start()
        theirs.close()
        self._stopped = False
        self._requests = 0
        self.control_dt: float = self._answer(0, START_TIMEOUT_S)

    def observe(self) -> Observation:
        """The current observation of the task's environment."""
        asked_s = time.monotonic()
        return replace(self._asked("observe", max(self.timeout_s, 1.0)), stamp_s=asked_s)

    def qpos(self) -> Float[np.ndarray, " joints"]:
        """Joint positions of the last physics step [rad]."""
        return np.array(self._state.read()[: self.profile.joints])

    @property
    def success(self) -> bool:
        """Whether the task is solved."""
        return bool(self._state.read()[SUCCESS])

    @property
    def failed(self) -> bool:
        """Whether the episode has failed."""
        return bool(self._state.read()[FAILED])

    def command(self, command: Command) -> None:
        """Follow one command."""
        if self._stopped:
            raise RobotError("the robot was stopped; it accepts no further commands")
        state = self._state.read()
        if (still_s := time.monotonic() - state[STAMP]) > self.timeout_s:
            raise RobotError(f"the simulator's process has not updated its state for {still_s:.2f} s")
        if state[STOPPED]:
            raise RobotError("the robot stopped itself: no command arrived in time, or it refused one")
        openings_m = np.broadcast_to(command.gripper_opening_m, self.profile.grippers)
        self._commands.write([*command.joint_position_rad, *openings_m, command.stamp_s])

    def reset(self, seed: int) -> None:
        """Start another episode; a robot that had stopped is ready again."""
        self._asked(seed, START_TIMEOUT_S)
        self._stopped = False

    def stop(self) -> None:
        """Hold the position, and accept no further commands."""
        if not self._stopped:
            self._stopped = True
            with suppress(RobotError):
                self._ask("stop")

    def close(self) -> None:
        """End the process."""
        self.stop()
        with suppress(RobotError):
            self._ask("close")
        self.process.join(timeout=2.0)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        self._pipe.close()

    def __exit__(self, *_: object) -> None:
        self.close()

    def _ask(self, message: str | int) -> None:
        self._requests += 1
        try:
            self._pipe.send((self._requests, message))
        except OSError:
            raise RobotError("the simulator's process has ended") from None

    def _asked(self, message: str | int, timeout_s: float) -> Any:
        """The reply to a request; a late one to an earlier request is dropped."""
        self._ask(message)
        return self._answer(self._requests, timeout_s)

    def _answer(self, request: int, timeout_s: float) -> Any:
        ends_s = time.monotonic() + timeout_s
        try:
            while self._pipe.poll(max(ends_s - time.monotonic(), 0.0)):
                number, answer = self._pipe.recv()
                if isinstance(answer, ValueError):
                    raise answer
                if number == request:
                    return answer
        except (EOFError, OSError):
            raise RobotError("the simulator's process has ended") from None
        raise RobotError(f"the simulated robot did not answer within {timeout_s:g} s")


class _SharedRows:
    """A ring buffer of rows of numbers from one process to another, without a lock that a frozen process could hold."""

    SLOTS = 4096  # half of them are 2 s of commands at 1 kHz: a process that was held up must not miss any

    def __init__(self, context: Any, width: int) -> None:
        self._rows, self._written = context.RawArray("d", self.SLOTS * width), context.RawValue("q", 0)
        self._width, self._taken = width, 0

    def write(self, row: Sequence[float]) -> None:
        """Add a row; for one writer."""
        start = self._written.value % self.SLOTS * self._width
        self._rows[start : start + self._width] = row
        self._written.value += 1

    def read(self, number: int = -1) -> list[float]:
        """Row `number`, counted from 0, or the newest; the oldest are overwritten."""
        start = (number if number >= 0 else self._written.value - 1) % self.SLOTS * self._width
        return self._rows[start : start + self._width]

    def unread(self) -> list[list[float]]:
        """The rows since the last call, without those that have been, or are about to be, overwritten; for one reader."""
        first, self._taken = self._taken, self._written.value
        return [self.read(number) for number in range(max(first, self._taken - self.SLOTS // 2), self._taken)]


def _state_row(robot: SteppedRobot) -> list[float]:
    """Joint positions [rad], whether the episode succeeded or failed, whether the robot stopped itself, and the time [s]."""
    flags = (robot.success, robot.failed, robot.guard.stopped is not None, time.monotonic())
    return [*robot.qpos().tolist(), *map(float, flags)]


def _simulate(
    pipe: Connection,
    commands: _SharedRows,
    state: _SharedRows,
    options: WorldOptions,
    timing: ProcessOptions,
    plugin: str,
) -> None:
    """The simulator's process: opens the world, and runs it until it is closed or its owner has ended."""
    try:
        import_module(plugin)
        robot = SteppedRobot(options, timing.deadline_s)
        robot.observe()  # compiles the renderer
        state.write(_state_row(robot))
        pipe.send((0, robot.control_dt))
    except (ValueError, KeyError, ImportError) as error:
        pipe.send((0, ValueError(str(error))))
        return
    if timing.priority:
        request_realtime(SIM_PRIORITY)
    with suppress(EOFError, OSError):
        _run(robot, pipe, commands, state)


def _run(robot: SteppedRobot, pipe: Connection, commands: _SharedRows, state: _SharedRows) -> None:
    """Physics on a fixed grid, and an answer to every request, until one is `close`."""
    joints, grid = robot.profile.joints, FixedGrid(SystemClock(), robot.command_dt)
    while True:
        ticks = grid.wait()
        for *received, stamp_s in commands.unread():
            with suppress(RobotError):
                robot.receive(Command(np.array(received[:joints]), received[joints:], stamp_s), time.monotonic())
        robot.step(grid.t_s, min(ticks, MAX_CATCH_UP))
        state.write(_state_row(robot))
        due_s = grid.t_s + robot.command_dt - POLL_MARGIN_S
        while pipe.poll(max(due_s - time.monotonic(), 0.0)):  # an observation must not wait for the next tick
            number, message = pipe.recv()
            if message == "close":
                return
            if message == "observe":
                pipe.send((number, robot.observe()))
            elif message == "stop":
                robot.guard.stop("stop was called")
            else:
                robot.reset(message)
                commands.unread()  # discard commands to the previous episode
                state.write(_state_row(robot))
                pipe.send((number, robot.control_dt))
