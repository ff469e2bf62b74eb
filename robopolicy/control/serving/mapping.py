"""From a client's observation names to the policy's: YAML, with kinds for robots and simulators in use (`key_mapping`).

    name: aloha
    instruction: [prompt]                     # the client's key; the first one present is used
    keys:
      qpos: {from: state}                     # the policy's key: where the client has it
      top: {from: images/cam_high, layout: chw}
      gripper_states: {from: state, columns: [6, 8]}

A policy's key that the mapping doesn't name is taken under its own name.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import yaml
from jaxtyping import Float, UInt8

from robopolicy.components import build, component, kinds

Layout = Literal["hwc", "chw"]
Flip = Literal["none", "vertical", "turn"]
Fit = Literal["pad", "stretch"]


@dataclass(frozen=True)
class KeySource:
    """Where one of the policy's keys is found in a client's observation."""

    names: tuple[str, ...]
    """The client's names; the first one present is used."""
    columns: tuple[int, int] | None = None
    """Columns to take from a wider array: first, and last + 1."""
    layout: Layout = "hwc"
    """Order of an image's axes: height, width, colour, or colour first."""
    flip: Flip = "none"
    """vertical: the client's images are upside down; turn: they are rotated by 180 degrees."""
    fit: Fit = "pad"
    """Images of another shape: keep the aspect and pad with black, as openpi's client does, or stretch."""


@dataclass(frozen=True)
class KeyMapping:
    """The names one kind of client uses."""

    name: str = "native"
    instruction: tuple[str, ...] = ("prompt", "instruction")
    """The client's names of the instruction; the first one present is used."""
    keys: Mapping[str, KeySource] = field(default_factory=dict)
    """Key of the policy -> where the client has it."""

    @classmethod
    def read(cls, source: str | Path) -> "KeyMapping":
        """A registered mapping by name, or a YAML file.

        Raises:
            ValueError: there is no such mapping or file, or it holds something unknown.
        """
        path = Path(source)
        if path.suffix not in (".yaml", ".yml"):
            return build(component("key_mapping", str(source)).options())
        if not path.is_file():
            raise ValueError(f"no mapping file {path}; give one, or a name: {', '.join(kinds('key_mapping'))}")
        return read_file(path)


def read_file(path: Path) -> KeyMapping:
    """The mapping in a YAML file.

    Raises:
        ValueError: it is not YAML, or holds something unknown.
    """
    try:
        values = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not YAML ({' '.join(str(error).split())})") from None
    return _parsed(values, path.name)


def place_image(
    image: UInt8[np.ndarray, "height width colour"], height: int, width: int, source: KeySource
) -> UInt8[np.ndarray, "new_height new_width colour"]:
    """The image right way up and in the policy's size."""
    if source.flip != "none":
        image = image[::-1] if source.flip == "vertical" else image[::-1, ::-1]
    if image.shape[:2] == (height, width):
        return np.ascontiguousarray(image)
    if source.fit == "stretch":
        return resize(image, height, width)
    shrink = max(image.shape[0] / height, image.shape[1] / width)
    inner = resize(image, max(1, int(image.shape[0] / shrink)), max(1, int(image.shape[1] / shrink)))
    placed = np.zeros((height, width, image.shape[2]), np.uint8)
    top, left = (height - inner.shape[0]) // 2, (width - inner.shape[1]) // 2
    placed[top : top + inner.shape[0], left : left + inner.shape[1]] = inner
    return placed


def resize(
    image: UInt8[np.ndarray, "height width colour"], height: int, width: int
) -> UInt8[np.ndarray, "new_height new_width colour"]:
    """Bilinear, with the filter widened to the area of a new pixel where the image shrinks, as Pillow does it."""
    rows, columns = _weights(image.shape[0], height), _weights(image.shape[1], width)
    shrunk = rows @ image.reshape(image.shape[0], -1).astype(np.float32)
    resized = columns @ shrunk.reshape(height, *image.shape[1:])
    return np.floor(resized.clip(0, 255) + 0.5).astype(np.uint8)


@lru_cache(maxsize=16)
def _weights(source: int, target: int) -> Float[np.ndarray, "target source"]:
    scale = source / target
    centres = (np.arange(target) + 0.5) * scale
    distance = np.abs(np.arange(source) + 0.5 - centres[:, None]) / max(scale, 1.0)
    weights = np.clip(1.0 - distance, 0.0, None)
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)


def _parsed(values: Any, file: str) -> KeyMapping:
    if not isinstance(values, dict) or not set(values) <= {"name", "instruction", "keys"}:
        raise ValueError(f"{file}: expected a map of name, instruction and keys")
    entries = values.get("keys") or {}
    if not isinstance(entries, dict):
        raise ValueError(f"{file}: keys must be a map of the policy's keys, got {entries!r}")
    keys = {key: key_source(entry, f"{file}, key '{key}'") for key, entry in entries.items()}
    instruction = _names(values.get("instruction", list(KeyMapping.instruction)), f"{file}, instruction")
    return KeyMapping(str(values.get("name", Path(file).stem)), instruction, keys)


CHOICES = {"layout": get_args(Layout), "flip": get_args(Flip), "fit": get_args(Fit)}
"""Options of an image, and their values."""


def key_source(entry: Any, where: str) -> KeySource:
    """One entry of a mapping: the client's name, a list of names, or a map of `from` and options.

    Raises:
        ValueError: the entry has another form; the message starts with `where`.
    """
    given = {"from": entry} if isinstance(entry, str | list) else entry
    if not isinstance(given, dict) or "from" not in given or not set(given) <= {"from", "columns", *CHOICES}:
        raise ValueError(f"{where}: expected `from: NAME` and any of columns, layout, flip, fit; got {given!r}")
    options: dict[str, Any] = dict(given)
    names, columns = _names(options.pop("from"), where), options.pop("columns", None)
    for option, value in options.items():
        if str(value) not in CHOICES[option]:
            raise ValueError(f"{where}: {option} is {value!r}; expected one of {', '.join(CHOICES[option])}")
    if columns is not None:
        pair = isinstance(columns, list) and len(columns) == 2 and all(type(column) is int for column in columns)
        if not pair or not 0 <= columns[0] < columns[1]:
            raise ValueError(f"{where}: columns is {columns}; expected [first, last + 1]")
        columns = (columns[0], columns[1])
    return KeySource(names, columns, **options)


def _names(value: Any, where: str) -> tuple[str, ...]:
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{where}: expected a name or a list of names of the client's keys")
    return tuple(names)
