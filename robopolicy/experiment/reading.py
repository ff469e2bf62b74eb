"""YAML, the command line or plain dictionaries -> an experiment, and back.

The kinds of the component sections are determined first; their dataclasses then define which options exist. Each value is
converted to its field's type by jsonargparse; an unknown key is refused, and those that exist are listed.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, fields, is_dataclass
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml
from jsonargparse import ArgumentParser, set_parsing_settings

from robopolicy.components import ConfigError, component, load_plugins, refuse_import_paths, values_of
from robopolicy.experiment.config import (
    COMPONENT_SECTIONS,
    DEFAULT_LOSSES,
    DataConfig,
    ExperimentConfig,
    NormalizationConfig,
    OptimizerConfig,
    TrainingConfig,
    plain_values,
)
from robopolicy.model.encoders import default_text_of
from robopolicy.types import one_line

set_parsing_settings(docstring_parse_attribute_docstrings=True)

PLAIN_SECTIONS: Mapping[str, type] = {
    "data": DataConfig,
    "normalization": NormalizationConfig,
    "optimizer": OptimizerConfig,
    "training": TrainingConfig,
}
"""Sections whose fields are always the same."""
MAPPINGS = ("augmentation", "losses")
"""Sections that map names to values of the components' own."""
SECTIONS = (*PLAIN_SECTIONS, *COMPONENT_SECTIONS, *MAPPINGS)


def read_config(path: str | Path | None = None, overrides: Sequence[str] = ()) -> ExperimentConfig:
    """An experiment from a YAML file and overrides such as `["--memory.window", "16"]`; its plug-ins are imported.

    Raises:
        ConfigError: the file is missing or not a mapping, a key is unknown, or a value has the wrong type.
    """
    values = {} if path is None else read_yaml(path)
    given, rest = split_overrides(overrides)
    if rest:
        raise ConfigError(f"unknown option {rest[0]}; a config has --task, --plugins and --<section>.<option>")
    values = merged(values, given)
    return config_from_dict(values, source=str(path or "command line"), import_plugins=True)


def config_from_dict(
    values: Mapping[str, Any], source: str = "config", import_plugins: bool = False
) -> ExperimentConfig:
    """The inverse of `config_to_dict`, with the same checks as `read_config`.

    Args:
        values: the tree, as YAML holds it; strings are converted to the type of their field.
        source: begins the message of an error.
        import_plugins: import the modules that `plugins` names; only for a config that the caller wrote.

    Raises:
        ConfigError: a key is unknown or a value doesn't fit.
    """
    if not isinstance(values, Mapping):
        raise ConfigError(f"{source}: expected a mapping of options, got {type(values).__name__}")
    refuse_import_paths(values, source)
    try:
        return _config(values, import_plugins)
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from None


def config_to_dict(config: ExperimentConfig) -> dict[str, Any]:
    """Plain dictionaries and lists, as YAML and JSON write them."""
    sections = {field.name: getattr(config, field.name) for field in fields(config)}
    return {name: plain_values(section_values(name, value)) for name, value in sections.items()}


def section_values(section: str, value: Any) -> Any:
    """The options of a section as plain values; any other value as it is."""
    if not is_dataclass(value) or isinstance(value, type):
        return value
    return plain_values(values_of(value) if section in COMPONENT_SECTIONS else asdict(value))


def merged(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A nested mapping with changes at dotted paths; another `kind` drops the section's options of the kind before."""
    result = {key: dict(value) if isinstance(value, Mapping) else value for key, value in values.items()}
    for path in sorted(changes, key=lambda path: not path.endswith(".kind")):
        section, _, name = path.partition(".")
        if not name:
            result[section] = changes[path]
            continue
        inner = result.setdefault(section, dict(DEFAULT_LOSSES) if section == "losses" else {})
        if not isinstance(inner, dict):
            raise ConfigError(f"{section} must be a mapping, got {inner!r}")
        if name == "kind" and inner.get("kind", COMPONENT_SECTIONS.get(section)) != changes[path]:
            inner.clear()
        head, _, rest = name.partition(".")
        if rest:  # a loss or an augmentation: kind, then option
            before = inner.get(head, {})
            inner[head] = {**(before if isinstance(before, Mapping) else {"weight": before}), rest: changes[path]}
        else:
            inner[head] = changes[path]
    return result


def split_overrides(arguments: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """Dotted path -> value of those arguments that belong to the tree, and all other arguments in their order.

    `--data.files a b` gives a list; `--memory.window=16` and `--memory.window 16` are the same.
    """
    given: dict[str, Any] = {}
    rest: list[str] = []
    place = 0
    while place < len(arguments):
        word, _, attached = arguments[place].partition("=")
        place += 1
        path = word.removeprefix("--")
        if not word.startswith("--") or not (path in ("task", "plugins") or path.partition(".")[0] in SECTIONS):
            rest.append(arguments[place - 1])
            continue
        found = [attached] if attached else []
        while not attached and place < len(arguments) and not arguments[place].startswith("--"):
            found.append(arguments[place])
            place += 1
        if not found:
            raise ConfigError(f"{word} needs a value")
        value = found[0] if len(found) == 1 else found
        given[path] = _loaded(value) if path in SECTIONS else value
    return given, rest


def read_yaml(path: str | Path, aliases: bool = True) -> dict[str, Any]:
    """The mapping in a YAML file.

    Args:
        path: the file.
        aliases: whether it may hold YAML aliases; ten lines of them from a stranger are 10^10 values.

    Raises:
        ConfigError: the file is missing, not text, not YAML, or does not hold a mapping.
    """
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"{path}: {'a folder, not a' if path.is_dir() else 'no such'} config file")
    try:
        text = path.read_text(encoding="utf-8")
        if not aliases and any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text)):
            raise ConfigError(f"{path}: holds a YAML alias (*name), which robopolicy never writes; refused")
        values = yaml.safe_load(text)
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: not YAML ({one_line(error)})") from error
    except RecursionError as error:
        raise ConfigError(f"{path}: nested too deeply") from error
    if not isinstance(values, dict):
        found = "the file is empty" if values is None else f"it holds a {type(values).__name__}"
        raise ConfigError(f"{path}: {found}; expected options, such as `task: lift`")
    refuse_import_paths(values, str(path))
    return values


def help_parser(values: Mapping[str, Any]) -> ArgumentParser:
    """A parser with the options of the kinds that `values` choose, for its `--help` text."""
    parser = ArgumentParser(exit_on_error=False, add_help=False)
    parser.add_argument("--task", type=str | None, help="simulator task for closed-loop evaluation while training")
    parser.add_argument("--plugins", type=tuple[str, ...], default=(), help="modules that register further components")
    for section in SECTIONS:
        if section in PLAIN_SECTIONS:
            parser.add_class_arguments(PLAIN_SECTIONS[section], section)
        elif section in COMPONENT_SECTIONS:
            kind = _kind(section, values)
            parser.add_class_arguments(component(section, kind).options, section)
            parser.add_argument(
                f"--{section}.kind", type=str, default=kind, help=f"see `robopolicy components {section}`"
            )
        else:
            family = {"losses": "loss"}.get(section, section)
            parser.add_argument(f"--{section}", type=dict, default={}, help=f"see `robopolicy components {family}`")
    return parser


def changed_options(family: str, values: Mapping[str, Any], changes: Mapping[str, Any]) -> Any:
    """Options of a family's kind: those of `values` with `changes` (option -> value); another kind starts at its defaults.

    Raises:
        ConfigError: the kind is unknown, it has no option of one of these names, or a value has the wrong type.
    """
    return _component_from(
        family, merged({family: values}, {f"{family}.{name}": value for name, value in changes.items()})
    )


# -- one value -------------------------------------------------------------------------------------------------------------


def converted(annotation: Any, value: Any, name: str) -> Any:
    """A value in the type of its field; text, as the command line gives it, is read as YAML where the type asks for it.

    Raises:
        ConfigError: it can't be.
    """
    is_list = any(get_origin(each) is tuple for each in (annotation, *get_args(annotation)))
    if isinstance(value, str) and is_list and not value.startswith("[") and value != "null":
        value = [value]
    try:
        if isinstance(value, str):
            return _value_parser(annotation).parse_args([f"--value={value}"]).value
        return _value_parser(annotation).parse_object({"value": json.loads(json.dumps(value))}).value
    except Exception as error:
        shown = json.dumps(value) if isinstance(value, list | dict) else value
        raise ConfigError(f"--{name} must be {described(annotation)}, got {shown}") from error


def described(annotation: Any) -> str:
    """A type in words, such as `an integer or null`."""
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return f"one of {', '.join(map(str, parts))}"
    if origin in (Union, UnionType):
        return " or ".join(described(part) for part in sorted(parts, key=lambda part: part is NoneType))
    if origin is tuple:
        return f"a list of {' and '.join(_several(part) for part in parts if part is not Ellipsis)}"
    if origin is not None and issubclass(origin, Mapping):
        return f"a mapping of names to {_several(parts[1])}"
    return {int: "an integer", float: "a number", str: "text", bool: "true or false", NoneType: "null"}.get(
        annotation, "a mapping" if annotation is dict else str(annotation)
    )


def _several(annotation: Any) -> str:
    return {int: "integers", float: "numbers", str: "names"}.get(annotation, described(annotation))


@cache
def _value_parser(annotation: Any) -> ArgumentParser:
    parser = ArgumentParser(exit_on_error=False, add_help=False)
    parser.add_argument("--value", type=annotation)
    return parser


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested values by dotted names."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return found


# -- the tree --------------------------------------------------------------------------------------------------------------


def _config(values: Mapping[str, Any], import_plugins: bool) -> ExperimentConfig:
    _refuse_unknown(values, ("task", "plugins", *SECTIONS), "", "sections")
    plugins = converted(tuple[str, ...], values.get("plugins", ()), "plugins")
    if import_plugins:
        load_plugins(plugins)
    found: dict[str, Any] = {"plugins": plugins, "task": converted(str | None, values.get("task"), "task")}
    for section in SECTIONS:
        given = values.get(section)
        if given is None and section != "text":
            continue
        given = {} if given is None else given
        if not isinstance(given, Mapping):
            raise ConfigError(f"{section} must be a mapping of options, got {given!r}")
        if section in MAPPINGS:
            found[section] = {str(name): _loaded(value) for name, value in given.items()}
        elif section in PLAIN_SECTIONS:
            found[section] = section_from(PLAIN_SECTIONS[section], given, section)
        else:
            found[section] = _component_from(section, values)
    return ExperimentConfig(**found)


def _component_from(section: str, values: Mapping[str, Any]) -> Any:
    """The options of the kind that a section of the tree chooses."""
    kind = _kind(section, values)
    given = {name: value for name, value in (values.get(section) or {}).items() if name != "kind"}
    return section_from(component(section, kind).options, given, section, f"{section} {kind!r}")


def section_from(options: type, given: Mapping[str, Any], prefix: str, owner: str | None = None) -> Any:
    """An options dataclass from plain values, each converted to its field's type.

    Raises:
        ConfigError: a name is not one of its fields (those are listed), or a value has the wrong type.
    """
    hints = get_type_hints(options)
    known = [field.name for field in fields(options)]
    _refuse_unknown(given, known, f"{prefix}.", f"options of {owner}" if owner else "options")
    return options(**{name: _made(hints[name], value, f"{prefix}.{name}") for name, value in given.items()})


def _made(hint: Any, value: Any, where: str) -> Any:
    """A value converted to its field's type; of a mapping of names to dataclasses, each of these from its fields."""
    entry = get_args(hint)[-1] if get_origin(hint) is Mapping else None
    if not isinstance(entry, type) or not is_dataclass(entry):
        return converted(hint, value, where)
    value = _loaded(value)
    if not isinstance(value, Mapping):
        raise ConfigError(f"--{where} must be a mapping of names to fields, got {value!r}")
    for name, part in value.items():
        if not isinstance(part, (Mapping, entry)):
            raise ConfigError(f"--{where}.{name} must be a mapping of fields, got {part!r}")
    return {
        name: section_from(entry, part, f"{where}.{name}") if isinstance(part, Mapping) else part
        for name, part in value.items()
    }


def _kind(section: str, values: Mapping[str, Any]) -> str:
    kind = (values.get(section) or {}).get("kind", COMPONENT_SECTIONS[section])
    if kind is None and section == "text":
        return default_text_of(component("encoder", _kind("encoder", values)).options)
    if not isinstance(kind, str):
        raise ConfigError(f"--{section}.kind must be text, got {kind!r}")
    return kind


def _refuse_unknown(given: Iterable[str], known: Iterable[str], prefix: str, what: str) -> None:
    for name in given:
        if name not in (known := tuple(known)):
            raise ConfigError(f"unknown option --{prefix}{name}; the {what} are: {', '.join(known) or 'none'}")


def _loaded(value: Any) -> Any:
    """Text from the command line as YAML reads it; also 1e-3, which is text to YAML 1.1. Other text stays as it is."""
    if isinstance(value, Mapping):
        return {name: _loaded(item) for name, item in value.items()}
    if not isinstance(value, str):
        return value
    try:
        loaded = yaml.safe_load(value)
        return float(loaded) if isinstance(loaded, str) else loaded
    except (ValueError, yaml.YAMLError):
        return value
