"""YAML, the command line or plain dictionaries -> an experiment, and back.

The kinds of the component sections are determined first; their dataclasses then define which options exist.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, set_parsing_settings

from robopolicy.components import ConfigError, component, load_plugins, options_from, require, values_of
from robopolicy.experiment.config import (
    COMPONENT_SECTIONS,
    DEFAULT_LOSSES,
    DataConfig,
    ExperimentConfig,
    NormalizationConfig,
    OptimizerConfig,
    TrainingConfig,
    default_text_of,
    plain_values,
)
from robopolicy.options import converted, loaded, options_of, read_yaml, refuse_import_paths, refuse_unknown

set_parsing_settings(docstring_parse_attribute_docstrings=True)

PLAIN_SECTIONS: Mapping[str, type] = {
    "data": DataConfig,
    "normalization": NormalizationConfig,
    "optimizer": OptimizerConfig,
    "training": TrainingConfig,
}
"""Sections whose fields do not depend on a kind."""
MAPPINGS = ("augmentation", "losses")
"""Sections that map kinds of augmentations or losses to their options."""
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
    """Dotted path -> value, for the arguments that belong to the config tree; and the other arguments in their order.

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
        require(found, f"{word} needs a value")
        value = found[0] if len(found) == 1 else found
        given[path] = loaded(value) if path in SECTIONS else value
    return given, rest


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


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested values by dotted names."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return found


# -- the tree --------------------------------------------------------------------------------------------------------------


def _config(values: Mapping[str, Any], import_plugins: bool) -> ExperimentConfig:
    refuse_unknown(values, ("task", "plugins", *SECTIONS), "--", "sections")
    plugins = converted(tuple[str, ...], values.get("plugins", ()), "--plugins")
    if import_plugins:
        load_plugins(plugins)
    found: dict[str, Any] = {"plugins": plugins, "task": converted(str | None, values.get("task"), "--task")}
    for section in SECTIONS:
        given = values.get(section)
        if given is None and section != "text":
            continue
        given = {} if given is None else given
        if not isinstance(given, Mapping):
            raise ConfigError(f"{section} must be a mapping of options, got {given!r}")
        if section in MAPPINGS:
            found[section] = {str(name): loaded(value) for name, value in given.items()}
        elif section in PLAIN_SECTIONS:
            found[section] = options_of(PLAIN_SECTIONS[section], given, f"--{section}.")
        else:
            found[section] = _component_from(section, values)
    return ExperimentConfig(**found)


def _component_from(section: str, values: Mapping[str, Any]) -> Any:
    """The options of the kind that a section of the tree chooses."""
    kind = _kind(section, values)
    given = {name: value for name, value in (values.get(section) or {}).items() if name != "kind"}
    return options_from(section, kind, given)


def _kind(section: str, values: Mapping[str, Any]) -> str:
    kind = (values.get(section) or {}).get("kind", COMPONENT_SECTIONS[section])
    if kind is None and section == "text":
        return default_text_of(component("encoder", _kind("encoder", values)).options)
    if not isinstance(kind, str):
        raise ConfigError(f"--{section}.kind must be text, got {kind!r}")
    return kind
