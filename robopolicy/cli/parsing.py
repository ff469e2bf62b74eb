"""Argument parsing of the verbs: dashed flags, `--config`, dotted overrides, errors in one line."""

import importlib
import re
from argparse import ArgumentError
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from difflib import get_close_matches
from itertools import islice
from typing import Any, Literal, TypeAlias, TypeVar, get_args, get_origin

import docstring_parser
from jsonargparse import ArgumentParser, Namespace

from robopolicy.cli import say
from robopolicy.components import ConfigError, component, find_in_current_folder, kinds, load_plugins, require
from robopolicy.control.execution import ExecutionOptions
from robopolicy.experiment import open_policy
from robopolicy.experiment.config import ExperimentConfig
from robopolicy.experiment.opening import group_folder
from robopolicy.experiment.reading import (
    SECTIONS,
    changed_options,
    config_from_dict,
    help_parser,
    merged,
    split_overrides,
)
from robopolicy.options import converted, described, read_yaml
from robopolicy.types import one_line

Option: TypeAlias = tuple[str, Any, Any, str]
"""Flag (or name of a positional argument), type, default and help of an option.

`list[T]` and `tuple[T, ...]` take one or more values; `bool` with default False takes none and is True if the flag is
given. A dataclass becomes one option per field, `--NAME.field`, with the field's default and docstring.
"""
REQUIRED: Any = object()
"""Default of an option that must be given."""
Made = TypeVar("Made")

FLOW_STEPS: Option = (
    "--flow-steps",
    int | None,
    None,
    "integration steps of the action head flow: more are more accurate, and slower; default: as trained",
)
GROUP: Option = ("--group", str | None, None, "for a run trained on several robots: the one whose policy to use")
POLICY: tuple[Option, ...] = (
    (
        "--precision",
        Literal["float32", "bf16", "int8"],
        "float32",
        "arithmetic of a run folder's policy on the CPU; an exported one has its own",
    ),
    FLOW_STEPS,
    (
        "--backbone",
        str | None,
        None,
        "for a policy trained on encoded tokens: folder or name of the backbone that made them, or auto for the one that "
        "the run records; the policy then reads images",
    ),
    GROUP,
)
"""Options for opening the policy of a run folder."""


def verb_parser(verb: str, description: str, *options: Option) -> ArgumentParser:
    """A parser for one verb with these options and `--config FILE.yaml`; the command line overrides the file."""
    parser = ArgumentParser(prog=f"robopolicy {verb}", description=description, exit_on_error=False)
    parser.add_argument("--config", action="config", help="YAML file with values for any of these options")
    for name, kind, default, text in options:
        if isinstance(kind, type) and is_dataclass(kind):
            parser.add_class_arguments(kind, name)
            continue
        settings: dict[str, Any] = {"help": text}
        if kind is bool and default is False:
            settings["action"] = "store_true"
        else:
            several = get_origin(kind) in (list, tuple)
            # `str`, not `str | None`: the parser takes the words null and ~ for None, and a name like that would be ignored.
            settings["type"] = get_args(kind)[0] if several else str if kind == str | None else kind
            if several or (default is not REQUIRED and not name.startswith("-")):
                settings["nargs"] = "+" if several else "?"
            if default is not REQUIRED:
                settings["default"] = list(default) if several else default
            elif name.startswith("-"):
                settings["required"] = True
        parser.add_argument(name, **settings)
    return parser


def field_options(kind: type, of: str = "") -> list[Option]:
    """A dataclass's fields as the verb's own options, `max_minutes` as `--max-minutes`; `of` is prepended to their help."""
    helps = meanings(kind)
    return [
        (f"--{each.name.replace('_', '-')}", each.type, each.default, of + helps[each.name]) for each in fields(kind)
    ]


def made_from(kind: type[Made], options: Namespace) -> Made:
    """An instance of the dataclass, from the values of the options that `field_options` made from its fields."""
    given = {each.name: options[each.name] for each in fields(kind)}  # type: ignore[arg-type]
    return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in given.items()})


def parse(parser: ArgumentParser, arguments: Sequence[str]) -> Namespace:
    """The parsed options, with dataclasses instantiated; the command line overrides `--config`, wherever that stands.

    Raises:
        ConfigError: an unknown option, a missing one, or a value of the wrong type.
    """
    files, rest = _config_files(arguments)
    for file in files:
        read_yaml(file)
    try:  # files first, since the parser lets whatever comes later win
        return parser.instantiate(parser.parse_args([f"--config={file}" for file in files] + rest))
    except (ArgumentError, TypeError) as error:
        where = f"{', '.join(files)}: " if "is not accepted" in str(error) else ""
        raise ConfigError(f"{where}{_plain_message(parser, error)}; see {parser.prog} --help") from error


def at_least(options: Namespace, low: int, *names: str) -> None:
    """Refuse a number below `low`.

    Raises:
        ConfigError: the number is too small.
    """
    for name in names:
        if options[name] < low:
            raise ConfigError(f"--{name.replace('_', '-')} is {options[name]}; expected {low} or more")


def meanings(options: type) -> dict[str, str]:
    """The docstring under each field, those of inherited fields included."""
    found: dict[str, str] = {}
    for owner in reversed(options.__mro__):
        if is_dataclass(owner):
            parsed = docstring_parser.parse_from_object(owner)
            found |= {each.arg_name: " ".join((each.description or "").split()) for each in parsed.params}
    return found


def of_group(folder: str, group: str | None) -> str:
    """The run folder of `--group`; of a run without groups, the folder itself.

    Raises:
        CheckpointError: the run has groups and `group` is None or unknown, or it has none and `group` is given.
    """
    return str(group_folder(folder, group))


def opened(options: Namespace, folder: str, device: str = "cpu", threads: int | None = None) -> Any:
    """The policy in a run folder or an exported one, opened as the options `POLICY` say."""
    precision = None if options.precision == "float32" else options.precision
    return open_policy(folder, options.backbone, device, precision, flow_steps=options.flow_steps, threads=threads)


def execution_options() -> list[Option]:
    """`--execution.kind` and the options of every known kind; `execution_of` refuses options of a kind not chosen."""
    shown: dict[str, tuple[Any, str, list[str]]] = {}
    for kind in kinds("execution"):
        kind_options = component("execution", kind).options
        for each in fields(kind_options):
            shown.setdefault(each.name, (each.type, meanings(kind_options)[each.name], []))[2].append(kind)
    known = list(kinds("execution"))
    options: list[Option] = [("--execution.kind", str | None, None, f"{', '.join(known)}; default: as trained")]
    for name, (annotation, meaning, owners) in shown.items():
        of = "" if owners == known else f"For {', '.join(owners)}. "
        options.append((f"--execution.{name}", annotation | None, None, f"{meaning} {of}Default: as trained."))
    return options


def execution_of(options: Namespace, trained: Mapping[str, Any]) -> ExecutionOptions:
    """The execution options of the command line; options that aren't given are taken from `trained`, the policy's own.

    Raises:
        ConfigError: the kind is unknown, or an option belongs to another kind.
    """
    given = {name: value for name, value in vars(options.execution).items() if value is not None}
    return changed_options("execution", trained, given)


def parse_experiment(
    parser: ArgumentParser, arguments: Sequence[str], short: Mapping[str, str] | None = None
) -> tuple[Namespace, ExperimentConfig]:
    """A verb's own options and an experiment, from `--config` files and the command line, which overrides them.

    `short` names options of the verb that stand for one of the experiment: `{"max_steps": "training.max_steps"}`.

    Raises:
        ConfigError: an unknown option, a missing one, or a value of the wrong type.
    """
    files, words = _config_files(arguments)
    short = short or {}
    flags = {f"--{name.replace('_', '-')}": f"--{path}" for name, path in short.items()}
    words = [flags.get(name, name) + equals + value for name, equals, value in (word.partition("=") for word in words)]
    tree: dict[str, Any] = {}
    own: list[str] = []
    for file in files:
        for name, value in read_yaml(file).items():
            if name in short:
                tree = merged(tree, {short[name]: value})
            elif name in ("task", "plugins", *SECTIONS):
                tree[name] = merged(tree.get(name, {}), value) if isinstance(value, Mapping) else value
            else:
                own.append(f"--{name.replace('_', '-')}={value}")
    given, rest = split_overrides(words)
    tree = merged(tree, given)
    if {"-h", "--help"} & set(rest):
        load_plugins(converted(tuple[str, ...], tree.get("plugins", ()), "--plugins"))
        say(parser.format_help() + "\n" + help_parser(tree).format_help().partition("\n\n")[2])
        raise SystemExit(0)
    known = {option for action in parser._actions for option in action.option_strings}
    for word in own:
        if word.partition("=")[0] not in known:
            raise ConfigError(
                f"{', '.join(files)}: unknown option {word.partition('=')[0].removeprefix('--')}; "
                f"a config has {', '.join(('task', 'plugins', *SECTIONS))}"
            )
    options = parse(parser, [*own, *rest])
    return options, config_from_dict(tree, source=", ".join(files) or "command line", import_plugins=True)


def imported(flag: str, source: str, argument: str) -> Callable[[Any], Any]:
    """The factory MODULE:FACTORY that the user gave with `flag`, imported.

    Raises:
        ConfigError: it can't be imported, or is not callable.
    """
    module, _, factory = source.partition(":")
    find_in_current_folder(module)
    try:
        made = getattr(importlib.import_module(module), factory)
    except Exception as error:
        raise ConfigError(f"{flag} {source} can't be imported: {type(error).__name__}: {one_line(error)}") from error
    require(callable(made), f"{flag} {source} is not callable; expected a function of {argument}")
    return made


def _plain_message(parser: ArgumentParser, error: Exception) -> str:
    """A parser error in one line, in terms of the command line; for an unknown option, with the most similar known one."""
    message = one_line(error)
    known = [option for action in parser._actions for option in action.option_strings]
    typed: dict[str, Any] = {action.dest: action for action in parser._actions if hasattr(action, "_typehint")}
    if (found := _WRONG_TYPE.fullmatch(message)) and (action := typed.get(found[1])):
        return f"{(action.option_strings or [found[1]])[0]} is {found[2]}; expected {described(action._typehint)}"
    if found := re.fullmatch("the following arguments are required: (.+)", message):
        options = [f"--{name.replace('_', '-')}" for name in found[1].split(", ")]
        return f"missing: {', '.join(each if each in known else each.removeprefix('--') for each in options)}"
    if found := re.fullmatch("unrecognized arguments: (.+)", message):
        near = get_close_matches(found[1].split()[0].partition("=")[0], known, n=1)
        return f"unknown option: {found[1]}{f'; did you mean {near[0]}?' if near else ''}"
    return message


_WRONG_TYPE = re.compile(r'Parser key "([^"]+)"(?: element \d+)?: .*(?:Got|Given) value: (.*)')


def _config_files(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """The files that `--config FILE` and `--config=FILE` name, and all other words."""
    files, rest = [], []
    words = iter(arguments)
    for word in words:
        file = list(islice(words, 1)) if word == "--config" else []
        if word.startswith("--config="):
            file = [word.removeprefix("--config=")]
        if file:
            files += file
        else:
            rest.append(word)
    return files, rest
