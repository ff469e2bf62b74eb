"""The parts of an environment map, and how they are read from YAML with one line for a mistake."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from robopolicy.control.serving.mapping import KeySource, key_source, place_image
from robopolicy.types import ArraySpec

ALLOWED: dict[str, tuple[str, ...]] = {
    "make": ("id", "factory", "kwargs"),
    "success": ("info", "at_least", "reward", "return", "terminated", "method", "when", "hold_steps", "stop"),
    "seeding": ("reset", "method", "generators", "numpy"),
    "start_states": ("file", "key", "method"),
    "settle": ("steps", "action"),
    "instruction": ("info", "method", "attribute", "observation"),
    "action": ("columns", "scale", "offset", "sign", "clip"),
}
SIGNALS = ("info", "reward", "return", "terminated", "method")


class EnvMapError(ValueError):
    """An environment map can't be read, or does not fit the policy and the environment; one line."""


@dataclass(frozen=True)
class ObsSource:
    """Source in the environment of one key of the policy."""

    paths: tuple[str, ...]
    """One array, or several that are joined end to end; `a/b` in nested dicts, `render` for the environment's `render()`."""
    columns: tuple[int, int] | None = None
    """First and last + 1 of the numbers to take."""
    image: KeySource = field(default_factory=lambda: KeySource(names=()))
    """Layout, flip and fit of an image."""

    def read(self, arrays: Mapping[str, np.ndarray], wanted: ArraySpec) -> np.ndarray:
        """The policy's array of shape `wanted.shape`: float32, or an image of uint8."""
        if wanted.is_image:
            image = arrays[self.paths[0]]
            image = image.transpose(1, 2, 0) if self.image.layout == "chw" else image
            return place_image(image, wanted.shape[0], wanted.shape[1], self.image)
        parts = [np.asarray(arrays[path], np.float32).ravel() for path in self.paths]
        row = np.concatenate(parts) if len(parts) > 1 else parts[0]
        row = row if self.columns is None else row[slice(*self.columns)]
        return row.reshape(wanted.shape)


@dataclass(frozen=True)
class ActionMap:
    """From a policy's action rows, in the demos' units and columns, to the environment's actions."""

    columns: tuple[int, ...] | None = None
    """Columns of the row to take, in the environment's order; None: all."""
    scale: float | Sequence[float] = 1.0
    """Factor of the taken columns."""
    offset: float | Sequence[float] = 0.0
    """Added after scaling."""
    sign: tuple[int, ...] = ()
    """Columns of the environment's action that are replaced by their sign, -1 or 1: a gripper that opens or closes."""
    clip: str | tuple[float, float] | None = None
    """[low, high], or `space`: the environment's own bounds. None: not clipped. What is clipped is counted."""

    def __call__(self, rows: np.ndarray, bounds: tuple[np.ndarray, np.ndarray] | None) -> tuple[np.ndarray, np.ndarray]:
        """Actions (N, width) of the environment for rows (N, row width), and whether each was clipped (N,)."""
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


def checked_fields(values: Any, known: Sequence[str], where: str) -> dict[str, Any]:
    """The fields of an `EnvMap` out of a map's plain values.

    Args:
        values: what the YAML file holds.
        known: names of the fields.
        where: the file, for messages.

    Raises:
        EnvMapError: an unknown key, or a wrong value.
    """
    _known(values, known, where)
    given: dict[str, Any] = {}
    for name, value in values.items():
        place = f"{where}: {name}"
        if name == "observation":
            given[name] = {key: _obs_source(entry, f"{place}: {key}") for key, entry in _mapping(value, place).items()}
        elif name == "action":
            given[name] = _action(_known(value, ALLOWED[name], place), place)
        elif name in ALLOWED and not (name == "instruction" and isinstance(value, str)):
            given[name] = dict(_known(value, ALLOWED[name], place))
        else:
            given[name] = value
    _check_values(given, where)
    return given


def _check_values(given: Mapping[str, Any], where: str) -> None:
    success = given.get("success", {})
    signals = [name for name in SIGNALS if name in success]
    if success and len(signals) != 1:
        raise EnvMapError(
            f"{where}: success names {' and '.join(signals) or 'no signal'}; give one of {', '.join(SIGNALS)}"
        )
    if success.get("when", "any") not in ("any", "end"):
        raise EnvMapError(f"{where}: success: when is {success['when']!r}; expected any or end")
    for name in ("max_episode_steps", "instructions_in_a_row"):
        value = given.get(name, 1)
        if value is not None and (not isinstance(value, int) or value < 1):
            raise EnvMapError(f"{where}: {name} is {value!r}; expected an integer >= 1")
    for name in ("control_dt", "step_timeout_s"):
        seconds = given.get(name, 1.0)
        if seconds is not None and not (isinstance(seconds, (int, float)) and seconds > 0):
            raise EnvMapError(f"{where}: {name} is {seconds!r}; expected seconds > 0")
    starts, settle = given.get("start_states"), given.get("settle")
    if starts and not {"file", "method"} <= starts.keys():
        raise EnvMapError(f"{where}: start_states needs file and method")
    if settle and not {"steps", "action"} <= settle.keys():
        raise EnvMapError(f"{where}: settle needs steps and action")


def _known(values: Any, allowed: Sequence[str], where: str) -> Mapping[str, Any]:
    for key in _mapping(values, where):
        if key not in allowed:
            raise EnvMapError(f"{where}: unknown key {key!r}; expected any of {', '.join(allowed)}")
    return values


def _mapping(values: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(values, Mapping):
        raise EnvMapError(f"{where}: expected keys and values, got {values!r}")
    return values


def _obs_source(entry: Any, where: str) -> ObsSource:
    try:
        source = key_source(entry, where)
    except ValueError as error:
        raise EnvMapError(str(error)) from None
    return ObsSource(source.names, source.columns, source)


def _action(values: Mapping[str, Any], where: str) -> ActionMap:
    given: dict[str, Any] = dict(values)
    for name in ("columns", "sign"):
        if given.get(name) is not None:
            if not _integers(given[name]) or min(given[name], default=0) < 0:
                raise EnvMapError(f"{where}: {name} is {given[name]!r}; expected a list of columns")
            given[name] = tuple(given[name])
    for name in ("scale", "offset"):
        if not _numbers(given.get(name, 1.0)):
            raise EnvMapError(f"{where}: {name} is {given[name]!r}; expected a number, or one per column")
    clip = given.get("clip")
    if clip is not None and clip != "space":
        if not isinstance(clip, list) or len(clip) != 2 or not _numbers(clip) or not clip[0] < clip[1]:
            raise EnvMapError(f"{where}: clip is {clip!r}; expected `space` or [low, high]")
        given["clip"] = (float(clip[0]), float(clip[1]))
    return ActionMap(**given)


def _integers(values: Any) -> bool:
    return isinstance(values, list) and all(isinstance(value, int) for value in values)


def _numbers(value: Any) -> bool:
    values = value if isinstance(value, list) else [value]
    return bool(values) and all(isinstance(each, (int, float)) and not isinstance(each, bool) for each in values)


def demo_kwargs(path: Path) -> dict[str, Any]:
    """`env_kwargs` of the `env_args` in a robomimic demo file."""
    import h5py

    try:
        with h5py.File(path) as file:
            return dict(json.loads(str(file["data"].attrs["env_args"]))["env_kwargs"])
    except (OSError, KeyError, ValueError, TypeError) as error:
        raise EnvMapError(
            f"--env-kwargs {path}: no env_args with env_kwargs in it ({' '.join(str(error).split())})"
        ) from None
