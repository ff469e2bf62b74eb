"""ACT / ALOHA episodes: one HDF5 file each, alone or in a folder (github.com/tonyzhaozh/act, `record_episodes.py`).

`action` (T, 14) holds absolute joint targets: for each of two arms, 6 joints [rad] and a gripper. The observations are
`observations/qpos`, `observations/qvel` and `observations/images/<camera>`; images are uint8 (T, height, width, 3), or JPEG
bytes padded to one length. Mobile ALOHA adds `base_action` (T, 2) and `observations/effort`.
"""

import re
from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np

from robopolicy.components import register
from robopolicy.demos.actions import describe_action_spec
from robopolicy.demos.formats._video import decode_image
from robopolicy.demos.formats.base import (
    DemoReader,
    Omissions,
    WritableFormat,
    action_spec_of,
    is_image,
    requested_keys,
    require_demo,
)
from robopolicy.demos.guarded import attributes_of, damage_named, datasets_below
from robopolicy.demos.hdf5 import read_rows
from robopolicy.demos.images import as_image
from robopolicy.demos.probe import open_hdf5
from robopolicy.demos.whole_hdf5 import write_hdf5
from robopolicy.types import ActionSpec, Demo, DemoFormatError

RATE_HZ = 50.0
"""ALOHA's control rate (`DT = 0.02` in its `constants.py`); the files don't record it."""
ACTIONS = ("action", "base_action")
LENGTHS = "compress_len"
"""Length of each JPEG without its padding; decoding doesn't need it."""
EPISODE = re.compile(r"episode_(\d+)\.(hdf5|h5)")


class ActReader(DemoReader):
    """Reads the episodes of a folder, or one episode file; each is opened when it is read."""

    format_name = "act"

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._files = _episodes(path) if path.is_dir() else {f"demo_{_number(path) or 0}": path}
        self.names = tuple(self._files)
        with open_hdf5(next(iter(self._files.values()))) as file:
            found = attributes_of(file, path.name)
            datasets = datasets_below(file, path.name)
            width = sum(datasets[key].shape[-1] for key in ACTIONS if key in datasets)
            compressed = [key for key, dataset in datasets.items() if "/images/" in key and dataset.ndim == 2]
        found.pop("compress", None)  # describes the file, not the demos
        self.attributes = found
        self.action_spec = aloha_action_spec(width)
        known = (*ACTIONS, LENGTHS)
        columns = ", ".join(map(str, grippers(width)))
        notes = [
            f"actions taken as ALOHA's: absolute joint targets at {RATE_HZ:g} Hz"
            f"{f', continuous grippers in columns {columns}' if columns else ''}; the files don't declare it"
        ]
        if left_out := sorted(key for key in datasets if key not in known and not key.startswith("observations/")):
            notes.append(f"of each episode, {', '.join(left_out)} is not read")
        if compressed:
            notes.append(
                f"{', '.join(key.rpartition('/')[2] for key in compressed)}: JPEG images decoded, taken as RGB"
            )
        self.notes = tuple(notes)

    def read(self, name: str, keys: Sequence[str] | None = None) -> Demo:
        """One episode; `keys` limits which observations are read."""
        require_demo(self, name)
        path = self._files[name]
        with open_hdf5(path) as file, damage_named(path.name):
            datasets = datasets_below(file, path.name)
            actions = [read_rows(datasets[key], f"{path.name}: {key}") for key in ACTIONS if key in datasets]
            if not actions:
                raise DemoFormatError(f"{path.name}: no action; an ACT episode has action and observations/qpos")
            width = sum(rows.shape[1] if rows.ndim == 2 else 0 for rows in actions)
            if self.action_spec is not None and width != self.action_spec.width:
                raise DemoFormatError(
                    f"{path.name}: actions of shape {actions[0].shape}, {width} columns in all; the first episode has "
                    f"{self.action_spec.width}"
                )
            found = {
                key.removeprefix("observations/").removeprefix("images/"): dataset
                for key, dataset in datasets.items()
                if key.startswith("observations/")
            }
            requested = requested_keys(found, keys, path.name)
            obs = {key: as_image(_values(found[key], path.name)) for key in requested}
            attributes = attributes_of(file, path.name)
        instruction = attributes.pop("instruction", None)
        if instruction is not None and not isinstance(instruction, str):
            raise DemoFormatError(f"{path.name}: instruction is {str(instruction)[:40]}; expected text")
        attributes.pop("compress", None)  # of the file, not of the decoded images
        return Demo(
            name=name, obs=obs, actions=np.concatenate(actions, axis=-1), instruction=instruction, attributes=attributes
        )


@register("demo_format", "act")
class ActFormat(WritableFormat):
    """ACT / ALOHA episodes, one HDF5 file each."""

    reader = ActReader

    def matches(self, path: Path) -> bool:
        """A file with `action` and `observations/qpos` at its root, or a folder of `episode_<i>.hdf5`."""
        if path.is_dir():
            return bool(_episodes(path))
        with open_hdf5(path) as file:
            return "action" in file and "observations" in file

    def write(self, source: DemoReader, target: Path, names: Sequence[str]) -> list[str]:
        """One `episode_<i>.hdf5` for each demo; every demo needs the observation `qpos`."""
        omissions = Omissions("an ACT folder", source, len(names), kept=("sim",))
        target.mkdir()
        for index, name in enumerate(names):
            _write_episode(source.read(name), target / f"episode_{index}.hdf5", omissions)
        notes = omissions.lines()
        spec = action_spec_of(source)
        if spec != aloha_action_spec(spec.width):
            notes.append(
                f"an ACT folder has no place for the action spec ({describe_action_spec(spec)}): left out, and read back "
                "as absolute joint targets"
            )
        if source.filter_keys:
            notes.append(f"an ACT folder has no place for the filter keys {', '.join(source.filter_keys)}: left out")
        return notes


def aloha_action_spec(width: int) -> ActionSpec:
    """Absolute joint targets; with 7 columns an arm, the last of each is a continuous gripper (0 closed, 1 open)."""
    found = grippers(width)
    arms = {"left": tuple(range(7)), "right": tuple(range(7, 14))} if len(found) == 2 else {}
    units = tuple("normalized" if column in found else "rad" for column in range(width)) if found else ()
    if width == 16:
        units = (*units[:14], "m/s", "rad/s")
    return ActionSpec(
        arm=width,
        gripper=0,
        continuous_gripper=found,
        continuous_gripper_values=((1.0, 0.0),) * len(found),
        base=(14, 15) if width == 16 else (),
        arms=arms,
        kind="absolute",
        space="joint_position",
        units=units,
        rate_hz=RATE_HZ,
    )


def grippers(width: int) -> tuple[int, ...]:
    """The gripper columns of actions of this width: the seventh of each arm."""
    return {7: (6,), 14: (6, 13), 16: (6, 13)}.get(width, ())


def _episodes(folder: Path) -> dict[str, Path]:
    found = {number: path for path in folder.iterdir() if (number := _number(path)) is not None}
    return {f"demo_{number}": found[number] for number in sorted(found)}


def _number(path: Path) -> int | None:
    match = EPISODE.fullmatch(path.name)
    return int(match.group(1)) if match else None


def _values(dataset: h5py.Dataset, where: str) -> np.ndarray:
    """One observation; images that are JPEG bytes (T, length) are decoded, which ignores the padding after each."""
    if "/images/" not in str(dataset.name) or dataset.ndim == 4:
        return read_rows(dataset, f"{where}: {dataset.name}")
    return np.stack([decode_image(row.tobytes(), f"{where}: {dataset.name}") for row in dataset[()]])


def _write_episode(demo: Demo, path: Path, omissions: Omissions) -> None:
    if "qpos" not in demo.obs:
        raise DemoFormatError(
            f"{demo.name}: an ACT episode needs the observation qpos; this demo has: {', '.join(sorted(demo.obs))}"
        )
    omissions.add(demo, ("executed_actions", "rewards", "dones", "states", "tokens", "seed"), demo.attributes)

    def fill(file: h5py.File) -> None:
        file.attrs["sim"] = bool(demo.attributes.get("sim", False))
        if demo.instruction is not None:
            file.attrs["instruction"] = demo.instruction
        file["action"] = demo.actions
        for key, values in demo.obs.items():
            if is_image(values):
                file.create_dataset(
                    f"observations/images/{key}", data=values, chunks=(1, *values.shape[1:]), compression="gzip"
                )
            else:
                file[f"observations/{key}"] = values

    write_hdf5(path, fill)
