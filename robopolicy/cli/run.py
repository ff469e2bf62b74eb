"""`robopolicy run`: a policy, or a recorded demo, on a robot in real time."""

import json
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, Namespace
from rich.console import Console
from rich.live import Live

from robopolicy.cli.drivers import Driver, driver_of
from robopolicy.cli.parsing import parse, verb_parser
from robopolicy.cli.recording import DemoRecorder, Recorders, RerunRecorder
from robopolicy.config import ConfigError, ExecutionConfig
from robopolicy.control.executor import ChunkExecutor
from robopolicy.control.inference import Inference, Replay
from robopolicy.control.loop import ControlLoop
from robopolicy.control.profile import read_profile
from robopolicy.control.robot import Recorder, Robot
from robopolicy.control.statistics import LoopStatistics, live_table


def run(arguments: Sequence[str]) -> int:
    """Drive a robot; gives the exit code: 0, or 1 where the robot had to be stopped."""
    options = parse(_parser(), arguments)
    driver = driver_of(options)
    with ExitStack() as stack:
        robot, env_args = _robot(options, driver, stack)
        if missing := [key for key in driver.keys if key not in robot.observe().obs]:
            raise ConfigError(
                f"the policy looks at {missing[0]!r}, which robot {options.robot} doesn't show; it has: "
                f"{', '.join(sorted(robot.observe().obs))}"
            )
        recorder = _recorder(options, driver, env_args, stack)
        inference = driver.make_inference(robot)
        stack.callback(inference.close)
        executor = ChunkExecutor.from_config(driver.execution, driver.spec, driver.chunk, driver.control_dt)
        loop = ControlLoop(
            robot,
            inference,
            executor,
            driver.spec,
            deadline_s=options.deadline,
            recorder=recorder,
            dry_run=options.dry_run,
            realtime=options.realtime,
        )
        loop.go_home(None if driver.demo is None else driver.demo.obs.get("qpos", [None])[0])
        with _shown(loop.statistics, f"robopolicy run   {options.robot}"):
            statistics = loop.run(options.seconds, _finished(robot, inference, driver))
        _summarize(options, loop, robot, statistics)
    return 0 if loop.stopped is None else 1


def _parser() -> ArgumentParser:
    parser = verb_parser("run", "Drive a robot by a policy, or by a recorded demo, in real time and within its limits.")
    parser.add_argument("policy", type=str | None, nargs="?", default=None, help="run folder, or an exported folder")
    parser.add_argument("--server", type=str | None, default=None, help="HOST:PORT of a policy behind robopolicy serve")
    parser.add_argument("--api-key-file", type=str | None, default=None, help="file that holds the server's key")
    parser.add_argument("--replay", type=str | None, default=None, help="demo file whose actions are executed instead")
    parser.add_argument("--demo", type=str | None, default=None, help="name of the demo to replay; default: the first")
    parser.add_argument(
        "--robot", type=str, required=True, help="sim, ws://HOST:PORT (a RobotServer) or rosbridge://HOST:PORT"
    )
    parser.add_argument(
        "--profile", type=str, default="panda", help="limits of a rosbridge robot: panda, fr3 or a YAML file"
    )
    parser.add_argument("--task", type=str | None, default=None, help="task of the simulator; default: the demos' own")
    parser.add_argument("--seed", type=int, default=10000, help="seed of the simulated episode")
    parser.add_argument(
        "--instruction", type=str | None, default=None, help="what the robot is told, if not by its task"
    )
    parser.add_argument("--seconds", type=float, default=30.0, help="how long, unless the task is decided before")
    parser.add_argument("--command-hz", type=float, default=1000.0, help="commands a second to the simulated robot")
    parser.add_argument(
        "--deadline", type=float, default=0.25, help="age of the last observation answered at which to stop [s]"
    )
    parser.add_argument("--dry-run", action="store_true", help="compute and record the commands, but send none")
    parser.add_argument("--record", type=str | None, default=None, help="demo file to write the run to")
    parser.add_argument("--rerun", action="store_true", help="show the run in the rerun viewer (extra `view`)")
    parser.add_argument("--realtime", type=bool, default=True, help="ask the system for real-time priority")
    parser.add_argument("--json", type=str | None, default=None, help="where to write the figures as JSON")
    for field in fields(ExecutionConfig):
        parser.add_argument(
            f"--execution.{field.name}",
            type=field.type | None,  # type: ignore[operator]
            default=None,
            help="as trained if not given",
        )
    return parser


# -- what is driven ----------------------------------------------------------------------------------------------------


def _robot(options: Namespace, driver: Driver, stack: ExitStack) -> tuple[Robot, dict[str, Any] | None]:
    """The robot, stopped when the stack closes, and its simulator's env_args."""
    kind, _, address = options.robot.partition("://")
    if kind == "sim":
        return _simulated(options, driver, stack)
    host, _, port = address.rpartition(":")
    if kind not in ("ws", "rosbridge") or not port.isdigit():
        raise ConfigError(f"--robot {options.robot}: expected sim, ws://HOST:PORT or rosbridge://HOST:PORT")
    if kind == "ws":
        from robopolicy.control.robots import WebsocketRobot

        robot: Robot = WebsocketRobot(host, int(port))
    else:
        from robopolicy.control.rosbridge import RosbridgeRobot

        robot = RosbridgeRobot(read_profile(options.profile), host, int(port), control_dt=driver.control_dt)
    stack.callback(robot.stop)
    return robot, None


def _simulated(options: Namespace, driver: Driver, stack: ExitStack) -> tuple[Robot, dict[str, Any]]:
    from robopolicy.sim.robot import SimRobot

    task = options.task or ((driver.env_args or {}).get("env_kwargs") or {}).get("task")
    if task is None:
        raise ConfigError("which task? The policy's demos don't say; give --task")
    seed = options.seed if driver.demo is None or driver.demo.seed is None else driver.demo.seed
    robot = SimRobot(
        task,
        seed,
        cameras=driver.cameras,
        image_size=driver.image_size,
        command_dt=1 / options.command_hz,
        deadline_s=options.deadline / 5,
        timeout_s=options.deadline,
        realtime=options.realtime,
    )
    stack.callback(robot.close)
    kwargs = {"task": task, "cameras": list(driver.cameras), "image_size": driver.image_size}
    return robot, {"env_name": f"robopolicy/{task}", "type": 2, "env_kwargs": kwargs, "seed": seed}


def _finished(robot: Robot, inference: Inference, driver: Driver) -> Callable[[], bool]:
    """When a run is over before its time: the task is decided, or the record is at its end."""

    def over() -> bool:
        decided = getattr(robot, "success", False) or getattr(robot, "failed", False)
        return decided or (isinstance(inference, Replay) and inference.finished)

    return over


# -- what is told ------------------------------------------------------------------------------------------------------


def _recorder(options: Namespace, driver: Driver, env_args: dict[str, Any] | None, stack: ExitStack) -> Recorder | None:
    recorders: list[Recorder] = []
    if options.record:
        seed = None if env_args is None else env_args.pop("seed")
        recorders.append(DemoRecorder(options.record, driver.spec, env_args, seed))
    if options.rerun:
        recorders.append(RerunRecorder())
    if not recorders:
        return None
    recorder = Recorders(recorders)
    stack.callback(recorder.close)
    return recorder


@contextmanager
def _shown(statistics: LoopStatistics, title: str) -> Iterator[None]:
    """The figures in a table that lives as long as the block; on a terminal only."""
    console = Console()
    if not console.is_terminal:
        yield
        return
    done = threading.Event()
    with Live(live_table(statistics, title), console=console, auto_refresh=False) as live:

        def refresh() -> None:
            while not done.wait(0.5):
                live.update(live_table(statistics, title), refresh=True)

        shower = threading.Thread(target=refresh, daemon=True)
        shower.start()
        try:
            yield
        finally:
            done.set()
            shower.join()
            live.update(live_table(statistics, title), refresh=True)


def _summarize(options: Namespace, loop: ControlLoop, robot: Robot, statistics: LoopStatistics) -> None:
    figures = statistics.to_dict()
    late, latency = figures["deviation_ms"], figures["latency_ms"]
    limited = sum(statistics.limited.values())
    print(
        f"steps     {statistics.steps} at {statistics.rate_hz:.2f} Hz, p99 {late.get('p99', 0.0):.2f} ms behind the grid, "
        f"{statistics.overruns} of {statistics.commands} commands overrun"
    )
    if latency:
        print(
            f"policy    p50 {latency['p50']:.1f} ms, p99 {latency['p99']:.1f} ms; {statistics.missed_frames} frames missed"
        )
    print(f"limited   {limited} interventions in {statistics.steps} steps: {dict(statistics.limited)}")
    success: bool | None = getattr(robot, "success", None)
    if success is not None:
        print(f"success   {'yes' if success else 'no'}")
        figures["success"] = success
    if loop.stopped:
        print(f"stopped   {loop.stopped}")
    if options.json:
        out = Path(options.json)
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(figures, indent=2))
    if options.record or options.json:
        print(f"result    {options.record or options.json}")
