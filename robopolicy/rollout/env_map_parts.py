"""The parts of an environment map, and the checks of their keys; each mistake is an error message of one line."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from robopolicy.control.serving.mapping import KeySource, place_image
from robopolicy.options import refuse_unknown, require
from robopolicy.types import ArraySpec, one_line

SIGNALS = ("info", "reward", "return", "terminated", "method")
"""Kinds of success signals; a map names one of them."""


class EnvMapError(ValueError):
    """An environment map can't be read, or does not fit the policy or the environment; the message is one line."""


def read_source(source: KeySource, arrays: Mapping[str, np.ndarray], expected: ArraySpec) -> np.ndarray:
    """The policy's array of shape `expected.shape` from an environment's arrays: a uint8 image, or float32 values."""
    if expected.is_image:
        image = arrays[source.names[0]]
        image = image.transpose(1, 2, 0) if source.layout == "chw" else image
        return place_image(image, expected.shape[0], expected.shape[1], source)
    parts = [np.asarray(arrays[path], np.float32).ravel() for path in source.names]
    row = np.concatenate(parts) if len(parts) > 1 else parts[0]
    row = row if source.columns is None else row[slice(*source.columns)]
    return row.reshape(expected.shape)


@dataclass(frozen=True)
class ActionMap:
    """Maps a policy's action rows, in the demos' units and columns, to the environment's actions."""

    columns: tuple[int, ...] | None = None
    """Columns of the row that are used, in the environment's order; None: all."""
    scale: float | tuple[float, ...] = 1.0
    """Factor by which these columns are multiplied: one for all, or one for each."""
    offset: float | tuple[float, ...] = 0.0
    """Added after scaling."""
    sign: tuple[int, ...] = ()
    """Columns of the environment's action replaced by 1 if positive, otherwise by -1: a gripper that opens or closes."""
    clip: Literal["space"] | tuple[float, float] | None = None
    """[low, high], or `space`: the environment's own bounds. None: not clipped. Clipped actions are counted."""

    def __post_init__(self) -> None:
        for name in ("columns", "sign"):
            columns = list(getattr(self, name) or ())
            require(min(columns, default=0) >= 0, f"action: {name} is {columns}; columns are counted from 0")
        rising = not isinstance(self.clip, tuple) or self.clip[0] < self.clip[1]
        require(rising, f"action: clip is {self.clip}; expected `space` or [low, high]")

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


SECTIONS: Mapping[str, tuple[str, ...]] = {
    "make": ("id", "factory", "kwargs"),
    "success": (*SIGNALS, "at_least", "hold_steps", "stop", "when"),
    "seeding": ("reset", "method", "generators", "numpy"),
    "start_states": ("file", "key", "method"),
    "settle": ("steps", "action"),
    "instruction": ("info", "method", "attribute", "observation"),
}
"""Section of a map -> its keys."""
REQUIRED = {"start_states": ("file", "method"), "settle": ("steps", "action")}
"""Required keys of a section."""


def check_section(name: str, given: Mapping[str, Any]) -> None:
    """Refuse an unknown key, or a required one that is missing, in a section of a map.

    Raises:
        ConfigError: in one line that lists the section's keys.
    """
    refuse_unknown(given, SECTIONS[name], f"{name}: ", "keys")
    needed = REQUIRED.get(name, ()) if given else ()
    require({*needed} <= given.keys(), f"{name} needs {' and '.join(needed)}")
    if name == "success" and given:
        signals = [signal for signal in SIGNALS if signal in given]
        found, when = " and ".join(signals) or "no signal", given.get("when", "any")
        require(len(signals) == 1, f"success names {found}; give one of {', '.join(SIGNALS)}")
        require(when in ("any", "end"), f"success: when is {when!r}; expected any or end")


def demo_kwargs(path: Path) -> dict[str, Any]:
    """`env_kwargs` of the `env_args` in a robomimic demo file."""
    import h5py

    try:
        with h5py.File(path) as file:
            return dict(json.loads(str(file["data"].attrs["env_args"]))["env_kwargs"])
    except (OSError, KeyError, ValueError, TypeError) as error:
        raise EnvMapError(f"--env-kwargs {path}: no env_args with env_kwargs in it ({one_line(error)})") from None
