"""The native demo file: the robomimic v1 HDF5 layout, plus instructions, seeds, tokens and executed actions.

    data                          attributes: total (steps), env_args, action_spec (JSON), renderer, robopolicy_version
    data/demo_<i>                 attributes: num_samples, instruction, seed, and whatever else a demo carries
    data/demo_<i>/actions         (T, width); likewise executed_actions, rewards, dones, states, tokens (T, N, D)
    data/demo_<i>/obs/<key>       (T, ...); images uint8 (T, height, width, 3); nested groups read as `outer/inner`
    mask/<filter key>             byte strings b"demo_3"

A file of robomimic, robosuite, MimicGen or LIBERO opens as it is.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import h5py
import numpy as np

from robopolicy.demos.checksums import verified
from robopolicy.demos.guarded import (
    attributes_of,
    damage_named,
    dataset_in,
    datasets_below,
    group_in,
    keys_of,
    open_checked,
)
from robopolicy.demos.packing import CHECKSUMS, STEP_ARRAYS, by_number, demo_number
from robopolicy.demos.writer import DemoWriter
from robopolicy.types import ActionSpec, Demo, DemoFormatError

__all__ = ["DemoFile", "DemoWriter", "read_rows"]


class DemoFile:
    """A demo file opened for reading; a context manager.

    Raises:
        DemoFormatError: the file can't be read as demonstrations; one line that names file, demo and key.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._file = open_checked(self.path)
        try:
            self._data = group_in(self._file, "data", self.path.name)
            self.attributes = _file_attributes(self._file, self._data, self.path.name)
            """What the file says of itself; `env_args` is a dictionary, `action_spec` an ActionSpec or None."""
            self._checksums = self.attributes.pop(CHECKSUMS, None) is not None
            self.names = by_number(keys_of(self._data, self.path.name), self.path.name)
            """The demos' names, by number."""
            if not self.names:
                raise DemoFormatError(f"{self.path.name}: no demo in it; expected groups data/demo_0, data/demo_1, ...")
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> "DemoFile":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def __len__(self) -> int:
        """Number of demos."""
        return len(self.names)

    def __iter__(self) -> Iterator[Demo]:
        """All demos, read one after another."""
        return (self.read(name) for name in self.names)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    @property
    def action_spec(self) -> ActionSpec | None:
        """What the file says of its action columns, where it does."""
        return self.attributes["action_spec"]

    @property
    def filter_keys(self) -> dict[str, list[str]]:
        """Demo names per filter key, such as `train` and `valid`; empty where the file has no masks.

        Raises:
            DemoFormatError: a mask names a demo that isn't there.
        """
        if "mask" not in self._file:
            return {}
        where, masks, known = self.path.name, {}, set(self.names)
        for key, dataset in datasets_below(group_in(self._file, "mask", where), where).items():
            with damage_named(f"{where}: mask/{key}"):
                names = [bytes(name).decode() for name in np.atleast_1d(dataset[()])]
            if unknown := sorted(set(names) - known):
                raise DemoFormatError(
                    f"{where}: mask/{key} names {', '.join(unknown[:3])}, which the file does not hold"
                )
            masks[key] = sorted(names, key=lambda name: demo_number(name, where))
        return masks

    def datasets(self, name: str) -> dict[str, h5py.Dataset]:
        """The demo's step datasets by name (`actions`, `obs/<key>`, `tokens`, ...), lengths checked, nothing read.

        Raises:
            DemoFormatError: no actions or no observations, or lengths that differ from each other or from num_samples.
        """
        group, where = self._group(name), f"{self.path.name}, {name}"
        present = keys_of(group, where)
        if "obs" not in present:
            raise DemoFormatError(f"{where}: {_no_observations(present)}")
        found = {"actions": dataset_in(group, "actions", where)}
        found |= {key: dataset_in(group, key, where) for key in STEP_ARRAYS if key in present}
        found |= {f"obs/{key}": data for key, data in datasets_below(group_in(group, "obs", where), where).items()}
        if found["actions"].ndim != 2:
            raise DemoFormatError(f"{where}: actions have shape {found['actions'].shape}; expected (steps, width)")
        steps = len(found["actions"])
        for key, dataset in found.items():
            rows = dataset.shape[0] if dataset.ndim else 0
            if rows != steps:
                raise DemoFormatError(f"{where}: {steps} actions but {rows} rows in {key}; every step needs both")
        declared = attributes_of(group, where).get("num_samples", steps)
        if declared != steps:
            raise DemoFormatError(f"{where}: num_samples says {declared} steps but there are {steps} actions")
        return found

    def read(self, name: str, keys: Sequence[str] | None = None) -> Demo:
        """One demo; `keys` limits which observations are read.

        Raises:
            DemoFormatError: an observation key is missing (those present are listed), a length differs, a value of the
                actions or of a low-dimensional observation is not finite, or something changed since it was written.
        """
        datasets, where = self.datasets(name), f"{self.path.name}, {name}"
        available = [key.removeprefix("obs/") for key in datasets if key.startswith("obs/")]
        wanted = available if keys is None else keys
        if missing := [key for key in wanted if key not in available]:
            raise DemoFormatError(
                f"{where}: no {', '.join(missing)} among the observations; it has: {', '.join(available)}"
            )
        attributes = attributes_of(self._group(name), where)
        attributes.pop("num_samples", None)
        seed = attributes.pop("seed", None)
        instruction = attributes.pop("instruction", None)
        try:
            demo = Demo(
                name=name,
                obs={key: read_rows(datasets[f"obs/{key}"], f"{where}: obs/{key}") for key in wanted},
                actions=read_rows(datasets["actions"], f"{where}: actions"),
                instruction=None if instruction is None else str(instruction),
                seed=None if seed is None else int(seed),
                attributes=attributes,
                **{key: read_rows(datasets[key], f"{where}: {key}") for key in STEP_ARRAYS if key in datasets},
            )
        except DemoFormatError as error:
            raise DemoFormatError(_prefixed(str(error), self.path.name)) from error
        return verified(demo, where, whole=keys is None, expected=self._checksums)

    def demo_attributes(self, name: str) -> dict[str, Any]:
        """Everything the file says of one demo: num_samples, instruction, seed, model_file, ..."""
        return attributes_of(self._group(name), f"{self.path.name}, {name}")

    def _group(self, name: str) -> h5py.Group:
        return group_in(self._data, name, self.path.name)


def read_rows(dataset: h5py.Dataset, where: str, rows: slice = slice(None)) -> np.ndarray:
    """Rows of a step dataset, refused where a low-dimensional value is not finite."""
    with damage_named(where):
        values = np.asarray(dataset[rows])
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        bad = np.argwhere(~np.isfinite(values))[0]
        raise DemoFormatError(
            f"{where}: {values[tuple(bad)]} at step {(rows.start or 0) + bad[0]}; every value must be finite"
        )
    return values


def _file_attributes(file: h5py.File, data: h5py.Group, where: str) -> dict[str, Any]:
    found = attributes_of(file, where) | attributes_of(data, where)
    try:
        found["env_args"] = json.loads(found.get("env_args", "{}"))
        spec = found.get("action_spec")
        found["action_spec"] = None if spec is None else ActionSpec.from_dict(json.loads(spec))
    except (ValueError, TypeError, AttributeError) as error:
        raise DemoFormatError(f"{where}: attributes env_args or action_spec are not as expected ({error})") from error
    return found


def _no_observations(present: Sequence[str]) -> str:
    if "states" in present:
        return (
            "only states and actions, no observations (robosuite's raw layout); "
            "make them with robosuite's own simulator (robomimic's dataset_states_to_obs), then train"
        )
    return f"no group obs; it has: {', '.join(present) or 'nothing'}"


def _prefixed(message: str, file_name: str) -> str:
    return message if message.startswith(file_name) else f"{file_name}, {message}"
