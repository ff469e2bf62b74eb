"""The source of a robot's actions in `robopolicy run`: a local policy, a policy behind a server, or a recorded demo."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from jsonargparse import Namespace

from robopolicy.cli import say
from robopolicy.cli.parsing import execution_of, opened
from robopolicy.components import ConfigError, require
from robopolicy.control.execution import ExecutionOptions, require_supported
from robopolicy.control.profile import RobotProfile
from robopolicy.control.replay import CHUNK, JOINTS, REFERENCE, Record, RecordedStream, along_path
from robopolicy.control.robot import Robot, driven
from robopolicy.control.serving.access import read_api_key, trusted, warn_of_plain_text
from robopolicy.control.stream import (
    PolicyStream,
    ServedStream,
    Stream,
    noise_for,
    qpos_in_action_columns,
    with_image_resized,
)
from robopolicy.demos.hdf5 import DemoFile
from robopolicy.types import ActionSpec, Observation, PolicySpec

logger = logging.getLogger(__name__)

MAX_SPEED = 4.0
"""Largest speed of a replay, relative to the recorded speed; a larger one is refused as a mistake."""
AUTO_SPEED = "auto"
"""Value of `--speed` that stands for the largest speed within the robot's limits, at most the recorded speed."""


@dataclass(frozen=True)
class Driver:
    """The source of the actions, and the facts about it that the control loop needs."""

    stream: Stream
    spec: PolicySpec
    """What it observes and its actions; a recorded demo observes nothing."""
    control_dt: float
    """Time between two actions [s]."""
    execution: ExecutionOptions
    seed: int | None = None
    """Seed of a recorded episode in the simulator."""
    adapt: tuple[Callable[[Observation], Observation], ...] = ()
    """Functions that convert the robot's observation to the policy's, applied in order."""


def driver_of(options: Namespace) -> Driver:
    """The driver that the options of `robopolicy run` choose.

    Raises:
        ConfigError: none or several of them are given, or the one given does not declare its actions.
    """
    given = [name for name in ("policy", "server", "replay") if options[name] is not None]
    require(len(given) == 1, "give one of: a policy's folder, --server HOST:PORT, or --replay FILE")
    return {"policy": _local, "server": _served, "replay": _replayed}[given[0]](options)


def _local(options: Namespace) -> Driver:
    threads = 1 if options.backbone is None else None
    if threads is not None:  # for a batch of 1, a second thread would delay the commands more than it helps
        torch.set_num_threads(threads)
    policy = opened(options, options.policy, options.device, threads)
    spec = policy.spec
    generator = noise_for(policy, execution_of(options, spec.execution))
    every = _steps_per_call(options, spec)
    return _by_spec(options, spec, PolicyStream(policy, frame_stride=spec.frame_stride // every, generator=generator))


def _served(options: Namespace) -> Driver:
    from robopolicy.client import ACTIONS_PER_CALL_KEY, PolicyClient

    scheme, _, address = options.server.rpartition("://")
    host, _, port = address.rpartition(":")
    if scheme not in ("", "ws", "wss") or not port.isdigit():
        raise ConfigError(f"--server {options.server}: expected HOST:PORT or wss://HOST:PORT")
    if options.server_ca is not None and scheme != "wss":
        raise ConfigError(f"--server-ca is for wss://HOST:PORT, got --server {options.server}")
    tls = trusted(options.server_ca) if scheme == "wss" else None
    if tls is None:
        warn_of_plain_text(logger, host or "127.0.0.1", f"--server {options.server}")
    key = read_api_key(options.api_key_file) if options.api_key_file else None
    client = PolicyClient(host or "127.0.0.1", int(port), api_key=key, timeout_s=5.0, connect_timeout_s=10.0, tls=tls)
    spec = _announced(client.metadata, options.server)
    texts = [key for key, field in client.metadata["observation"].items() if field["dtype"] == "str"]
    spacing = {ACTIONS_PER_CALL_KEY: _steps_per_call(options, spec)}  # however many actions of a chunk are executed
    stream = ServedStream(client, *texts[:1], keys=tuple(spec.observation), constants=spacing)
    execution, drawn = execution_of(options, spec.execution), bool(spec.samples and spec.execution.get("sample"))
    if spec.samples and (execution.sample != drawn or execution.best_of > 1):
        raise ConfigError(
            f"--server {options.server}: the server {'draws its chunks' if drawn else 'returns the most likely chunk'}, one at "
            "a time, as its policy's own options say; leave out --execution.sample and --execution.best_of"
        )
    return _by_spec(options, spec, stream)


def _announced(metadata: Mapping[str, Any], server: str) -> PolicySpec:
    """The policy's spec in a server's metadata."""
    from robopolicy.control.serving.protocol import ANNOUNCED

    names = ("observation", "action_spec", *ANNOUNCED)
    if missing := [name for name in names if name not in metadata]:
        raise ConfigError(
            f"--server {server} doesn't announce its policy's {missing[0]}; expected a `robopolicy serve` of this version"
        )
    observation = {key: field for key, field in metadata["observation"].items() if field["dtype"] != "str"}
    others = {name: metadata[name] for name in ANNOUNCED}
    return PolicySpec.from_dict({**others, "observation": observation, "action": metadata["action_spec"]})


def _by_spec(options: Namespace, spec: PolicySpec, stream: Stream) -> Driver:
    control_dt = spec.control_dt or (1 / spec.action.rate_hz if spec.action.rate_hz else None)
    if control_dt is None:
        raise ConfigError(
            "the policy doesn't declare the rate of its actions; its demos need an action_spec with rate_hz"
        )
    execution = execution_of(options, spec.execution)
    require_supported(spec, execution, control_dt)
    return Driver(stream, spec, control_dt, execution)


def _steps_per_call(options: Namespace, spec: PolicySpec) -> int:
    """Number of control steps from one call of the policy to the next.

    Raises:
        ConfigError: the policy's frame stride is not a multiple of this number, or its chunks are shorter.
    """
    every = options.actions_per_call
    if every < 1 or spec.frame_stride % every or every > spec.chunk:
        raise ConfigError(
            f"--actions-per-call {every}: the policy's chunks have {spec.chunk} actions, and its memory was trained with "
            f"--data.frame_stride {spec.frame_stride}, which must be a multiple of it"
        )
    return every


def _replayed(options: Namespace) -> Driver:
    with DemoFile(options.replay) as file:
        demo = file.read(options.demo or file.names[0])
        spec, env_args = file.attributes["action_spec"], file.attributes["env_args"]
    if spec is None or spec.rate_hz is None:
        raise ConfigError(f"{options.replay} doesn't declare its actions; an action_spec with rate_hz is needed")
    speed = 1.0 if options.speed == AUTO_SPEED else options.speed
    if not 0 < speed <= MAX_SPEED:
        raise ConfigError(f"--speed {speed:g}: expected more than 0, and at most {MAX_SPEED:g}, or {AUTO_SPEED}")
    key = options.follow if options.follow not in (None, "actions") else JOINTS
    if key not in demo.obs and options.follow == key:
        raise ConfigError(f"--follow {key}: not in {demo.name}; it has: actions, {', '.join(demo.obs)}")
    actions = demo.actions if demo.executed_actions is None else demo.executed_actions
    reference = demo.obs.get(REFERENCE) if options.follow is None else None
    record = Record(actions, spec, _joint_path(demo.obs.get(key), spec), reference).at_speed(speed)
    if record.path_rad is not None and options.follow != "actions":
        record = along_path(record)
    control_dt = 1 / spec.rate_hz
    task = (env_args.get("env_kwargs") or {}).get("task")
    policy = PolicySpec({}, record.spec, CHUNK, window=1, control_dt=control_dt, provenance={"task": task})
    return Driver(RecordedStream(record, control_dt), policy, control_dt, execution_of(options, {}), seed=demo.seed)


def _joint_path(rows: np.ndarray | None, spec: ActionSpec) -> np.ndarray | None:
    """Joint positions (T, joints); if `rows` have the action's columns, as ALOHA records them, only the joints' columns."""
    if rows is None or rows.shape[1] != spec.width or spec.space != "joint_position":
        return rows
    return rows[:, list(spec.joint_columns)]


def fitted(driver: Driver, robot: Robot, name: str) -> Driver:
    """The driver, adapted to this robot's observations.

    Raises:
        ConfigError: the robot lacks a key, a key has the wrong shape, or a gripper opens at the value that closed it in the
            policy's demos.
    """
    _check_grippers(driver, robot.profile)
    if not driver.spec.observation:
        return driver
    seen, spec = driven(robot, "observe").obs, driver.spec.action
    for key, expected in driver.spec.observation.items():
        require(
            key in seen,
            f"the policy reads {key!r}, which robot {name} doesn't observe; it has: {', '.join(sorted(seen))}. Train "
            "without it (--data.obs_keys, --data.cameras), or let the robot observe it",
        )
        found = tuple(np.shape(seen[key]))
        if key == JOINTS and found != expected.shape == (spec.width,) and spec.kind == "absolute":
            say(f"qpos      passed to the policy in its action's {spec.width} columns: joints and grippers")
            adapt = partial(qpos_in_action_columns, spec=spec, profile=robot.profile)
            driver = replace(driver, adapt=(*driver.adapt, adapt))
        elif expected.is_image and found != expected.shape and len(found) == 3 and found[2] == expected.shape[2]:
            say(f"images    {key}: {found[0]} x {found[1]} resized to {expected.shape[0]} x {expected.shape[1]}")
            adapt = partial(with_image_resized, key=key, height=expected.shape[0], width=expected.shape[1])
            driver = replace(driver, adapt=(*driver.adapt, adapt))
        elif found != expected.shape:
            raise ConfigError(
                f"the policy reads {key!r} of shape {expected.shape}, robot {name} observes {found}; "
                "it was trained with another robot or camera"
            )
    return driver


def at_robots_speed(options: Namespace, driver: Driver, profile: RobotProfile) -> Driver:
    """The driver of a replay with `--speed auto`: sets `options.speed` to the largest speed (<= 1) within the robot's limits.

    Raises:
        ConfigError: the driver is not a replay, or joint positions were not recorded.
    """
    if not isinstance(driver.stream, RecordedStream) or driver.stream.record.path_rad is None:
        raise ConfigError(f"--speed {AUTO_SPEED} needs a replay with recorded joint positions; give --speed a number")
    options.speed = driver.stream.record.speed_within(profile)
    say(f"speed     {options.speed:.2f} of the record's, within {profile.name}'s limits")
    return driver_of(options)


def _check_grippers(driver: Driver, profile: RobotProfile) -> None:
    """Refuse a robot with a gripper that opens at the value that closed it in the policy's demos."""
    spec, opens = driver.spec.action, driver.spec.provenance.get("gripper_opens")
    ends = opens if isinstance(opens, list) else [opens]
    for (column, first, second), end in zip(spec.gripper_ends, ends, strict=False):
        owner = next((name for name, columns in spec.arms.items() if column in columns), "")
        arm = profile.arms.get(owner, profile)
        if end in ("first", "second") and any(arm.openings_m) and not arm.arms and end != arm.gripper_opens:
            value = first if end == "first" else second
            raise ConfigError(
                f"in the policy's demos the gripper (action {column}) opens at {value:g}, its {end} value; the profile of "
                f"{arm.name} says gripper_opens: {arm.gripper_opens}; correct the one that is wrong"
            )
