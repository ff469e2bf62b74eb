"""Minari datasets: `data/main_data.hdf5` with a group `episode_<i>` each (minari.farama.org, Dataset Standards).

`observations` has T + 1 rows, an array or nested groups; `actions`, `rewards`, `terminations` and `truncations` have T. The
text observation `mission` (MiniGrid, BabyAI) is the instruction; other text observations are left out.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from robopolicy.components import NoOptions, register
from robopolicy.demos.formats._video import decode_image
from robopolicy.demos.formats.base import ReaderBase, require_demo, wanted_keys
from robopolicy.demos.guarded import attributes_of, damage_named, dataset_in, group_in, keys_of
from robopolicy.demos.hdf5 import read_rows
from robopolicy.demos.images import as_image
from robopolicy.demos.probe import open_hdf5
from robopolicy.demos.schema import json_file, json_object
from robopolicy.types import Demo, DemoFormatError

EPISODE = re.compile(r"episode_(\d+)")
MISSION = "mission"
"""The text observation of MiniGrid and BabyAI that holds the instruction."""
READ = {"observations", "actions", "rewards", "terminations", "truncations"}
"""Parts of an episode that are read."""


@register("demo_format", "minari")
class MinariFormat:
    """Minari datasets, by their folder or their `main_data.hdf5`; read only."""

    refines = ()

    def __init__(self, options: NoOptions) -> None:
        pass

    def matches(self, path: Path) -> bool:
        """A folder that holds `main_data.hdf5`, or an HDF5 file with `episode_<i>/observations` at its root."""
        if path.is_dir():
            return _main_file(path) is not None
        with open_hdf5(path) as file:
            first = next((key for key in keys_of(file, path.name) if EPISODE.fullmatch(key)), None)
            return first is not None and "observations" in group_in(file, first, path.name)

    def open(self, path: Path) -> "MinariReader":
        """A reader of the data set."""
        return MinariReader(path)


class MinariReader(ReaderBase):
    """Reads one Minari data set; the last of the T + 1 observations, on which no action was taken, is left out."""

    format_name = "minari"

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        main = (_main_file(path) if path.is_dir() else None) or path
        self._where = main.name if path == main else f"{path.name}/{main.name}"
        self._file = open_hdf5(main)
        episodes = sorted(
            int(match.group(1)) for key in keys_of(self._file, self._where) if (match := EPISODE.fullmatch(key))
        )
        self.names = tuple(f"demo_{number}" for number in episodes)
        self.attributes = attributes_of(self._file, self._where) | _metadata(main.with_name("metadata.json"))
        spec = self.attributes.get("env_spec")
        env = json_object(spec, f"{self._where}: env_spec") if isinstance(spec, str) else spec
        if isinstance(env, Mapping) and "id" in env:
            env_args = {"env_name": str(env["id"]), "type": 2, "env_kwargs": env.get("kwargs", {})}
            self.attributes = {**self.attributes, "env_args": env_args}
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

    def read(self, name: str, keys: Sequence[str] | None = None) -> Demo:
        """One episode; nested observation keys are joined by `_`, `keys` limits which are read."""
        require_demo(self, name)
        where = f"{self._where}, {name}"
        episode = group_in(self._file, name.replace("demo", "episode"), where)
        with damage_named(where):
            actions = read_rows(dataset_in(episode, "actions", where), f"{where}: actions")
            if actions.ndim != 2:
                raise DemoFormatError(
                    f"{where}: actions have shape {actions.shape}; expected (steps, width); discrete actions are not supported"
                )
            optional = {
                key: _per_step(dataset_in(episode, key, where), len(actions), f"{where}: {key}")
                for key in ("rewards", "terminations", "truncations")
                if key in episode
            }
            found = _observations(episode, where)
            for key, dataset in found.items():
                if len(dataset) != len(actions) + 1:
                    raise DemoFormatError(
                        f"{where}: {len(actions)} actions but {len(dataset)} rows in observations/{key}; "
                        f"expected {len(actions) + 1}"
                    )
            texts = {key: found.pop(key) for key in list(found) if found[key].dtype.kind == "O"}
            instruction = str(texts[MISSION].asstr()[0]) if MISSION in texts else None
            wanted = wanted_keys(found, keys, where)
            obs = {key: as_image(_values(found[key], len(actions), f"{where}: {key}")) for key in wanted}
        ends = [optional[key] for key in ("terminations", "truncations") if key in optional]
        attributes = attributes_of(episode, where)
        seed = attributes.pop("seed", None)
        return Demo(
            name=name,
            obs=obs,
            actions=actions,
            instruction=instruction,
            rewards=optional.get("rewards"),
            dones=np.logical_or.reduce(ends) if ends else None,
            seed=seed if isinstance(seed, int) else None,
            attributes={key: value for key, value in attributes.items() if key not in ("id", "total_steps")},
        )

    def close(self) -> None:
        """Close the HDF5 file."""
        self._file.close()


def _per_step(dataset: h5py.Dataset, steps: int, where: str) -> np.ndarray:
    """One number for each step, (T,); booleans as int64."""
    if dataset.shape != (steps,):
        raise DemoFormatError(f"{where} has shape {dataset.shape}; expected one number for each of {steps} actions")
    return read_rows(dataset, where)


def _observations(episode: h5py.Group, where: str) -> dict[str, h5py.Dataset]:
    """The observation datasets, texts included; keys of nested groups are joined by `_`."""
    whole = episode.get("observations")
    if isinstance(whole, h5py.Dataset):
        return {"observation": whole}
    return dict(_below(group_in(episode, "observations", where)))


def _below(group: h5py.Group, prefix: str = "") -> Iterator[tuple[str, h5py.Dataset]]:
    """All datasets below a group of an examined file, text included."""
    for key in sorted(group):
        item = group[key]
        if isinstance(item, h5py.Group):
            yield from _below(item, f"{prefix}{key}_")
        elif isinstance(item, h5py.Dataset):
            yield prefix + key, item


def _values(dataset: h5py.Dataset, rows: int, where: str) -> np.ndarray:
    """The first rows: numbers as they are, byte strings as the JPEG images that Minari writes."""
    if dataset.dtype.kind == "S":
        return np.stack([decode_image(bytes(data), where) for data in dataset[:rows]])
    return read_rows(dataset, where, slice(0, rows))


def _main_file(folder: Path) -> Path | None:
    found = (folder / name for name in ("data/main_data.hdf5", "main_data.hdf5"))
    return next((path for path in found if path.is_file()), None)


def _metadata(path: Path) -> dict[str, Any]:
    """The metadata that newer versions keep beside the HDF5 file."""
    return json_file(path) if path.is_file() else {}
