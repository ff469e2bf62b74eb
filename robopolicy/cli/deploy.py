"""`robopolicy export`, `serve` and `run`: a trained policy as a graph, behind a socket, on a robot."""

import json
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from jsonargparse import Namespace

from robopolicy.cli.parsing import parse, verb_parser
from robopolicy.config import ConfigError, ExecutionConfig

ROBOTS = ("sim", "websocket", "rosbridge")


def export(arguments: Sequence[str]) -> int:
    """Export a policy; gives the exit code."""
    parser = verb_parser("export", "A policy as one graph with its state as explicit inputs and outputs.")
    parser.add_argument("policy", type=str, help="run folder")
    parser.add_argument("--format", type=str, default="onnx", choices=["onnx", "torch"], help="kind of graph")
    parser.add_argument("--out", type=str, required=True, help="folder for the graph and its manifest")
    parser.add_argument("--int8", action="store_true", help="int8 weights in matrix products; ONNX only")
    options = parse(parser, arguments)
    from robopolicy.control.export import export_policy

    folder = export_policy(options.policy, options.out, options.format, options.int8)
    error = json.loads((folder / "manifest.json").read_text())["error_to_torch"]
    print(f"differs   {error:.2g} of an action's range from torch, at most")
    print(f"exported  {folder}")
    return 0


def serve(arguments: Sequence[str]) -> int:
    """Serve a policy until SIGTERM or Ctrl-C; gives the exit code."""
    parser = verb_parser("serve", "A policy behind openpi's websocket protocol; also GET /healthz and /metrics.")
    parser.add_argument("policy", type=str, help="run folder, or an exported folder")
    parser.add_argument("--host", type=str, default="127.0.0.1", help="address; beyond this machine only with a key")
    parser.add_argument("--port", type=int, default=8000, help="port; 0 takes a free one")
    parser.add_argument("--api-key-file", type=str | None, default=None, help="file whose first line is the key")
    parser.add_argument("--tls-cert", type=str | None, default=None, help="certificate chain (PEM)")
    parser.add_argument("--tls-key", type=str | None, default=None, help="private key (PEM)")
    parser.add_argument(
        "--mapping", type=str, default="native", help="preset or YAML: the clients' names -> the policy's"
    )
    parser.add_argument("--device", type=str, default="cpu", help="cpu or cuda")
    options = parse(parser, arguments)
    from robopolicy.control.server import open_policy, read_api_key
    from robopolicy.control.server import serve as run_server

    policy, spec = open_policy(options.policy, options.device)
    run_server(
        policy,
        spec,
        host=options.host,
        port=options.port,
        api_key=read_api_key(options.api_key_file) if options.api_key_file else None,
        tls_cert=options.tls_cert,
        tls_key=options.tls_key,
        mapping=options.mapping,
        on_ready=lambda host, port: print(f"serving   ws://{host}:{port}", flush=True),
    )
    return 0


def run(arguments: Sequence[str]) -> int:
    """Drive a robot; gives 0 where the run ended as planned, 1 after a controlled stop."""
    parser = verb_parser("run", "A policy, or a recorded demo, on a robot in real time and within limits.")
    parser.add_argument("policy", type=str, nargs="?", default=None, help="run folder, or an exported folder")
    parser.add_argument("--robot", type=str, default="sim", choices=list(ROBOTS), help="what is driven")
    parser.add_argument("--task", type=str | None, default=None, help="for --robot sim: task of the simulator")
    parser.add_argument("--seed", type=int, default=20000, help="for --robot sim: seed of the episode")
    parser.add_argument("--host", type=str, default="127.0.0.1", help="for robots over the network")
    parser.add_argument("--port", type=int, default=9090, help="for robots over the network")
    parser.add_argument("--profile", type=str, default="panda", help="limits: panda, fr3 or a YAML file")
    parser.add_argument("--instruction", type=str | None, default=None, help="what it is told; default: the task's")
    parser.add_argument("--seconds", type=float, default=10.0, help="longest run [s]")
    parser.add_argument("--deadline", type=float, default=0.25, help="age of the newest chunk that stops the robot [s]")
    parser.add_argument("--replay", type=str | None, default=None, help="demo file whose actions are sent instead")
    parser.add_argument(
        "--demo", type=str | None, default=None, help="for --replay: name of the demo; default: the first"
    )
    parser.add_argument("--dry-run", action="store_true", help="compute and log commands, send none")
    parser.add_argument("--realtime", action="store_true", help="ask the system for real-time priority")
    parser.add_argument("--home", type=bool, default=True, help="move slowly to the home pose first")
    parser.add_argument("--log", type=str | None, default=None, help="demo file that keeps every control step")
    parser.add_argument("--json", type=str | None, default=None, help="where to write the statistics")
    options = parse(parser, arguments)
    if (options.policy is None) == (options.replay is None):
        raise ConfigError("what drives the robot? Give a run folder, or --replay DEMO_FILE, and not both")
    with ExitStack() as stack:
        return _run(options, stack)


def _run(options: Namespace, stack: ExitStack) -> int:
    from rich.live import Live

    from robopolicy.cli.recording import DemoRecorder
    from robopolicy.control.loop import ControlLoop
    from robopolicy.control.statistics import live_table

    driver = _replayed(options) if options.replay else _policy(options)
    robot = _robot(options, driver, stack)
    inference = driver["inference"](robot)
    if hasattr(inference, "close"):
        stack.callback(inference.close)
    recorder = DemoRecorder(options.log, driver["spec"], driver["executor"].control_dt) if options.log else None
    if recorder:
        stack.callback(recorder.close)
    loop = ControlLoop(
        robot,
        inference,
        driver["executor"],
        driver["spec"],
        deadline_s=options.deadline,
        recorder=recorder,
        dry_run=options.dry_run,
        realtime=options.realtime,
    )
    if options.home and not options.dry_run:
        loop.go_home()
    with Live(get_renderable=lambda: live_table(loop.statistics), refresh_per_second=2) as live:
        statistics = loop.run(options.seconds, finished=_finished(robot, inference))
        live.refresh()
    if options.json:
        Path(options.json).write_text(json.dumps(statistics.to_dict(), indent=2))
    if options.robot == "sim":
        print(f"task      {'solved' if robot.success else 'not solved'} after {statistics.steps} steps")
    if options.log:
        print(f"log       {options.log}")
    return 1 if loop.stopped else 0


def _policy(options: Namespace) -> dict[str, Any]:
    from robopolicy.control.executor import ChunkExecutor
    from robopolicy.control.inference import ThreadedInference
    from robopolicy.control.server import open_policy
    from robopolicy.control.stream import PolicyStream

    torch.set_num_threads(1)
    policy, spec = open_policy(options.policy)
    if spec.control_dt is None:
        raise ConfigError(f"{options.policy}: the policy's demos don't say their rate; retrain on demos that do")
    execution = policy.config.execution if hasattr(policy, "config") else ExecutionConfig()
    return {
        "spec": spec.action,
        "observation": spec.observation,
        "task": options.task or spec.provenance.get("task"),
        "executor": ChunkExecutor.from_config(execution, spec.action, spec.chunk, spec.control_dt),
        "inference": lambda robot: ThreadedInference(
            robot,
            PolicyStream(policy, frame_stride=spec.frame_stride),
            options.instruction,
            realtime=options.realtime,
        ),
    }


def _replayed(options: Namespace) -> dict[str, Any]:
    from robopolicy.control.executor import ChunkExecutor
    from robopolicy.control.inference import Replay
    from robopolicy.demos.formats import open_demos

    with open_demos(options.replay) as demos:
        name = options.demo or demos.names[0]
        if name not in demos.names:
            raise ConfigError(f"{options.replay}: no demo {name!r}; it has {demos.names[0]} .. {demos.names[-1]}")
        demo, spec, attributes = demos.read(name), demos.action_spec, demos.attributes
    if spec is None or spec.rate_hz is None:
        raise ConfigError(f"{options.replay}: the file doesn't say its action columns and rate; it can't be replayed")
    actions = demo.actions if demo.executed_actions is None else demo.executed_actions
    return {
        "spec": spec,
        "observation": {},
        "task": options.task or attributes.get("env_args", {}).get("env_kwargs", {}).get("task"),
        "executor": ChunkExecutor(1, 1.0 / spec.rate_hz, action_spec=spec),
        "inference": lambda robot: Replay(robot, actions),
    }


def _robot(options: Namespace, driver: dict[str, Any], stack: ExitStack) -> Any:
    if options.robot == "sim":
        if driver["task"] is None:
            raise ConfigError("which task? The demos don't say; give --task")
        from robopolicy.sim.robot import SimRobot

        pictures = {key: spec.shape[0] for key, spec in driver["observation"].items() if spec.is_image}
        size = next(iter(pictures.values()), 64)
        robot = SimRobot(
            driver["task"], options.seed, cameras=tuple(pictures), image_size=size, realtime=options.realtime
        )
        stack.callback(robot.close)
        return robot
    from robopolicy.control.profile import read_profile

    if options.robot == "websocket":
        from robopolicy.control.robots import WebsocketRobot

        robot = WebsocketRobot(options.host, options.port)
    else:
        from robopolicy.control.rosbridge import RosbridgeRobot

        control_dt = driver["executor"].control_dt
        robot = RosbridgeRobot(read_profile(options.profile), options.host, options.port, control_dt=control_dt)
    stack.callback(robot.close)
    return robot


def _finished(robot: Any, inference: Any) -> Callable[[], bool]:
    if hasattr(inference, "finished"):
        return lambda: inference.finished
    return lambda: bool(getattr(robot, "success", False) or getattr(robot, "failed", False))
