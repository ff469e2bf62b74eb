"""The layout of demos in the native file: names, low-dimensional rows contiguous, images in compressed chunks."""

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

import h5py
import numpy as np

from robopolicy import __version__
from robopolicy.types import STEP_ARRAYS, ActionSpec, Demo, DemoFormatError

DEMO_NAME = re.compile(r"demo_(\d+)")
"""robomimic sorts demos by the integer after `demo_`."""
CHECKSUMS = "checksums"
"""Attribute with checksums as JSON: in `data` of the file's attributes, masks and demo names; in a demo of its content."""
IMAGE_CHUNK_FRAMES = 8
"""Images in one chunk; a window of 10 frames needs 2 or 3 chunks. For 84x84 images, gzip-1 writes at 140-230 MB/s, reads at
460 MB/s and compresses to a quarter. lzf, which only h5py supports, writes at 230 MB/s, reads at 385 MB/s and compresses to a
half."""
IMAGE_CHUNK_BYTES = 512 * 1024
"""Maximum size of a chunk of several images, so that it fits HDF5's chunk cache of 1 MiB; large images are fewer per chunk."""


def file_facts(
    env_args: Mapping[str, Any] | None, action_spec: ActionSpec | None, attributes: Mapping[str, Any]
) -> dict[str, Any]:
    """The attributes of a new file's group `data`."""
    # The keys that robomimic needs; it uses the number 2 for the type of a gymnasium environment.
    environment = {"env_name": "", "type": 2, "env_version": "", "env_kwargs": {}, **(env_args or {})}
    facts = {**attributes, "env_args": json.dumps(environment), "total": 0, "robopolicy_version": __version__}
    facts[CHECKSUMS] = ""  # computed when the file is complete
    if action_spec is not None:
        facts["action_spec"] = json.dumps(action_spec.to_dict())
    return facts


def data_group(file: h5py.File, facts: Mapping[str, Any]) -> h5py.Group:
    """The group `data` of a new file, with its attributes except the checksums, which are added when the file is complete."""
    data = file.create_group("data")
    for key in sorted(set(facts) - {CHECKSUMS}):
        data.attrs[key] = facts[key]
    return data


def write_demo(group: h5py.Group, demo: Demo) -> None:
    """Write a demo's attributes and arrays into its empty group."""
    group.attrs["num_samples"] = len(demo)
    for key, value in {"instruction": demo.instruction, "seed": demo.seed, **demo.attributes}.items():
        if value is not None:
            group.attrs[key] = value
    write_rows(group, "actions", demo.actions)
    for key in STEP_ARRAYS:
        if (values := getattr(demo, key)) is not None:
            write_rows(group, key, values)
    obs = group.create_group("obs")
    for key, values in demo.obs.items():
        write_rows(obs, key, values)


def write_rows(group: h5py.Group, key: str, values: np.ndarray) -> None:
    """Write an array with one row per step; bool is converted to int64, the type that robomimic uses for `dones`.

    Raises:
        DemoFormatError: a value is not a number or not finite; a reader would refuse it.
    """
    values = np.asarray(values)
    if values.dtype.kind not in "biuf":
        raise DemoFormatError(f"{group.name}: {key} has type {values.dtype}; expected numbers")
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise DemoFormatError(f"{group.name}: {key} holds NaN or infinite values; every value must be finite")
    if values.dtype == bool:
        values = values.astype(np.int64)
    if values.dtype != np.uint8 or values.ndim < 3:
        group.create_dataset(key, data=values)
        return
    fitting = max(1, IMAGE_CHUNK_BYTES // max(1, values[0].nbytes))
    frames = min(IMAGE_CHUNK_FRAMES, fitting, len(values))
    group.create_dataset(key, data=values, chunks=(frames, *values.shape[1:]), compression="gzip", compression_opts=1)


def demo_number(name: str, where: str) -> int:
    """The number after `demo_`.

    Raises:
        DemoFormatError: the name is not `demo_<i>`; `where` begins the message.
    """
    match = DEMO_NAME.fullmatch(name)
    if match is None:
        raise DemoFormatError(f"{where}: a demo is named {name!r}; expected demo_<number>")
    return int(match[1])


def by_number(names: Iterable[str], where: str) -> list[str]:
    """Names of demos sorted by their numbers; raises the errors of `demo_number`."""
    return sorted(names, key=lambda name: demo_number(name, where))
