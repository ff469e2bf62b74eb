"""Maps the observation keys of a client to those of the policy.

A mapping is a YAML file, or one of the built-in ones for common robots and simulators (`robopolicy components key_mapping`).

    name: aloha
    instruction: [prompt]                     # the client's keys; the first one present is used
    keys:
      qpos: {from: state}                     # the policy's key: the client's key that holds it
      top: {from: images/cam_high, layout: chw}
      gripper_states: {from: state, columns: [6, 8]}

A key that the mapping doesn't name has the same name at the client and in the policy.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np

from robopolicy.arrays import Float, UInt8
from robopolicy.components import ConfigError, build, component, kinds
from robopolicy.options import options_of, read_yaml, require

Layout = Literal["hwc", "chw"]
Flip = Literal["none", "vertical", "turn"]
Fit = Literal["pad", "stretch"]


@dataclass(frozen=True)
class KeySource:
    """How one key of the policy is read from a client's observation."""

    names: tuple[str, ...]
    """The client's keys; the first one present is used."""
    columns: tuple[int, int] | None = None
    """Columns to take from a wider array, as (first, last + 1); None: all."""
    layout: Layout = "hwc"
    """Axes of the client's image: hwc is (height, width, channels), chw is (channels, height, width)."""
    flip: Flip = "none"
    """vertical: the client's images are flipped top to bottom; turn: they are rotated by 180 degrees."""
    fit: Fit = "pad"
    """For an image of another size. pad: keep the aspect ratio and add black borders, as openpi's client does; stretch."""

    def __post_init__(self) -> None:
        first, end = self.columns or (0, 1)
        require(0 <= first < end, f"columns is {list(self.columns or ())}; expected [first, last + 1]")


@dataclass(frozen=True)
class KeyMapping:
    """The observation keys of one kind of client."""

    name: str = "native"
    instruction: tuple[str, ...] = ("prompt", "instruction")
    """The client's keys for the instruction; the first one present is used."""
    keys: Mapping[str, KeySource] = field(default_factory=dict)
    """Key of the policy -> how to read it from the client's observation."""

    @classmethod
    def read(cls, source: str | Path) -> "KeyMapping":
        """A registered mapping by name, or a YAML file.

        Raises:
            ConfigError: the mapping or file does not exist, or the file has an unknown field or value.
        """
        path = Path(source)
        if path.suffix not in (".yaml", ".yml"):
            return build(component("key_mapping", str(source)).options())
        require(path.is_file(), f"no mapping file {path}; give one, or a name: {', '.join(kinds('key_mapping'))}")
        return read_file(path)


def read_file(path: Path) -> KeyMapping:
    """The mapping in a YAML file.

    Raises:
        ConfigError: it is not YAML, or has an unknown field or value.
    """
    values = read_yaml(path)
    entries = values.get("keys") or {}
    require(isinstance(entries, Mapping), f"{path.name}: keys must be a mapping of the policy's keys, got {entries!r}")
    keys = {key: key_source(entry, f"{path.name}, key '{key}': ") for key, entry in entries.items()}
    try:
        return options_of(KeyMapping, {"name": path.stem, **values, "keys": keys}, "", "a mapping")
    except ConfigError as error:
        raise ConfigError(f"{path.name}: {error}") from None


def key_source(entry: Any, where: str) -> KeySource:
    """One entry of a mapping: the client's key, a list of keys, or a map with `from` and options.

    Raises:
        ConfigError: the entry has another form; the message starts with `where`.
    """
    given = {"from": entry} if isinstance(entry, str | list) else entry
    options = dict(given) if isinstance(given, Mapping) else {}
    names, known = options.pop("from", None), [each.name for each in fields(KeySource)[1:]]
    fits = names and isinstance(names, str | list) and set(options) <= set(known)
    require(fits, f"{where}expected `from: NAME` and any of {', '.join(known)}; got {given!r}")
    try:
        return options_of(KeySource, {"names": names, **options}, "")
    except ConfigError as error:
        raise ConfigError(f"{where}{error}") from None


def place_image(
    image: UInt8[np.ndarray, "height width color"], height: int, width: int, source: KeySource
) -> UInt8[np.ndarray, "new_height new_width color"]:
    """The image upright and in the size that the policy expects."""
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
    image: UInt8[np.ndarray, "height width color"], height: int, width: int
) -> UInt8[np.ndarray, "new_height new_width color"]:
    """Bilinear resizing with antialiasing: when an image shrinks, the filter widens by the same factor, as in Pillow."""
    rows, columns = _weights(image.shape[0], height), _weights(image.shape[1], width)
    shrunk = rows @ image.reshape(image.shape[0], -1).astype(np.float32)
    resized = columns @ shrunk.reshape(height, *image.shape[1:])
    return np.floor(resized.clip(0, 255) + 0.5).astype(np.uint8)


@lru_cache(maxsize=16)
def _weights(source: int, target: int) -> Float[np.ndarray, "target source"]:
    """Triangle-filter weights of the source pixels for each target pixel, along one axis; each row sums to 1."""
    scale = source / target
    centers = (np.arange(target) + 0.5) * scale
    distance = np.abs(np.arange(source) + 0.5 - centers[:, None]) / max(scale, 1.0)
    weights = np.clip(1.0 - distance, 0.0, None)
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
