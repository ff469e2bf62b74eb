"""Validates the JSON in demo files before anything is built from it, since a file may be untrusted."""

import json
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias, get_args

from robopolicy.action_spec import ActionKind, ActionSpace
from robopolicy.types import ActionSpec, DemoFormatError, one_line

MAX_DEPTH = 16
"""Maximum nesting depth of JSON that is read."""
MAX_CHARS = 2**24
"""Maximum length of a JSON text that is read [characters]; for a file [bytes]."""
MAX_PATH = 512
"""Maximum length of a path within a data set [characters]."""
MAX_WIDTH = 4096
"""Maximum number of action columns."""

Check: TypeAlias = Callable[[Any], bool]


def json_object(text: Any, where: str) -> dict[str, Any]:
    """Parse a JSON object whose numbers are finite and fit 64 bits, nested at most `MAX_DEPTH` deep.

    Raises:
        DemoFormatError: `text` is not such an object, or too long; the message begins with `where`.
    """
    try:
        if not isinstance(text, str) or len(text) > MAX_CHARS:
            raise ValueError(f"{type(text).__name__} where JSON text is expected")
        found = json.loads(text)
        _require_plain(found, 0)
        if not isinstance(found, dict):
            raise ValueError("expected an object {...}")
    except (ValueError, RecursionError) as error:
        raise DemoFormatError(f"{where}: not valid JSON for this field ({one_line(error)[:200]})") from None
    return found


def env_args_of(text: Any, where: str) -> dict[str, Any]:
    """Parse robomimic's attribute `env_args`, which describes the environment.

    Raises:
        DemoFormatError: it is not a JSON object, or a field has the wrong type.
    """
    found = json_object(text, f"{where}: env_args")
    _require_fields(found, ENV_ARGS, f"{where}: env_args")
    _require_fields(found.get("env_kwargs") or {}, ENV_KWARGS, f"{where}: env_args, env_kwargs")
    return found


def action_spec_from(found: Mapping[str, Any], where: str) -> ActionSpec:
    """The ActionSpec that a JSON object describes.

    Raises:
        DemoFormatError: a field is unknown or has the wrong type, or fields contradict each other.
    """
    if unknown := sorted(set(found) - set(ACTION_SPEC)):
        raise DemoFormatError(f"{where}: unknown field {unknown[0]!r}; it has: {', '.join(ACTION_SPEC)}")
    _require_fields(found, ACTION_SPEC, where)
    try:
        return ActionSpec.from_dict({key: value for key, value in found.items() if value is not None})
    except (ValueError, TypeError, OverflowError) as error:
        raise DemoFormatError(f"{where}: {one_line(error)}") from None


def is_number(value: Any) -> bool:
    """Whether a value is a finite float, or an int that fits 64 bits."""
    return is_integer(value) or (isinstance(value, float) and math.isfinite(value))


def is_integer(value: Any) -> bool:
    """Whether a value is an int that fits 64 bits."""
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63


def list_of(check: Check, length: int | None = None) -> Check:
    """A check whether a value is a list whose entries pass `check`, and which has the length `length`, if given."""
    return lambda value: isinstance(value, list) and (length is None or len(value) == length) and all(map(check, value))


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _are_objects(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(item, dict) and "dtype" in item for item in value.values())


def _is_column(value: Any) -> bool:
    return is_integer(value) and 0 <= value < MAX_WIDTH


def _are_columns(value: Any) -> bool:
    return _is_column(value) or list_of(_is_column)(value)


def _are_constants(value: Any) -> bool:
    return isinstance(value, dict) and all(
        key.isdecimal() and _is_column(int(key[:9])) and is_number(constant) for key, constant in value.items()
    )


def _are_arms(value: Any) -> bool:
    return isinstance(value, dict) and all(map(list_of(_is_column), value.values()))


def json_file(path: Path) -> dict[str, Any]:
    """Parse the JSON object in a file, with the limits of `json_object`.

    Raises:
        DemoFormatError: the file can't be read, or does not hold such an object.
    """
    return json_object(text_of(path), path.name)


def text_of(path: Path) -> str:
    """The text of a file of at most `MAX_CHARS` bytes.

    Raises:
        DemoFormatError: the file is missing, not a regular file, too large, unreadable, or not UTF-8.
    """
    try:
        if not path.is_file() or path.stat().st_size > MAX_CHARS:
            raise OSError(f"missing, or not a file of at most {MAX_CHARS} bytes")
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise DemoFormatError(f"{path.name}: can't be read ({error})") from None


def lerobot_info(path: Path) -> dict[str, Any]:
    """Read LeRobot's `meta/info.json`.

    Raises:
        DemoFormatError: the file can't be read, or a field is missing or has the wrong type.
    """
    found, where = json_file(path), "meta/info.json"
    if missing := [name for name in ("codebase_version", "fps", "features") if name not in found]:
        raise DemoFormatError(f"{where}: no {missing[0]}; expected a LeRobot data set")
    _require_fields(found, LEROBOT_INFO, where)
    for name, feature in found["features"].items():
        _require_fields(feature, LEROBOT_FEATURE, f"{where}: feature {name}")
    return found


def filled(template: str, values: Mapping[str, str | int], where: str) -> str:
    """Fill in a template of LeRobot's paths, such as `data/chunk-{chunk_index:03d}/file.parquet`.

    `str.format` is not used, since an untrusted template could read attributes and produce strings of any length. Here a field
    is only a name and, optionally, a width of at most two digits.

    Raises:
        DemoFormatError: a field is unknown or malformed, or the path is too long or has unmatched braces.
    """

    def put(field: re.Match[str]) -> str:
        if field["name"] not in values:
            raise DemoFormatError(f"{where}: unknown field {field['name']!r}; there are {', '.join(values)}")
        return str(values[field["name"]]).rjust(int(field["width"] or 0), "0")

    text = re.sub(r"\{(?P<name>[a-z_]+)(?::0(?P<width>\d{1,2})d)?\}", put, template)
    if "{" in text or "}" in text or "\0" in text or len(text) > MAX_PATH:
        raise DemoFormatError(
            f"{where}: {template[:80]!r} is not a template of at most {MAX_PATH} characters; "
            "expected fields such as {episode_index:06d}"
        )
    return text


ENV_ARGS: dict[str, tuple[str, Check]] = {
    "env_name": ("text", _is_text),
    "env_version": ("text", lambda value: isinstance(value, str) or is_number(value)),
    "env_kwargs": ("an object", lambda value: isinstance(value, dict)),
    "privileged": ("a list of keys", list_of(_is_text)),
    "objects": ("an object of lists of keys", lambda value: isinstance(value, dict)),
}
ENV_KWARGS: dict[str, tuple[str, Check]] = {
    "task": ("text", _is_text),
    "cameras": ("a list of names", list_of(_is_text)),
    "image_size": ("a whole number 1 .. 8192", lambda value: is_integer(value) and 1 <= value <= 8192),
}
LEROBOT_INFO: dict[str, tuple[str, Check]] = {
    "codebase_version": ("text", _is_text),
    "fps": ("a number in (0, 1e6]", lambda value: is_number(value) and 0 < value <= 1e6),
    "features": ("an object of objects", _are_objects),
    "data_path": ("text", _is_text),
    "video_path": ("text", _is_text),
    "robot_type": ("text", _is_text),
    "chunks_size": ("a whole number of at least 1", lambda value: is_integer(value) and value >= 1),
    "splits": ("an object of texts", lambda value: isinstance(value, dict) and all(map(_is_text, value.values()))),
}
LEROBOT_FEATURE: dict[str, tuple[str, Check]] = {
    "dtype": ("text", _is_text),
    "shape": ("a list of whole numbers", list_of(lambda value: is_integer(value) and 0 < value <= 2**16)),
}
ACTION_SPEC: dict[str, tuple[str, Check]] = {
    "arm": (f"columns below {MAX_WIDTH}", _are_columns),
    "gripper": (f"columns below {MAX_WIDTH}", _are_columns),
    "constant": ("an object of column -> number", _are_constants),
    "gripper_values": ("a list of pairs of numbers", list_of(list_of(is_number, 2))),
    "continuous_gripper": ("a list of columns", list_of(_is_column)),
    "continuous_gripper_values": ("a list of pairs of numbers", list_of(list_of(is_number, 2))),
    "base": ("a list of columns", list_of(_is_column)),
    "arms": ("an object of columns by arm", _are_arms),
    "kind": (" or ".join(get_args(ActionKind)), lambda value: value in get_args(ActionKind)),
    "space": (" or ".join(get_args(ActionSpace)), lambda value: value in get_args(ActionSpace)),
    "units": ("a list of words", list_of(_is_text)),
    "rate_hz": ("a number in (0, 1e6]", lambda value: is_number(value) and 0 < value <= 1e6),
}


def _require_fields(found: Mapping[str, Any], fields: Mapping[str, tuple[str, Check]], where: str) -> None:
    for name, (expected, check) in fields.items():
        value = found.get(name)
        if value is not None and not check(value):
            raise DemoFormatError(f"{where}: {name} is {str(value)[:40]!r}; expected {expected}")


def _require_plain(value: Any, depth: int) -> None:
    if depth > MAX_DEPTH:
        raise ValueError(f"nested more than {MAX_DEPTH} deep")
    if isinstance(value, (int, float)) and not isinstance(value, bool) and not is_number(value):
        raise ValueError("a number is not finite, or beyond 64 bits")
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _require_plain(item, depth + 1)
