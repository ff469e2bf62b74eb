"""Writes the native demo file, demo by demo; `robopolicy.demos.hdf5` describes its layout and reads it."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from robopolicy.demos.checksums import seal_of, with_checksums
from robopolicy.demos.guarded import damage_named, datasets_below
from robopolicy.demos.packing import CHECKSUMS, data_group, demo_number, file_facts, write_demo
from robopolicy.demos.parts import PartWriter
from robopolicy.demos.probe import open_hdf5
from robopolicy.demos.whole_hdf5 import write_hdf5
from robopolicy.types import ActionSpec, Demo, DemoFormatError


class DemoWriter(PartWriter):
    """Writes a demo file, demo by demo; like every `PartWriter`, it is safe against crashes.

    Args:
        path: the file; its folder is created if missing.
        env_args: the environment, as robomimic stores it (`env_name`, `type`, `env_version`, `env_kwargs`).
        action_spec: describes the action columns; None: not declared in the file.
        attributes: further attributes of the whole file, such as `renderer`.
        resume: continue an existing file, or the parts of an unfinished one; their attributes are kept.
        by_seed: renumber the demos in the order of their seeds when closing, whatever the order in which they were written.
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
        """Seeds of the demos that have one (demos recorded in a simulator)."""
        return [int(facts["seed"]) for _, facts in self._groups.values() if facts.get("seed") is not None]

    def write(self, demo: Demo) -> str:
        """Add a demo under its own name, or under the next free number if that name is taken; returns the name.

        The demo is on disk when this returns.

        Raises:
            DemoFormatError: the name is not `demo_<i>`, or an array holds values that are not finite numbers.
            OSError: the demo can't be written, such as on a full disk; the demos written before remain.
        """
        return self.write_together([demo])[0]

    def write_together(self, demos: Sequence[Demo]) -> list[str]:
        """Like `write`, for demos that belong together, such as those of one episode: a crash leaves all of them or none."""
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
            raise DemoFormatError(
                f"{self.path.name}: mask/{key} names {', '.join(unknown[:3])}, which the file doesn't have"
            )
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
            with open_hdf5(self.path) as file, damage_named(self.path.name):
                masks = _copy_rest(file, target) | masks
        _write_masks(target, {key: [new_name[name] for name in names] for key, names in masks.items()})


def write_demo_file(
    path: Path, facts: Mapping[str, Any], demos: Iterable[Demo], masks: Mapping[str, Sequence[str]]
) -> None:
    """Write a whole demo file without parts, for demos that can be produced again: after an error, nothing is left.

    Args:
        path: the file.
        facts: attributes of `data`, from `file_facts`.
        demos: the demos, written under their own names.
        masks: filter key -> names of its demos.

    Raises:
        DemoFormatError: an array holds values that are not finite numbers.
        OSError: the file can't be written, such as on a full disk.
    """

    def fill(file: h5py.File) -> Iterator[None]:
        data, total = data_group(file, facts), 0
        for demo in demos:
            _write_checked(data.create_group(demo.name), demo)
            total += len(demo)
            yield
        data.attrs["total"] = total
        _write_masks(file, masks)
        data.attrs[CHECKSUMS] = seal_of(file, path.name)

    write_hdf5(path, fill)


def _write_checked(group: h5py.Group, demo: Demo) -> None:
    """Write a demo and its checksums; invalid arrays are refused by `write_demo`, before their checksums are computed."""
    write_demo(group, demo)
    group.attrs[CHECKSUMS] = with_checksums(demo).attributes[CHECKSUMS]


def _write_masks(file: h5py.File, masks: Mapping[str, Sequence[str]]) -> None:
    for key, names in masks.items():
        file.require_group("mask").create_dataset(key, data=np.array([name.encode() for name in names], dtype="S"))


def _copy_rest(source: h5py.File, target: h5py.File) -> dict[str, list[str]]:
    """Copy the content of a file other than its groups `data` and `mask`; returns its masks, filter key -> names of demos."""
    for key, value in source.attrs.items():
        target.attrs[key] = value
    for key in source:
        if key not in ("data", "mask"):
            source.copy(key, target)
    masks = source.get("mask")
    if not isinstance(masks, h5py.Group):
        return {}
    found = datasets_below(masks, Path(source.filename).name, text=True)
    return {key: [bytes(name).decode() for name in np.atleast_1d(names[()])] for key, names in found.items()}
