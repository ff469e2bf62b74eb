"""Minari datasets: `data/main_data.hdf5` with a group `episode_<i>` each (minari.farama.org, Dataset Standards).

`observations` is an array or nested groups of arrays, with T + 1 rows; `actions`, `rewards`, `terminations` and `truncations`
have T rows. The text observation `mission` (MiniGrid, BabyAI) is read as the instruction; other text observations are left
out. `robopolicy.demos.formats._minari_writer` adds the file `data/robopolicy.json`, which Minari ignores, with what the layout
can't hold. `_minari_arrow` reads data sets stored as Arrow or Parquet.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from robopolicy.components import register, require
from robopolicy.demos.formats._minari_arrow import ArrowReader, arrow_folder
from robopolicy.demos.formats._minari_writer import KEPT, MISSION, SIDECAR, write_minari
from robopolicy.demos.formats._video import decode_image
from robopolicy.demos.formats.base import DemoReader, WritableFormat, requested_keys, require_demo
from robopolicy.demos.guarded import attributes_of, damage_named, dataset_in, group_in
from robopolicy.demos.hdf5 import read_rows
from robopolicy.demos.images import as_image
from robopolicy.demos.packing import by_number
from robopolicy.demos.probe import open_hdf5
from robopolicy.demos.schema import MAX_CHARS, action_spec_from, json_file, json_object, list_of
from robopolicy.types import Demo, DemoFormatError

EPISODE = re.compile(r"episode_(\d+)")
DATASET_ID = re.compile(r"([-_\w]+/)*[-_\w]+-v\d+")
DESCRIBED = (
    "observation_space",
    "action_space",
    "total_steps",
    "total_episodes",
    "dataset_size",
    "data_format",
    "jpeg_encoding",
)
"""Attributes, and entries of `metadata.json`, that describe the files rather than the demos."""
STEP_NUMBERS = ("rewards", "terminations", "truncations")
"""Datasets of an episode with one number per step."""
READ = {"observations", "actions", *STEP_NUMBERS}
"""Names in an episode's group that are read; any others are reported in the reader's `notes`."""


@dataclass(frozen=True)
class MinariOptions:
    """Options for writing data sets."""

    dataset_id: str = "robopolicy/demos-v0"
    """Minari's ID of the data set, `(namespace/)name-v0`."""

    def __post_init__(self) -> None:
        known = bool(DATASET_ID.fullmatch(self.dataset_id))
        require(known, f"demo_format 'minari': dataset_id must be (namespace/)name-v<number>, got {self.dataset_id}")


@register("demo_format", "minari", MinariOptions)
class MinariFormat(WritableFormat):
    """Minari datasets, by their folder or their `main_data.hdf5`."""

    def matches(self, path: Path) -> bool:
        """A folder with `main_data.hdf5` or with Arrow episodes, or an HDF5 file with `episode_<i>/observations`."""
        if path.is_dir():
            return _main_file(path) is not None or arrow_folder(path) is not None
        with open_hdf5(path) as file:
            first = next((key for key in sorted(file) if EPISODE.fullmatch(key)), None)
            return first is not None and "observations" in group_in(file, first, path.name)

    def open(self, path: Path) -> DemoReader:
        """A reader of the data set."""
        if path.is_dir() and _main_file(path) is None and (folder := arrow_folder(path)) is not None:
            reader = ArrowReader(path, folder)
            reader.attributes = _described(reader.attributes, path.name)
            return reader
        return MinariReader(path)

    def write(self, source: DemoReader, target: Path, names: Sequence[str]) -> list[str]:
        """Write these demos as episodes 0, 1, ..."""
        return write_minari(source, target, names, self.options.dataset_id)


class MinariReader(DemoReader):
    """Reads a Minari data set in HDF5; the last of an episode's T + 1 observations, which no action follows, is left out."""

    format_name = "minari"

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        main = (_main_file(path) if path.is_dir() else None) or path
        self._where = main.name if path == main else f"{path.name}/{main.name}"
        self._file = open_hdf5(main)
        episodes = sorted(int(match.group(1)) for key in sorted(self._file) if (match := EPISODE.fullmatch(key)))
        self._take_own(main.with_name(SIDECAR), episodes)
        self.names = tuple(self._episodes)
        about = attributes_of(self._file, self._where) | _metadata(main.with_name("metadata.json"))
        self.attributes = _described(about, self._where)
        self.attributes |= {key: self._own[key] for key in KEPT if key in self._own}
        self.notes = ("the last observation of each episode, on which no action was taken, is left out",)
        if episodes:
            first = group_in(self._file, f"episode_{episodes[0]}", self._where)
            if unread := sorted(set(first) - READ):
                self.notes += (f"of each episode, {', '.join(unread)} is not read",)
            texts = [key for key, data in _observations(first, self._where).items() if data.dtype.kind == "O"]
            if left_out := [key for key in texts if key != MISSION]:
                self.notes += (f"text observations are left out: {', '.join(left_out)}",)
            if MISSION in texts:
                self.notes += (f"the text {MISSION} at an episode's first step is taken as its instruction",)

    def _take_own(self, sidecar: Path, episodes: Sequence[int]) -> None:
        """Read the demo names, action spec and filter keys that `_minari_writer` stored in its sidecar file, if any."""
        self._own = own = json_file(sidecar) if sidecar.is_file() else {}
        where = f"{self.path.name}: {SIDECAR}"
        names = own.get("names", [f"demo_{number}" for number in episodes])
        masks, texts = own.get("filter_keys", {}), list_of(lambda value: isinstance(value, str))
        fits = texts(names) and len(set(names)) == len(names) == len(episodes)
        if not fits or not isinstance(masks, dict) or not all(map(texts, masks.values())):
            raise DemoFormatError(f"{where}: names or filter_keys do not fit the {len(episodes)} episodes")
        self._episodes = {by_number([name], where)[0]: number for name, number in zip(names, episodes, strict=True)}
        if unknown := sorted({name for members in masks.values() for name in members} - set(names)):
            raise DemoFormatError(f"{where}: filter_keys name {unknown[0]}, which the data set does not hold")
        self.filter_keys = masks
        if isinstance(spec := own.get("action_spec"), dict):
            self.action_spec = action_spec_from(spec, where)

    def read(self, name: str, keys: Sequence[str] | None = None) -> Demo:
        """Read one episode, or only its observation `keys`; nested keys are joined by `_`."""
        require_demo(self, name)
        where = f"{self._where}, {name}"
        episode = group_in(self._file, f"episode_{self._episodes[name]}", where)
        with damage_named(where):
            actions = read_rows(dataset_in(episode, "actions", where), f"{where}: actions")
            if actions.ndim != 2:
                raise DemoFormatError(
                    f"{where}: actions have shape {actions.shape}; expected (steps, width); discrete actions are not supported"
                )
            steps = len(actions)
            rewards, *ends = (self._step_numbers(episode, key, steps, where) for key in STEP_NUMBERS)
            found = _observations(episode, where)
            for key, dataset in found.items():
                if len(dataset) != steps + 1:
                    raise DemoFormatError(
                        f"{where}: {steps} actions but {len(dataset)} rows in observations/{key}; expected {steps + 1}"
                    )
            texts = {key: found.pop(key) for key in list(found) if found[key].dtype.kind == "O"}
            instruction = str(texts[MISSION].asstr()[0]) or None if MISSION in texts else None
            requested = requested_keys(found, keys, where)
            obs = {key: as_image(_values(found[key], steps, f"{where}: {key}")) for key in requested}
            attributes = attributes_of(episode, where)
        ends = [each for each in ends if each is not None]
        seed = attributes.pop("seed", None)
        return Demo(
            name=name,
            obs=obs,
            actions=actions,
            instruction=instruction,
            rewards=rewards,
            dones=np.logical_or.reduce(ends) if ends else None,
            seed=seed if isinstance(seed, int) else None,
            attributes={key: value for key, value in attributes.items() if key not in ("id", "total_steps")},
        )

    def _step_numbers(self, episode: h5py.Group, key: str, steps: int, where: str) -> np.ndarray | None:
        """(T,) values of one of `STEP_NUMBERS`; None if missing, or if `_minari_writer` added them only for Minari."""
        field = "rewards" if key == "rewards" else "dones"
        if key not in episode or field in self._own.get("absent", ()):
            return None
        dataset = dataset_in(episode, key, where)
        if dataset.shape != (steps,):
            raise DemoFormatError(
                f"{where}: {key} has shape {dataset.shape}; expected one number for each of {steps} actions"
            )
        return read_rows(dataset, f"{where}: {key}")

    def close(self) -> None:
        """Close the HDF5 file."""
        self._file.close()


def _observations(episode: h5py.Group, where: str) -> dict[str, h5py.Dataset]:
    """The observation datasets, including text; keys of nested groups are joined by `_`."""
    whole = episode.get("observations")
    if isinstance(whole, h5py.Dataset):
        return {"observation": whole}
    return dict(_below(group_in(episode, "observations", where)))


def _below(group: h5py.Group, prefix: str = "") -> Iterator[tuple[str, h5py.Dataset]]:
    """(key, dataset) of all datasets below a group, including text, in a file that `open_hdf5` has checked."""
    for key in sorted(group):
        item = group[key]
        if isinstance(item, h5py.Group):
            yield from _below(item, f"{prefix}{key}_")
        elif isinstance(item, h5py.Dataset):
            yield prefix + key, item


def _values(dataset: h5py.Dataset, rows: int, where: str) -> np.ndarray:
    """The first `rows` rows; byte strings are JPEG images and are decoded."""
    if dataset.dtype.kind == "S":
        return np.stack([decode_image(bytes(data), where) for data in dataset[:rows]])
    return read_rows(dataset, where, slice(0, rows))


def _described(about: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The attributes of the data set without those that describe its files; `env_args` is added from its `env_spec`."""
    found = {key: value for key, value in about.items() if key not in DESCRIBED}
    spec = found.get("env_spec")
    env = json_object(spec, f"{where}: env_spec") if isinstance(spec, str) else spec
    if isinstance(env, Mapping) and "id" in env:
        found["env_args"] = {"env_name": str(env["id"]), "type": 2, "env_kwargs": env.get("kwargs", {})}
    return found


def _main_file(folder: Path) -> Path | None:
    found = (folder / name for name in ("data/main_data.hdf5", "main_data.hdf5"))
    return next((path for path in found if path.is_file()), None)


def _metadata(path: Path) -> dict[str, Any]:
    """`metadata.json`, which newer versions of Minari write beside the HDF5 file; empty if missing or over `MAX_CHARS`."""
    return json_file(path) if path.is_file() and path.stat().st_size <= MAX_CHARS else {}
