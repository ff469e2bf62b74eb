"""Writes the native demo file, demo by demo; `robopolicy.demos.hdf5` says how it is laid out and reads it."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import h5py
import numpy as np

from robopolicy.demos.checksums import with_checksums
from robopolicy.demos.guarded import group_in
from robopolicy.demos.journal import FileInUseError, JournaledFile
from robopolicy.demos.packing import CHECKSUMS, by_number, create_file, demo_number, write_demo
from robopolicy.types import ActionSpec, Demo, DemoFormatError


class DemoWriter:
    """Writes a demo file, demo by demo, such that a kill at any instant leaves every finished demo readable.

    Args:
        path: the file; its folder is made.
        env_args: the environment, as robomimic stores it (`env_name`, `type`, `env_version`, `env_kwargs`).
        action_spec: what the action columns are, where known.
        attributes: further facts about the whole file, such as `renderer`.
        resume: go on with an existing file; what it says of itself is kept.

    Raises:
        FileExistsError: the file exists and `resume` is off.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        env_args: Mapping[str, Any] | None = None,
        action_spec: ActionSpec | None = None,
        attributes: Mapping[str, Any] | None = None,
        resume: bool = False,
    ) -> None:
        self.path = Path(path)
        if not self.path.exists():
            create_file(self.path, env_args, action_spec, attributes or {})
        elif not resume:
            raise FileExistsError(f"{self.path} exists; resume to go on with it, or choose another name")
        try:
            self._raw = JournaledFile(self.path)
        except FileInUseError as error:
            raise FileInUseError(f"{self.path}: {error}") from None
        try:
            self._file = h5py.File(self._raw, "r+")
            self._data = group_in(self._file, "data", self.path.name)
        except (OSError, DemoFormatError) as error:
            self._raw.close()
            raise DemoFormatError(f"{self.path.name}: can't go on with this file ({error})") from error

    def __enter__(self) -> "DemoWriter":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    @property
    def names(self) -> list[str]:
        """The demos in the file, by number."""
        return by_number(self._data.keys(), self.path.name)

    @property
    def seeds(self) -> list[int]:
        """Seeds of those demos in the file that came from a simulator."""
        return [int(demo.attrs["seed"]) for demo in self._data.values() if "seed" in demo.attrs]

    def write(self, demo: Demo) -> str:
        """Add a demo under its own name, or the next free number where that is taken; gives the name.

        The demo is on disk when this returns.

        Raises:
            DemoFormatError: the name is no `demo_<i>`, or an array is not finite numbers; the file stays as it was.
        """
        number = demo_number(demo.name, self.path.name)
        if demo.name in self._data:
            number = demo_number(self.names[-1], self.path.name) + 1
        name = f"demo_{number}"
        try:
            group = self._data.create_group(name)
            write_demo(group, demo)
            group.attrs[CHECKSUMS] = with_checksums(demo).attributes[CHECKSUMS]
            self._data.attrs["total"] = int(self._data.attrs.get("total", 0)) + len(demo)
        except BaseException:
            del self._data[name]
            raise
        self._commit()
        return name

    def write_filter_key(self, key: str, names: Iterable[str]) -> None:
        """Set `mask/<key>` to these demos.

        Raises:
            DemoFormatError: a name is not in the file.
        """
        names = list(names)
        if unknown := [name for name in names if name not in self._data]:
            raise DemoFormatError(f"{self.path.name}: mask/{key} would name {', '.join(unknown[:3])}, not in the file")
        masks = self._file.require_group("mask")
        if key in masks:
            del masks[key]
        masks.create_dataset(key, data=np.array([name.encode() for name in names], dtype="S"))
        self._commit()

    def close(self) -> None:
        """Finish the file; where that fails, such as on a full disk, every finished demo is in it all the same."""
        try:
            self._file.close()
            self._raw.commit()
        finally:
            self._raw.close()

    def _commit(self) -> None:
        self._file.flush()
        self._raw.commit()
