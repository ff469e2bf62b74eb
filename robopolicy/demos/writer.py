"""Writes the native demo file, demo by demo; `robopolicy.demos.hdf5` describes its layout and reads it."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import h5py
import numpy as np

from robopolicy.demos.checksums import seal_of, with_checksums
from robopolicy.demos.guarded import attributes_of, damage_named, group_in, keys_of, open_checked
from robopolicy.demos.packing import CHECKSUMS, by_number, demo_number, file_facts, write_demo
from robopolicy.demos.parts import Parts, parts_folder, stream_hdf5
from robopolicy.demos.probe import examine
from robopolicy.files import TEMPORARY
from robopolicy.types import ActionSpec, Demo, DemoFormatError

Writer = TypeVar("Writer", bound="PartWriter")


class PartWriter:
    """Writes a file of groups `data/demo_<i>`; a kill at any instant loses at most the group under way.

    Each group lies in the folder `<path>.parts` until `close` merges all of them into the file at `path`; every part has
    the layout of the whole file. As a context manager it closes the file at the end of the block; an exception leaves
    the parts for a writer with `resume`. A file is never changed once it is closed: resuming one writes a new file.

    Args:
        path: the file; its folder is made.
        facts: attributes of `data`; a file that is resumed keeps its own.
        resume: continue a file, or the parts of one.

    Raises:
        FileExistsError: the file or its parts exist and `resume` is off.
        FileInUseError: another process writes the file.
        DemoFormatError: the existing file can't be continued.
    """

    def __init__(self, path: str | Path, facts: Mapping[str, Any], *, resume: bool) -> None:
        self.path = Path(path)
        if self.path.exists() and not resume:
            raise FileExistsError(f"{self.path} exists; resume to add to it, or choose another name")
        self._parts = Parts(self.path, resume=resume)
        self._facts = dict(facts)
        self._groups: dict[str, tuple[Path, Mapping[str, Any]]] = {}
        """The file in which each group lies, and its attributes."""
        self._next = 0
        try:
            self._take_up()
        except BaseException:
            self._parts.release()
            raise

    def __enter__(self: Writer) -> Writer:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None:
            self.close()
        else:
            self._parts.release()

    @property
    def names(self) -> list[str]:
        """The demos written so far, by number."""
        return by_number(self._groups, self.path.name)

    def close(self) -> None:
        """Merge the parts into the file, synced and renamed; without a demo nothing is written.

        Raises:
            OSError: it can't be written, such as on a full disk; the parts stay.
        """
        try:
            if self._groups and self._changed:
                self._parts.finish(self._fill)
        finally:
            self._parts.release()

    @property
    def _changed(self) -> bool:
        return bool(self._parts.names)

    def _add(self, groups: Mapping[str, tuple[Callable[[h5py.Group], None], Mapping[str, Any]]]) -> None:
        """Write a part of these groups: for each what fills it, and its attributes."""

        def fill(file: h5py.File) -> None:
            data = _described(file, self._facts)
            for name, (write, _) in groups.items():
                write(data.create_group(name))
            self._seal(file)

        part = next(iter(groups))
        self._parts.add(part, fill)
        for name, (_, attributes) in groups.items():
            self._note(name, self._parts.path(part), attributes)

    def _keeps(self, name: str, attributes: Mapping[str, Any]) -> bool:
        """Whether a group left by an earlier writer is kept."""
        return True

    def _take_up(self) -> None:
        """Read the file and the parts left by an earlier writer."""
        merged = self._read(self.path, ()) if self.path.exists() else []
        for part in list(self._parts.names):
            if not self._read(self._parts.path(part), merged):  # of a merge that was killed at its very end
                self._parts.remove(part)

    def _read(self, path: Path, merged: Sequence[Any]) -> list[Any]:
        """Note the groups of a file whose checksums are not among `merged`; returns the checksums of those."""
        examine(path)
        found = []
        with open_checked(path) as file:
            data = group_in(file, "data", path.name)
            if not self._groups:
                self._facts = attributes_of(data, path.name)
            for name in by_number(keys_of(data, path.name), path.name):
                attributes = attributes_of(group_in(data, name, path.name), f"{path.name}, {name}")
                if attributes.get(CHECKSUMS, name) in merged or not self._keeps(name, attributes):
                    continue
                if name in self._groups:
                    raise DemoFormatError(f"{path} holds {name} and so does {self._groups[name][0]}; move one away")
                self._note(name, path, attributes)
                found.append(attributes.get(CHECKSUMS))
        return found

    def _note(self, name: str, path: Path, attributes: Mapping[str, Any]) -> None:
        self._groups[name] = path, attributes
        self._next = max(self._next, demo_number(name, self.path.name) + 1)

    def _fill(self, target: h5py.File) -> Iterator[None]:
        """Copy all groups into the new file, in the order of their numbers."""
        data = _described(target, self._facts)
        for name, new_name in self._order().items():
            path, _ = self._groups[name]
            with open_checked(path) as file, damage_named(f"{path.name}, {name}"):
                file.copy(file[f"data/{name}"], data, new_name)
            yield
        self._add_rest(target)
        self._seal(target)

    def _add_rest(self, target: h5py.File) -> None:
        """Write the contents of the file other than its groups."""

    def _seal(self, file: h5py.File) -> None:
        """Write the file's checksums, where its demos have them."""
        if CHECKSUMS in self._facts:
            file["data"].attrs[CHECKSUMS] = seal_of(file, self.path.name)

    def _order(self) -> dict[str, str]:
        """The groups in their order in the file, with the name of each there."""
        return {name: name for name in self.names}


class DemoWriter(PartWriter):
    """Writes a demo file, demo by demo, as `PartWriter` does.

    Args:
        path: the file; its folder is made.
        env_args: the environment, as robomimic stores it (`env_name`, `type`, `env_version`, `env_kwargs`).
        action_spec: the action columns, where known.
        attributes: further attributes of the whole file, such as `renderer`.
        resume: continue a file, or the parts of one; their attributes are kept.
        by_seed: number the demos in the order of their seeds when closing, whatever order they were written in.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        env_args: Mapping[str, Any] | None = None,
        action_spec: ActionSpec | None = None,
        attributes: Mapping[str, Any] | None = None,
        resume: bool = False,
        by_seed: bool = False,
    ) -> None:
        self._by_seed = by_seed
        self._masks: dict[str, list[str]] = {}
        super().__init__(path, file_facts(env_args, action_spec, attributes or {}), resume=resume)

    @property
    def seeds(self) -> list[int]:
        """Seeds of those demos that came from a simulator."""
        return [int(facts["seed"]) for _, facts in self._groups.values() if facts.get("seed") is not None]

    def write(self, demo: Demo) -> str:
        """Add a demo under its own name, or the next free number where that is taken; returns the name.

        The demo is on disk when this returns.

        Raises:
            DemoFormatError: the name is not `demo_<i>`, or an array is not finite numbers.
            OSError: it can't be written, such as on a full disk; the demos before it stay.
        """
        return self.write_together([demo])[0]

    def write_together(self, demos: Sequence[Demo]) -> list[str]:
        """Add demos, such as those of one episode, so that a kill leaves all of them or none; otherwise as `write`."""
        named: dict[str, Demo] = {}
        following = self._next
        for demo in demos:
            number = demo_number(demo.name, self.path.name)
            if demo.name in self._groups or demo.name in named:
                number = following
            named[f"demo_{number}"] = demo
            following = max(following, number + 1)
        if named:
            self._add(
                {
                    name: (partial(_write_checked, demo=demo), {"seed": demo.seed, "num_samples": len(demo)})
                    for name, demo in named.items()
                }
            )
        return list(named)

    def write_filter_key(self, key: str, names: Iterable[str]) -> None:
        """Set `mask/<key>` to these demos when the file is closed.

        Raises:
            DemoFormatError: a name is not in the file.
        """
        names = list(names)
        if unknown := [name for name in names if name not in self._groups]:
            raise DemoFormatError(f"{self.path.name}: mask/{key} would name {', '.join(unknown[:3])}, not in the file")
        self._masks[key] = names

    @property
    def _changed(self) -> bool:
        return super()._changed or bool(self._masks)

    def _order(self) -> dict[str, str]:
        if not self._by_seed:
            return super()._order()
        order = sorted(self.names, key=lambda name: self._groups[name][1].get("seed") or 0)
        return {name: f"demo_{number}" for number, name in enumerate(order)}

    def _fill(self, target: h5py.File) -> Iterator[None]:
        self._facts["total"] = sum(int(facts.get("num_samples", 0)) for _, facts in self._groups.values())
        return super()._fill(target)

    def _add_rest(self, target: h5py.File) -> None:
        masks, new_name = self._masks, self._order()
        if self.path.exists():
            with open_checked(self.path) as file, damage_named(self.path.name):
                masks = _copy_rest(file, target) | masks
        _write_masks(target, {key: [new_name[name] for name in names] for key, names in masks.items()})


def write_demo_file(
    path: Path, facts: Mapping[str, Any], demos: Iterable[Demo], masks: Mapping[str, Sequence[str]]
) -> None:
    """Write a whole demo file at once, of demos that can be made again; after an error nothing is left.

    Args:
        path: the file.
        facts: attributes of `data`, from `file_facts`.
        demos: under their own names.
        masks: filter keys and the demos of each.

    Raises:
        DemoFormatError: an array is not finite numbers.
        OSError: it can't be written, such as on a full disk.
    """

    def fill(file: h5py.File) -> Iterator[None]:
        data, total = _described(file, facts), 0
        for demo in demos:
            _write_checked(data.create_group(demo.name), demo)
            total += len(demo)
            yield
        data.attrs["total"] = total
        _write_masks(file, masks)
        data.attrs[CHECKSUMS] = seal_of(file, path.name)

    stream_hdf5(path, fill)


def begun(path: str | Path) -> Path | None:
    """The file, or the first of its parts, whose attributes a writer continues with; None if neither exists."""
    if Path(path).exists():
        return Path(path)
    return min((part for part in parts_folder(path).glob("*.hdf5") if TEMPORARY not in part.name), default=None)


def _write_checked(group: h5py.Group, demo: Demo) -> None:
    """Write a demo and its checksums; refuse invalid arrays first."""
    write_demo(group, demo)
    group.attrs[CHECKSUMS] = with_checksums(demo).attributes[CHECKSUMS]


def _write_masks(file: h5py.File, masks: Mapping[str, Sequence[str]]) -> None:
    for key, names in masks.items():
        file.require_group("mask").create_dataset(key, data=np.array([name.encode() for name in names], dtype="S"))


def _described(file: h5py.File, facts: Mapping[str, Any]) -> h5py.Group:
    """The group `data` of a new file, with its attributes."""
    data = file.create_group("data")
    for key in sorted(set(facts) - {CHECKSUMS}):
        data.attrs[key] = facts[key]
    return data


def _copy_rest(source: h5py.File, target: h5py.File) -> dict[str, list[str]]:
    """Copy what a file holds beside its demos; returns its masks."""
    for key, value in source.attrs.items():
        target.attrs[key] = value
    for key in source:
        if key not in ("data", "mask"):
            source.copy(key, target)
    masks = source.get("mask")
    if not isinstance(masks, h5py.Group):
        return {}
    return {key: [bytes(name).decode() for name in np.atleast_1d(names[()])] for key, names in masks.items()}
