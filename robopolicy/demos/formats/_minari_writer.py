"""Writes Minari data sets (github.com/Farama-Foundation/Minari, version 0.5.4): one HDF5 file, and `metadata.json` beside it.

`data/robopolicy.json`, which Minari ignores, records what its layout can't hold, so that reading returns what was written.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from robopolicy.demos.formats.base import (
    DemoReader,
    Omissions,
    action_spec_of,
    filter_keys_of,
    is_image,
    row_difference,
    row_shapes,
)
from robopolicy.demos.packing import write_rows
from robopolicy.demos.whole_hdf5 import write_hdf5
from robopolicy.files import write_file
from robopolicy.types import Demo, DemoFormatError

SIDECAR = "robopolicy.json"
"""Keys: names, action_spec, filter_keys, env_args, edits, absent (fields that Minari requires and the demos lack)."""
MISSION = "mission"
"""Name of the text observation with the instruction, as in MiniGrid and BabyAI."""
VERSION = "0.5.4"
"""Version of Minari whose layout is written: the first one in which images may be stored without loss."""
KEPT = ("edits", "env_args")
"""Attributes of the set that the sidecar keeps."""


def write_minari(source: DemoReader, target: Path, names: Sequence[str], dataset_id: str) -> list[str]:
    """Write these demos as episodes 0, 1, ...; returns a line for each thing that was changed or left out."""
    data = target / "data"
    data.mkdir(parents=True)
    first = source.read(names[0])
    omissions = Omissions("Minari", source, len(names), KEPT)
    facts: dict[str, Any] = {"steps": 0, "texts": {""}}

    def fill(file: h5py.File) -> Iterator[None]:
        for index, name in enumerate(names):
            demo = source.read(name)
            _require_like(demo, first)
            _write_episode(file.create_group(f"episode_{index}"), index, demo)
            facts["steps"] += len(demo)
            facts["texts"].add(demo.instruction or "")
            omissions.add(demo, ("executed_actions", "states", "tokens"))
            yield

    write_hdf5(data / "main_data.hdf5", fill)
    observation = {key: _box(values) for key, values in first.obs.items()}
    if first.instruction is not None:
        observation[MISSION] = _text(facts["texts"])
    metadata = {
        "dataset_id": dataset_id,
        "minari_version": VERSION,
        "total_episodes": len(names),
        "total_steps": facts["steps"],
        "data_format": "hdf5",
        "jpeg_encoding": False,
        "observation_space": json.dumps({"type": "Dict", "subspaces": observation}),
        "action_space": json.dumps(_box(first.actions)),
    }
    write_file(data / "metadata.json", json.dumps(metadata))
    own = {
        "names": list(names),
        "action_spec": action_spec_of(source).to_dict(),
        "filter_keys": filter_keys_of(source, names),
        "absent": [field for field in ("rewards", "dones") if getattr(first, field) is None],
        **{key: source.attributes[key] for key in KEPT if source.attributes.get(key)},
    }
    write_file(data / SIDECAR, json.dumps(own))
    notes = ["Minari requires an observation after the last action: the last one is repeated"]
    if "rewards" in own["absent"]:
        notes.append("Minari requires a reward for each step; the demos have none, so 0 is written")
    return [*notes, *omissions.lines()]


def _write_episode(group: h5py.Group, index: int, demo: Demo) -> None:
    for key, value in {**demo.attributes, "id": index, "total_steps": len(demo), "seed": demo.seed}.items():
        if value is not None:
            group.attrs[key] = value
    steps = len(demo)
    write_rows(group, "actions", demo.actions)
    group["rewards"] = np.zeros(steps) if demo.rewards is None else demo.rewards
    group["terminations"] = np.zeros(steps, bool) if demo.dones is None else np.asarray(demo.dones).astype(bool)
    group["truncations"] = np.arange(steps) == (steps - 1 if demo.dones is None else steps)
    observations = group.create_group("observations")
    for key, values in demo.obs.items():
        write_rows(observations, key, np.concatenate([values, values[-1:]]))
    if demo.instruction is not None:
        texts = np.array([demo.instruction] * (steps + 1), dtype=object)
        observations.create_dataset(MISSION, data=texts, dtype=h5py.string_dtype())


def _require_like(demo: Demo, first: Demo) -> None:
    """Refuse a demo that does not fit the observation and action spaces, which are those of the first demo."""
    for key in demo.obs:
        if "/" in key or key == MISSION:
            raise DemoFormatError(
                f"{demo.name}: a Minari observation can't be called {key!r}; rename it with robopolicy edit"
            )
    for field in ("rewards", "dones", "instruction"):
        if (getattr(demo, field) is None) != (getattr(first, field) is None):
            raise DemoFormatError(
                f"{demo.name}: only some of the demos have {field}; in a Minari data set all or none have it"
            )
    if difference := row_difference(row_shapes(first, exact=True), row_shapes(demo, exact=True)):
        raise DemoFormatError(f"{demo.name}: {difference}; a Minari data set needs the same in all demos")


def _box(values: np.ndarray) -> dict[str, Any]:
    """The space of one row of values (T, ...), as Minari serializes gymnasium's `Box`."""
    dtype = np.dtype(np.int64) if values.dtype == bool else values.dtype
    low, high = (0, 255) if is_image(values) else (-np.inf, np.inf)
    if dtype.kind in "iu":
        low, high = np.iinfo(dtype).min, np.iinfo(dtype).max
    shape = values.shape[1:]
    bounds = {"low": np.full(shape, low).tolist(), "high": np.full(shape, high).tolist()}
    return {"type": "Box", "dtype": str(dtype), "shape": list(shape), **bounds}


def _text(texts: set[str]) -> dict[str, Any]:
    characters = "".join(sorted({char for text in texts for char in text})) or " "
    return {"type": "Text", "max_length": max(1, *map(len, texts)), "min_length": 0, "charset": characters}
