"""A YAML file and dotted overrides -> an experiment, and back; a key that no dataclass has is refused."""

import json
import re
from argparse import ArgumentError
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentParser, Namespace, set_parsing_settings

from robopolicy.components import refuse_import_paths
from robopolicy.config.checks import ConfigError
from robopolicy.config.experiment import ExperimentConfig

set_parsing_settings(docstring_parse_attribute_docstrings=True)

LIST_OPTIONS = (
    "--data.files",
    "--data.file_weights",
    "--data.obs_keys",
    "--data.cameras",
    "--data.target_keys",
    "--data.arm",
    "--data.gripper",
    "--head.head_widths",
    "--loss.arm_weights",
    "--optimizer.betas",
)
"""Options that take several values after one another."""


def read_config(path: str | Path | None = None, overrides: Sequence[str] = ()) -> ExperimentConfig:
    """An experiment from a YAML file and dotted overrides such as `["--head.window", "16"]`.

    Raises:
        ConfigError: the file is missing or no mapping, a key is unknown, or a value has the wrong type.
    """
    if path is not None:
        check_config_file(path)
        _refuse_named_sections(yaml.safe_load(Path(path).read_text(encoding="utf-8")), str(path))
    parser = experiment_parser()
    return _parsed(
        lambda: parser.parse_args(
            collect_lists(overrides), namespace=parser.parse_path(str(path)) if path is not None else None
        ),
        source=str(path or "command line"),
    )


def experiment_parser() -> ArgumentParser:
    """The parser whose options are the fields of `ExperimentConfig`; it also prints their `--help`."""
    parser = ArgumentParser(exit_on_error=False, add_help=False)
    parser.add_class_arguments(ExperimentConfig, None)
    return parser


def collect_lists(arguments: Sequence[str]) -> list[str]:
    """Turn `--data.files a b` into the one value a list option takes, so that one file is as good as several."""
    collected: list[str] = []
    place = 0
    while place < len(arguments):
        option = arguments[place]
        place += 1
        values = []
        while option in LIST_OPTIONS and place < len(arguments) and not arguments[place].startswith("--"):
            values.append(arguments[place])
            place += 1
        already_list = len(values) == 1 and (values[0].startswith("[") or values[0] == "null")
        collected += [option, *values] if not values or already_list else [option, json.dumps(values)]
    return collected


def config_to_dict(config: ExperimentConfig) -> dict[str, Any]:
    """Plain dictionaries and lists, as YAML and JSON write them; `config_from_dict` reads it back."""
    return _plain(asdict(config))


def config_from_dict(values: Mapping[str, Any], source: str = "config") -> ExperimentConfig:
    """The inverse of `config_to_dict`, with the same checks as `read_config`."""
    if not isinstance(values, Mapping):
        raise ConfigError(f"{source}: expected a mapping of options, got {type(values).__name__}")
    refuse_import_paths(values, source)
    _refuse_named_sections(values, source)
    parser = experiment_parser()
    return _parsed(lambda: parser.parse_object(dict(values)), source=source)


def _refuse_named_sections(values: Mapping[str, Any], source: str) -> None:
    """Refuse a section given as anything but a mapping: the parser would import what a string there names."""
    for field in fields(ExperimentConfig):
        if is_dataclass(field.type) and not isinstance(values.get(field.name, {}), Mapping):
            raise ConfigError(f"{source}: {field.name} must be a mapping of options, got {values[field.name]!r}")


def _parsed(parse: Callable[[], Namespace], source: str) -> ExperimentConfig:
    try:
        values = experiment_parser().instantiate(parse())
        return ExperimentConfig(**{name: getattr(values, name) for name in ExperimentConfig.__dataclass_fields__})
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from None
    except (ArgumentError, TypeError, ValueError) as error:
        raise ConfigError(f"{source}: {plain_message(error)}") from error


def plain_message(error: Exception) -> str:
    """What the parser found and what it expected, in one line and the words of the command line."""
    message = " ".join(str(error).split())
    for pattern in _WRONG_TYPE:
        if found := pattern.fullmatch(message):
            expected = found["types"]
            for jargon, plain in _PLAIN_TYPES:
                expected = re.sub(jargon, plain, expected)
            key = found["key"] if "." in found["key"] else found["key"].replace("_", "-")
            return f"--{key} is {found['value']}; expected {expected}"
    return message


def check_config_file(path: str | Path) -> None:
    """Refuse what is no YAML file with options in it.

    Raises:
        ConfigError: there is no such file, it is no text, no YAML, or holds no mapping.
    """
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"{path}: {'a folder, not a' if path.is_dir() else 'no such'} config file")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: not YAML ({' '.join(str(error).split())})") from error
    if not isinstance(values, dict):
        found = "the file is empty" if values is None else f"it holds a {type(values).__name__}"
        raise ConfigError(f"{path}: {found}; expected options, such as `task: lift`")
    refuse_import_paths(values, str(path))


_WRONG_TYPE = (
    re.compile(r'Parser key "(?P<key>[^"]+)": Expected an? (?P<types>.+?)\. Got value: (?P<value>.*)'),
    re.compile(
        r'Parser key "(?P<key>[^"]+)": Does not validate against any of the Union subtypes '
        r"Subtypes: \[(?P<types>.*)\] Errors: .*Given value: (?P<value>.*)"
    ),
)
_PLAIN_TYPES = (
    (r"typing\.|collections\.abc\.", ""),
    (r"Literal\[(.*?)\]", r"one of \1"),
    (r"<class 'NoneType'>", "null"),
    (r"<class '(\w+)'>", r"\1"),
    (r", null$", " or null"),
)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value
