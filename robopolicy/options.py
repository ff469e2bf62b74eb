"""Options as frozen dataclasses: ranges are declared with the fields; values are read from YAML and the command line.

Everything that people configure goes through here: experiments, components, robots, profiles, mappings. A value that
already fits its field's type is taken as it is; text, as the command line gives it, is converted by jsonargparse. An unknown
name is refused, and those that exist are listed.

Without jsonargparse and PyYAML, as on a robot computer with the exported runtime, JSON files and plain values still work.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import MISSING, field, fields, is_dataclass
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Union, get_args, get_origin, get_type_hints

from robopolicy.types import PrintableError, one_line

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser


class ConfigError(PrintableError, ValueError):
    """A configuration that can't be used; the message is one line that names the option as on the command line."""


def require(holds: object, message: str) -> None:
    """Raise ConfigError with this message unless `holds` is true."""
    if not holds:
        raise ConfigError(message)


# -- ranges ----------------------------------------------------------------------------------------------------------------

RANGES: dict[str, Callable[[float], bool]] = {
    ">= 1": lambda number: number >= 1,
    ">= 0": lambda number: number >= 0,
    "> 0": lambda number: number > 0,
    "> 0 and <= 1": lambda number: 0 < number <= 1,
    "0 .. 1": lambda number: 0 <= number <= 1,
    ">= 0 and < 1": lambda number: 0 <= number < 1,
    "0 .. 4294967295": lambda number: 0 <= number < 2**32,
}
"""The ranges that `option` accepts, with the check of each."""


def option(default: Any, expected: str) -> Any:
    """A field of an `Options` dataclass whose numbers, or whose entries' numbers, must be in the range `expected`.

    Args:
        default: the default value; None passes the check.
        expected: one of `RANGES`.
    """
    return field(default=default, metadata={"expected": expected})


class Options:
    """Base of dataclasses of options: checks the fields that were declared with `option`.

    A subclass that checks more in its `__post_init__` calls `super().__post_init__()` there.
    """

    section: ClassVar[str] = ""
    """Its place on the command line, such as `ppo`; set by `register` for options of a component; empty: top level."""

    def __post_init__(self) -> None:
        for owner in type(self).__mro__:  # also fields whose default a subclass changes
            for name, each in getattr(owner, "__dataclass_fields__", {}).items():
                if "expected" in each.metadata:
                    self._check(name, each.metadata["expected"])

    def _check(self, name: str, expected: str) -> None:
        """Refuse a number, or an entry of a list, that is not in the range `expected`; None passes."""
        value = getattr(self, name)
        numbers = value if isinstance(value, tuple) else (value,)
        shown = list(value) if isinstance(value, tuple) else value
        holds = all(number is None or RANGES[expected](number) for number in numbers)
        flag = f"{self.section}.{name}" if self.section else name.replace("_", "-")
        require(holds, f"--{flag} must be {expected}, got {shown}")


# -- from plain values -----------------------------------------------------------------------------------------------------


def read_yaml(path: str | Path, aliases: bool = True) -> dict[str, Any]:
    """The mapping in a YAML file, or in a JSON file (`.json`).

    Args:
        path: the file.
        aliases: whether YAML aliases are allowed; ten lines of them in an untrusted file can expand to 10^10 values.

    Raises:
        ConfigError: the file is missing, not text, not YAML, or does not hold a mapping.
    """
    path = Path(path)
    require(path.is_file(), f"{path}: {'a folder, not a' if path.is_dir() else 'no such'} file")
    is_json = path.suffix == ".json"
    try:
        text = path.read_text(encoding="utf-8")
        values = json.loads(text) if is_json else _from_yaml(text, path, aliases)
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ConfigError(f"{path}: not {'JSON' if is_json else 'YAML'} ({one_line(error)})") from error
    except RecursionError as error:
        raise ConfigError(f"{path}: nested too deeply") from error
    if not isinstance(values, dict):
        found = "the file is empty" if values is None else f"it holds a {type(values).__name__}"
        raise ConfigError(f"{path}: {found}; expected a mapping of names to values")
    refuse_import_paths(values, str(path))
    return values


def _from_yaml(text: str, path: Path, aliases: bool) -> Any:
    try:
        import yaml
    except ImportError:
        raise ConfigError(
            f"{path}: needs PyYAML, which isn't installed; pip install pyyaml, or give a .json file"
        ) from None
    try:
        if not aliases and any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text)):
            raise ConfigError(f"{path}: holds a YAML alias (*name), which robopolicy never writes; refused")
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not YAML ({one_line(error)})") from error


def options_of(kind: type, given: Mapping[str, Any], where: str, owner: str | None = None) -> Any:
    """A dataclass from plain values, each converted to its field's type.

    Args:
        kind: the dataclass.
        given: field -> value, as YAML or the command line give it.
        where: prefix of a field's name in messages, such as `--memory.`.
        owner: the component that has these options, for messages.

    Raises:
        ConfigError: a name is not one of its fields (those are listed), or a value has the wrong type.
    """
    hints, every = get_type_hints(kind), fields(kind)
    refuse_unknown(given, [each.name for each in every], where, f"options of {owner}" if owner else "options")
    for each in every:
        needed = each.default is MISSING and each.default_factory is MISSING
        require(each.name in given or not needed, f"{where}{each.name} is missing; give it")
    return kind(**{name: _made(hints[name], value, f"{where}{name}") for name, value in given.items()})


def _made(hint: Any, value: Any, where: str) -> Any:
    """A value converted to its field's type; where that is a dataclass, a list or a mapping of them, each from its fields."""
    parts, holder = (hint, *get_args(hint)), get_origin(hint)
    entry = next((part for part in parts if isinstance(part, type) and is_dataclass(part)), None)
    if entry is None or value is None:
        return converted(hint, value, where)
    value = value if isinstance(value, entry) else loaded(value)
    if holder is Mapping:
        require(isinstance(value, Mapping), f"{where} must be a mapping of names to fields, got {value!r}")
        return {name: _made(entry, part, f"{where}.{name}") for name, part in value.items()}
    if holder is tuple:
        require(isinstance(value, list | tuple), f"{where} must be a list of mappings of fields, got {value!r}")
        return tuple(_made(entry, part, f"{where}[{place}]") for place, part in enumerate(value))
    require(isinstance(value, Mapping | entry), f"{where} must be a mapping of fields, got {value!r}")
    return options_of(entry, value, f"{where}.") if isinstance(value, Mapping) else value


def converted(annotation: Any, value: Any, name: str) -> Any:
    """A value in the type of its field; text, as the command line gives it, is read as YAML where the type asks for it.

    Raises:
        ConfigError: the value doesn't fit the type; the message begins with `name`.
    """
    with suppress(ValueError, OverflowError):
        return _fitting(annotation, value)
    members = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
    is_list = any(get_origin(each) is tuple for each in members)
    words = [word for each in members if get_origin(each) is Literal for word in get_args(each)]
    if isinstance(value, str) and is_list and not value.startswith("[") and value not in ("null", *words):
        value = [value]
    try:
        if isinstance(value, str):
            return _value_parser(annotation).parse_args([f"--value={value}"]).value
        return _value_parser(annotation).parse_object({"value": json.loads(json.dumps(value))}).value
    except Exception as error:
        shown = json.dumps(value) if isinstance(value, list | dict) else value
        raise ConfigError(f"{name} must be {described(annotation)}, got {shown}") from error


def _fitting(annotation: Any, value: Any) -> Any:
    """A value, as JSON holds it, that fits the type as it is; lists become tuples. ValueError if text has to be converted."""
    kind, parts = get_origin(annotation), get_args(annotation)
    if kind in (Union, UnionType) and not isinstance(value, str):
        for part in parts:
            with suppress(ValueError):
                return _fitting(part, value)
    if kind is tuple and isinstance(value, list | tuple):
        entries = parts[:1] * len(value) if parts[1:] == (...,) else parts
        return tuple(_fitting(*pair) for pair in zip(entries, value, strict=True))
    if annotation is float and type(value) in (int, float):
        return float(value)
    if kind is Literal and value in parts and type(value) is str:
        return value
    if annotation in (int, bool, str, NoneType) and type(value) is annotation:
        return value
    raise ValueError


def described(annotation: Any) -> str:
    """A type in words, such as `an integer or null`."""
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return f"one of {', '.join(map(str, parts))}"
    if origin in (Union, UnionType):
        return " or ".join(described(part) for part in sorted(parts, key=lambda part: part is NoneType))
    if origin is tuple:
        return f"a list of {'' if Ellipsis in parts else f'{len(parts)} '}{_several(parts[0])}"
    if origin is not None and issubclass(origin, Mapping):
        return f"a mapping of names to {_several(parts[1])}"
    return {int: "an integer", float: "a number", str: "text", bool: "true or false", NoneType: "null"}.get(
        annotation, "a mapping" if annotation is dict else str(annotation)
    )


def _several(annotation: Any) -> str:
    return {int: "integers", float: "numbers", str: "names", Any: "values"}.get(annotation, described(annotation))


@cache
def _value_parser(annotation: Any) -> "ArgumentParser":
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(exit_on_error=False, add_help=False)
    parser.add_argument("--value", type=annotation)
    return parser


def refuse_unknown(given: Iterable[str], known: Iterable[str], where: str, what: str) -> None:
    """Refuse a name that is not among `known`, which the message lists as `what`."""
    known = tuple(known)
    for name in given:
        require(name in known, f"unknown option {where}{name}; the {what} are: {', '.join(known) or 'none'}")


def loaded(value: Any) -> Any:
    """Text from the command line as YAML reads it; also 1e-3, which is text to YAML 1.1. Other text stays as it is."""
    if isinstance(value, Mapping):
        return {name: loaded(item) for name, item in value.items()}
    if not isinstance(value, str):
        return value
    import yaml

    try:
        found = yaml.safe_load(value)
        return float(found) if isinstance(found, str) else found
    except (ValueError, yaml.YAMLError):
        return value


def refuse_import_paths(values: Any, source: str) -> None:
    """Refuse values by which a parser of class arguments would import code: `class_path` anywhere, at any depth.

    jsonargparse imports what such a key names, whatever the type of the field. No config, profile or run folder of ours
    holds one, so a file that does is meant to run code.

    Raises:
        ConfigError: there is such a key.
    """
    waiting = [values]
    while waiting:
        value = waiting.pop()
        if isinstance(value, Mapping):
            if found := {"class_path", "init_args", "dict_kwargs"} & set(map(str, value)):
                raise ConfigError(f"{source}: key {min(found)!r} asks for an import; files hold values only, remove it")
            waiting += value.values()
        elif isinstance(value, (list, tuple)):
            waiting += value
