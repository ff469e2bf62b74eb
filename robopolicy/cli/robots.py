"""The robot and the operator of `robopolicy run`, from `--robot` and `--intervene`: a kind, address, file or factory."""

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from robopolicy.cli.drivers import Driver
from robopolicy.cli.parsing import REQUIRED, Option, imported
from robopolicy.components import ConfigError, build, component, kinds, options_from
from robopolicy.control.operators.base import OperatorContext
from robopolicy.control.robot import Operator, Robot
from robopolicy.control.robots.base import RobotContext
from robopolicy.options import read_yaml

ROBOT_SCHEMES: Mapping[str, tuple[str, dict[str, Any]]] = {
    "ws": ("websocket", {}),
    "wss": ("websocket", {"tls": True}),
    "rosbridge": ("rosbridge", {}),
}
OPERATOR_SCHEMES: Mapping[str, tuple[str, dict[str, Any]]] = {"ws": ("leader", {}), "wss": ("leader", {"tls": True})}
"""Scheme of an address -> kind of robot or operator, and options that follow from it."""

FLAGS: Mapping[str, tuple[str, Any, str]] = {
    "task": ("task", str, "task of the simulator; default: the demos' own"),
    "seed": ("seed", int, "seed of the simulated episode; default: that of the replayed episode, otherwise 10000"),
    "command_hz": ("command-hz", float, "commands a second to the simulated robot; default: 1000"),
    "realtime": ("realtime", bool, "false: the simulated robot on a simulated clock, without sleeping; default: true"),
    "ca": ("robot-ca", str, "certificates (PEM) to trust for wss; default: the system's"),
    "key_file": ("robot-key-file", str, "file that holds a ws robot's key"),
    "profile": ("profile", str, "limits of the robot: panda, fr3 or a YAML file; default: panda"),
}
"""Option of a robot -> its flag, type and help; a robot without this option refuses the flag."""


def robot_options() -> list[Option]:
    """`--robot` and the flags of its options."""
    text = (
        f"{', '.join(kinds('robot'))}; ws://, wss:// (a RobotServer) or rosbridge://HOST:PORT; a YAML file with kind and "
        "options; or MODULE:FACTORY"
    )
    flags = [(f"--{flag}", annotation | None, None, text) for flag, annotation, text in FLAGS.values()]
    return [("--robot", str, REQUIRED, text), *flags]


def make_robot(options: Namespace, driver: Driver) -> Robot:
    """The robot that `--robot` names.

    Raises:
        ConfigError: the value is in none of the accepted forms, the kind is unknown or lacks the flag or option.
    """
    context = RobotContext(
        control_dt=driver.control_dt,
        cameras=driver.spec.cameras,
        image_size=driver.spec.image_size,
        task=driver.spec.provenance.get("task"),
        seed=driver.seed,
        deadline_s=options.deadline,
        priority=options.priority,
    )
    flags = {
        name: value for name, (flag, *_) in FLAGS.items() if (value := options[flag.replace("-", "_")]) is not None
    }
    if options.robot.partition(":")[2].isidentifier():
        if flags:
            raise ConfigError(f"--{FLAGS[next(iter(flags))][0]} is not an option of --robot {options.robot}")
        return _checked(options.robot, imported("--robot", options.robot, "a RobotContext")(context))
    kind, given = _kind_and_options("robot", options.robot, ROBOT_SCHEMES)
    known = [field.name for field in fields(component("robot", kind).options)]
    for name in flags:
        if name not in known:
            raise ConfigError(f"--{FLAGS[name][0]} is not an option of robot {kind!r}; it has: {', '.join(known)}")
    return _checked(options.robot, build(options_from("robot", kind, given | flags), context))


def make_operator(source: str, context: OperatorContext) -> Operator:
    """The operator that `--intervene` names, with the device opened.

    Raises:
        ConfigError: the value is in none of the accepted forms, the kind or an option is unknown, or the device can't be
            opened.
    """
    if source.partition(":")[2].isidentifier():
        operator = imported("--intervene", source, "an OperatorContext")(context)
    else:
        kind, given = _kind_and_options("operator", source, OPERATOR_SCHEMES)
        operator = build(options_from("operator", kind, given), context)
    if not isinstance(operator, Operator):
        raise ConfigError(
            f"--intervene {source} returned a value of type {type(operator).__name__}; expected an Operator, with act and close"
        )
    return operator


def _kind_and_options(
    family: str, source: str, schemes: Mapping[str, tuple[str, dict[str, Any]]]
) -> tuple[str, dict[str, Any]]:
    """The kind and the options of a device that is given as a kind, an address or a YAML file.

    Raises:
        ConfigError: the address has an unknown scheme, or the file no `kind`.
    """
    scheme, separator, address = source.partition("://")
    if separator:
        if scheme not in schemes:
            raise ConfigError(f"{family} {source}: unknown scheme {scheme!r}; expected {', '.join(schemes)}")
        kind, given = schemes[scheme]
        return kind, {"address": address, **given}
    if source.endswith((".yaml", ".yml")):
        values = read_yaml(source)
        kind = values.pop("kind", None)
        if not isinstance(kind, str):
            raise ConfigError(f"{source}: expected `kind`, one of {', '.join(kinds(family))}")
        if isinstance(profile := values.get("profile"), str) and (Path(source).parent / profile).is_file():
            values["profile"] = str(Path(source).parent / profile)  # a profile beside the file
        return kind, values
    return source, {}


def _checked(source: str, robot: Any) -> Robot:
    if not isinstance(robot, Robot):
        missing = [name for name in ("profile", "control_dt", "command_dt") if not hasattr(robot, name)]
        missing += [name for name in ("observe", "qpos", "command", "stop") if not callable(getattr(robot, name, None))]
        raise ConfigError(
            f"--robot {source} returned a value of type {type(robot).__name__}, which lacks {', '.join(missing)}; expected a "
            "Robot"
        )
    return robot
