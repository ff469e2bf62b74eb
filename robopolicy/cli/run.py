"""`robopolicy run`: executes a policy, or replays a recorded demo, on a robot in real time."""

import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from functools import partial
from typing import Literal

from jsonargparse import ArgumentParser, Namespace

from robopolicy.cli import say
from robopolicy.cli.drivers import AUTO_SPEED, Driver, at_robots_speed, driver_of, fitted
from robopolicy.cli.outputs import check_file
from robopolicy.cli.parsing import POLICY, execution_options, of_group, parse, verb_parser
from robopolicy.cli.recording import DemoRecorder, Recorders, RerunRecorder
from robopolicy.cli.robots import make_operator, make_robot, robot_options
from robopolicy.cli.run_report import shown, summarize
from robopolicy.components import ConfigError
from robopolicy.control.executor import ChunkExecutor
from robopolicy.control.inference import SteppedInference, ThreadedInference
from robopolicy.control.loop import ControlLoop, LoopOptions
from robopolicy.control.operators.base import OperatorContext
from robopolicy.control.replay import RecordedStream, first_place
from robopolicy.control.robot import Recorder, Robot
from robopolicy.control.timing import Clock

SECONDS = 30.0
"""Default duration of a policy's run [s]."""


def run(arguments: Sequence[str]) -> int:
    """Drive a robot.

    Returns:
        Exit code: 0 on success; 1 if the robot was stopped, if a control step had no action, or if `--record` wrote no demo.
    """
    options = parse(_parser(), arguments)
    if options.policy is not None:
        options.policy = of_group(options.policy, options.group)
    for option in ("json", "record"):
        if options[option] is not None:
            check_file(f"--{option}", options[option])
    if options.intervene is not None and options.replay is not None:
        raise ConfigError("--intervene with --replay: a recorded demo can't be taken over; give a policy or --server")
    driver = driver_of(options)
    with ExitStack() as stack:
        robot = make_robot(options, driver)
        stack.callback(getattr(robot, "close", robot.stop))  # `close` is optional; `stop` is not
        if options.speed == AUTO_SPEED:
            driver = at_robots_speed(options, driver, robot.profile)
        driver = fitted(driver, robot, options.robot)
        if assumed := robot.profile.assumed:
            say(f"assumed   limits of {robot.profile.name} that its maker does not publish: {', '.join(assumed)}")
        recorders = _recorders(options, driver, robot)
        with closing(Recorders(recorders)) as recorder:
            loop = _loop(options, driver, robot, recorder if recorders else None, stack)
            record = driver.stream if isinstance(driver.stream, RecordedStream) else None  # None: a policy drives
            loop.go_home(None if record is None else first_place(record.record, robot.profile))
            with shown(loop.statistics, f"robopolicy run   {options.robot}"):
                loop.run(options.seconds or (SECONDS if record is None else math.inf), _finished(robot, record))
        unrecorded = not all(getattr(each, "recorded", True) for each in recorders)  # known once they are closed
        succeeded = summarize(options, loop, robot, record, unrecorded)
    return 0 if succeeded else 1


def _parser() -> ArgumentParser:
    return verb_parser(
        "run",
        "Drive a robot with a policy or a recorded demo, in real time and within the robot's limits.",
        ("policy", str | None, None, "run folder, or folder written by `robopolicy export`"),
        ("--device", str, "cpu", "device of the policy: cpu or cuda"),
        *POLICY,
        ("--server", str | None, None, "[wss://]HOST:PORT of a policy served by `robopolicy serve`"),
        ("--server-ca", str | None, None, "file of certificates (PEM) to trust for wss; default: the system's"),
        ("--api-key-file", str | None, None, "file with the server's API key in its first line"),
        ("--replay", str | None, None, "demo file to replay a demo from"),
        ("--demo", str | None, None, "name of the demo to replay; default: the first"),
        (
            "--speed",
            float | Literal["auto"],
            1.0,
            "speed of the replay: 0.5 takes twice the time; auto: the fastest speed up to 1 that is within the robot's limits",
        ),
        (
            "--follow",
            str | None,
            None,
            "what to replay: `actions`, or an observation key of joint positions [rad]; default: qpos if it was recorded, "
            "else actions",
        ),
        *robot_options(),
        ("--instruction", str | None, None, "instruction for the policy; default: the task's own"),
        ("--seconds", float | None, None, "duration [s]; default: 30, or until the replay ends"),
        ("--deadline", float, 0.25, "age of the newest chunk's observation at which the robot is stopped [s]"),
        (
            "--first-jump",
            float | None,
            None,
            "largest distance from a measured joint position to the first absolute target [rad]; default: the profile's",
        ),
        (
            "--actions-per-call",
            int,
            1,
            "control steps between two calls of the policy, for a slow policy; must divide its frame stride",
        ),
        ("--dry-run", bool, False, "compute and record the commands, but send none"),
        ("--record", str | None, None, "demo file to record the run in"),
        (
            "--intervene",
            str | None,
            None,
            "device with which an operator can take over: keyboard, spacemouse, ws:// or wss://HOST:PORT (leader arm), a YAML "
            "file with kind and options, or MODULE:FACTORY",
        ),
        ("--rerun", bool, False, "show the run in the rerun viewer (extra `view`)"),
        ("--priority", bool, True, "request real-time scheduling from the operating system"),
        ("--json", str | None, None, "file to write the statistics to, as JSON"),
        *execution_options(),
    )


def _loop(options: Namespace, driver: Driver, robot: Robot, recorder: Recorder | None, stack: ExitStack) -> ControlLoop:
    """The control loop, with its operator and its inference, which `stack` closes."""
    operator, spec = None, driver.spec.action
    if options.intervene is not None:
        operator = make_operator(options.intervene, OperatorContext(robot.profile, spec, driver.control_dt))
        stack.callback(operator.close)
    clock: Clock | None = getattr(robot, "simulated_clock", None)
    # On a simulated clock the policy computes within the control loop, so that a run is reproducible.
    make = SteppedInference if clock is not None else partial(ThreadedInference, priority=options.priority)
    observing = {"cameras": driver.spec.cameras, "every": options.actions_per_call, "adapt": driver.adapt}
    inference = make(robot, driver.stream, options.instruction, **observing)
    stack.callback(inference.close)
    return ControlLoop(
        robot,
        inference,
        ChunkExecutor(driver.spec.chunk, driver.control_dt, driver.execution, action_spec=spec),
        spec,
        options=LoopOptions(
            deadline_s=options.deadline,
            first_jump_rad=options.first_jump,
            dry_run=options.dry_run,
            priority=options.priority and clock is None,
        ),
        recorder=recorder,
        operator=operator,
        clock=clock,
    )


def _finished(robot: Robot, record: RecordedStream | None) -> Callable[[], bool]:
    """A function that returns True when the run is over: the replay has ended, or the task has succeeded or failed."""
    if record is not None:
        return lambda: record.finished
    return lambda: getattr(robot, "success", False) or getattr(robot, "failed", False)


def _recorders(options: Namespace, driver: Driver, robot: Robot) -> list[Recorder]:
    """The recorders of `--record` and `--rerun`."""
    recorders: list[Recorder] = []
    if options.record:
        env_args = dict(getattr(robot, "env_args", None) or {}) or None
        seed = None if env_args is None else env_args.pop("seed")
        recorders.append(
            DemoRecorder(options.record, driver.spec.action, env_args, seed, options.intervene is not None)
        )
    if options.rerun:
        recorders.append(RerunRecorder())
    return recorders
