"""The parts of an environment map, and their parsing from YAML; each mistake is an error message of one line."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from robopolicy.control.serving.mapping import KeySource, key_source, place_image
from robopolicy.types import ArraySpec, one_line

SIGNALS = ("info", "reward", "return", "terminated", "method")
"""Kinds of success signals; a map names one of them."""


class EnvMapError(ValueError):
    """An environment map can't be read, or does not fit the policy or the environment; the message is one line."""


def read_source(source: KeySource, arrays: Mapping[str, np.ndarray], wanted: ArraySpec) -> np.ndarray:
    """The policy's array of shape `wanted.shape` from an environment's arrays: a uint8 image, or float32 values."""
    if wanted.is_image:
        image = arrays[source.names[0]]
        image = image.transpose(1, 2, 0) if source.layout == "chw" else image
        return place_image(image, wanted.shape[0], wanted.shape[1], source)
    parts = [np.asarray(arrays[path], np.float32).ravel() for path in source.names]
    row = np.concatenate(parts) if len(parts) > 1 else parts[0]
    row = row if source.columns is None else row[slice(*source.columns)]
    return row.reshape(wanted.shape)


@dataclass(frozen=True)
class ActionMap:
    """Maps a policy's action rows, in the demos' units and columns, to the environment's actions."""

    columns: tuple[int, ...] | None = None
    """Columns of the row that are used, in the environment's order; None: all."""
    scale: float | Sequence[float] = 1.0
    """Factor of these columns."""
    offset: float | Sequence[float] = 0.0
    """Added after scaling."""
    sign: tuple[int, ...] = ()
    """Columns of the environment's action that are replaced by their sign, -1 or 1: a gripper that opens or closes."""
    clip: str | tuple[float, float] | None = None
    """[low, high], or `space`: the environment's own bounds. None: not clipped. Clipped actions are counted."""

    def __call__(self, rows: np.ndarray, bounds: tuple[np.ndarray, np.ndarray] | None) -> tuple[np.ndarray, np.ndarray]:
        """The environment's actions (N, width) for rows (N, row width), and whether each was clipped (N,)."""
        actions = np.asarray(rows, np.float64)
        actions = actions if self.columns is None else actions[:, list(self.columns)]
        actions = actions * self.scale + self.offset
        if self.sign:
            places = list(self.sign)
            actions[:, places] = np.where(actions[:, places] > 0, 1.0, -1.0)
        if self.clip is None:
            return actions, np.zeros(len(actions), dtype=bool)
        low, high = bounds if isinstance(self.clip, str) and bounds is not None else self.clip
        clipped = np.clip(actions, low, high)
        return clipped, np.any(np.abs(clipped - actions) > 1e-9, axis=-1)


def _is_numbers(value: Any) -> bool:
    values = value if isinstance(value, list) else [value]
    return bool(values) and all(type(each) in (int, float) for each in values)


ANY = ("", lambda value: True)
COUNT = ("an integer >= 1", lambda value: isinstance(value, int) and value >= 1)
TIME = ("seconds > 0", lambda value: isinstance(value, (int, float)) and value > 0)
COLUMNS = (
    "a list of columns",
    lambda value: isinstance(value, list) and all(type(each) is int and each >= 0 for each in value),
)
NUMBERS = ("a number, or one per column", _is_numbers)
RANGE = (
    "`space` or [low, high]",
    lambda value: (
        value == "space" or (isinstance(value, list) and len(value) == 2 and _is_numbers(value) and value[0] < value[1])
    ),
)
SECTIONS: Mapping[str, Mapping[str, tuple[str, Callable[[Any], bool]]]] = {
    "make": dict.fromkeys(("id", "factory", "kwargs"), ANY),
    "success": dict.fromkeys((*SIGNALS, "at_least", "hold_steps", "stop"), ANY)
    | {"when": ("any or end", lambda value: value in ("any", "end"))},
    "seeding": dict.fromkeys(("reset", "method", "generators", "numpy"), ANY),
    "start_states": dict.fromkeys(("file", "key", "method"), ANY),
    "settle": dict.fromkeys(("steps", "action"), ANY),
    "instruction": dict.fromkeys(("info", "method", "attribute", "observation"), ANY),
    "action": {
        "columns": COLUMNS,
        "scale": NUMBERS,
        "offset": NUMBERS,
        "sign": COLUMNS,
        "clip": RANGE,
    },
}
"""Section of a map -> its keys, each with (expected value in words, check)."""
VALUES = {"max_episode_steps": COUNT, "instructions_in_a_row": COUNT, "control_dt": TIME, "step_timeout_s": TIME}
"""Keys outside the sections, each with (expected value in words, check)."""
REQUIRED = {"start_states": ("file", "method"), "settle": ("steps", "action")}
"""Required keys of a section."""


def checked_fields(values: Any, known: Sequence[str], where: str) -> dict[str, Any]:
    """The fields of an `EnvMap` from a map's plain values.

    Args:
        values: what the YAML file holds.
        known: names of the fields.
        where: the file, for messages.

    Raises:
        EnvMapError: an unknown key, or a wrong value.
    """
    given = dict(_checked(values, dict.fromkeys(known, ANY) | VALUES, where))
    for name, keys in SECTIONS.items():
        if name not in given or (name == "instruction" and isinstance(given[name], str)):
            continue
        given[name] = dict(_checked(given[name], keys, f"{where}: {name}"))
        if given[name] and not given[name].keys() >= set(REQUIRED.get(name, ())):
            raise EnvMapError(f"{where}: {name} needs {' and '.join(REQUIRED[name])}")
    signals = [name for name in SIGNALS if name in given.get("success", {})]
    if given.get("success") and len(signals) != 1:
        raise EnvMapError(
            f"{where}: success names {' and '.join(signals) or 'no signal'}; give one of {', '.join(SIGNALS)}"
        )
    if "action" in given:
        kinds = {"columns": int, "sign": int}
        lists = {
            key: tuple(map(kinds.get(key, float), value))
            for key, value in given["action"].items()
            if isinstance(value, list)
        }
        given["action"] = ActionMap(**{**given["action"], **lists})
    if "observation" in given:
        place = f"{where}: observation"
        entries = _mapping(given["observation"], place).items()
        try:
            given["observation"] = {key: key_source(entry, f"{place}: {key}: ") for key, entry in entries}
        except ValueError as error:
            raise EnvMapError(str(error)) from None
    return given


def _checked(values: Any, keys: Mapping[str, tuple[str, Callable[[Any], bool]]], where: str) -> Mapping[str, Any]:
    """The values, after a check of their keys and of each value; None passes."""
    for key, value in _mapping(values, where).items():
        if key not in keys:
            raise EnvMapError(f"{where}: unknown key {key!r}; expected any of {', '.join(keys)}")
        expected, fits = keys[key]
        if value is not None and not fits(value):
            raise EnvMapError(f"{where}: {key} is {value!r}; expected {expected}")
    return values


def _mapping(values: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(values, Mapping):
        raise EnvMapError(f"{where}: expected keys and values, got {values!r}")
    return values


def demo_kwargs(path: Path) -> dict[str, Any]:
    """`env_kwargs` of the `env_args` in a robomimic demo file."""
    import h5py

    try:
        with h5py.File(path) as file:
            return dict(json.loads(str(file["data"].attrs["env_args"]))["env_kwargs"])
    except (OSError, KeyError, ValueError, TypeError) as error:
        raise EnvMapError(f"--env-kwargs {path}: no env_args with env_kwargs in it ({one_line(error)})") from None
