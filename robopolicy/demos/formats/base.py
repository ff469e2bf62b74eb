"""The contract of the family `demo_format`: a format recognizes and reads its files, and writes them if it has `write`.

A format is a `DemoFormat` registered with `@register("demo_format", kind)`.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import numpy as np

from robopolicy.demos.actions import infer_action_spec
from robopolicy.types import ActionSpec, Demo, DemoFormatError

Reader = TypeVar("Reader", bound="DemoReader")
RowShapes: TypeAlias = Mapping[str, tuple[tuple[int, ...], Any]]
"""Key -> shape and type of one row; see `row_shapes`."""


class DemoReader:
    """One open set of demonstrations; the reader of each format is a subclass. A context manager.

    A subclass sets the attributes that differ from these defaults, and overrides `read`.
    """

    format_name: str
    """Kind of the format that opened it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        """The file or folder."""
        self.names: Sequence[str] = ()
        """Names of the demos, `demo_<i>`, in numeric order."""
        self.filter_keys: Mapping[str, Sequence[str]] = {}
        """Named subsets such as `train` and `valid`; empty where the format has none."""
        self.attributes: dict[str, Any] = {}
        """Attributes of the whole set."""
        self.action_spec: ActionSpec | None = None
        """The action columns as the file declares them; None: inferred by the default rule (`infer_action_spec`)."""
        self.action_facts: Mapping[str, Any] = {}
        """Fields of ActionSpec (kind, rate_hz, ...) that are known although `action_spec` is None."""
        self.notes: tuple[str, ...] = ()
        """Conversions made while reading, and contents left out; one line each."""

    def read(self, name: str, keys: Sequence[str] | None = None) -> Demo:
        """One demo; `keys` limits which observations are read.

        Raises:
            DemoFormatError: an array is damaged, missing, of another length, or holds a value that is not finite.
        """
        raise NotImplementedError

    def clock(self, name: str) -> np.ndarray | None:
        """(T,) time of each step [s]; None where the format records none."""
        return None

    def datasets(self, name: str) -> Mapping[str, Any] | None:
        """The HDF5 datasets that hold a demo as `read` returns it, by path such as `obs/front`; None if there are none."""
        return None

    def close(self) -> None:
        """Close the file that is held open, if there is one."""

    def __len__(self) -> int:
        """Number of demos."""
        return len(self.names)

    def __iter__(self) -> Iterator[Demo]:
        """All demos, read one after another."""
        return (self.read(name) for name in self.names)

    def __enter__(self: Reader) -> Reader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class ChangedReader(DemoReader):
    """Base class of readers that modify another reader's demos; by itself it changes nothing."""

    def __init__(self, source: DemoReader) -> None:
        super().__init__(source.path)
        self.source, self.format_name = source, source.format_name
        self.names, self.filter_keys, self.attributes = source.names, source.filter_keys, source.attributes
        self.action_spec, self.action_facts, self.notes = source.action_spec, source.action_facts, tuple(source.notes)

    def read(self, name: str, keys: Sequence[str] | None = None) -> Demo:
        """See `DemoReader`."""
        return self.source.read(name, keys)

    def clock(self, name: str) -> np.ndarray | None:
        """See `DemoReader`."""
        return self.source.clock(name)


class DemoFormat:
    """A readable format of demonstrations; a subclass sets `reader` or overrides `open`."""

    refines: tuple[str, ...] = ()
    """Kinds that this format extends: they match its files too, and this format takes precedence."""
    reader: type[DemoReader]
    """Its reader, which is made from the path of the file or folder."""

    def __init__(self, options: Any) -> None:
        self.options = options

    def matches(self, path: Path) -> bool:
        """Whether the file or folder has this format, judged by its content; open HDF5 files with `probe.open_hdf5` only."""
        raise NotImplementedError

    def open(self, path: Path) -> DemoReader:
        """A reader of the file or folder.

        Raises:
            DemoFormatError: it is of this format, but can't be used.
        """
        return self.reader(path)


class WritableFormat(DemoFormat):
    """A format that can also be written."""

    def write(self, source: DemoReader, target: Path, names: Sequence[str]) -> list[str]:
        """Write these demos of `source` to `target`, which doesn't exist yet.

        Returns:
            One line for each thing that was changed or left out.

        Raises:
            DemoFormatError: the format can't hold these demos.
        """
        raise NotImplementedError


class Omissions:
    """Counts the contents that a format can't hold, over all demos of a set, so that each is reported once.

    Args:
        format_name: the format in words, such as `an ACT folder`.
        source: the set.
        demos: number of its demos that are written.
        kept: names of attributes, of the set and of its demos, that the format keeps.
    """

    def __init__(self, format_name: str, source: DemoReader, demos: int, kept: Iterable[str] = ()) -> None:
        self._format_name, self._source, self._demos, self._kept = format_name, source, demos, {*kept}
        self._found: Counter[str] = Counter()

    def add(self, demo: Demo, fields: Iterable[str], attributes: Iterable[str] = (), keys: Iterable[str] = ()) -> None:
        """Count the optional fields that the demo has, the attributes that are not kept, and these observation keys."""
        self._found.update(field for field in fields if getattr(demo, field) is not None)
        self._found.update(f"the attribute {name}" for name in attributes if name not in self._kept)
        self._found.update(f"the observation {key}" for key in keys)

    def lines(self) -> list[str]:
        """One line for each kind of thing left out; the format itself reports the action spec and the filter keys."""
        lines = [
            f"{self._format_name} has no place for {what}: left out of {count} of {self._demos} demos"
            for what, count in sorted(self._found.items())
        ]
        present = {key for key, value in self._source.attributes.items() if value not in (None, "", {}, [])}
        if left_out := sorted(present - {"action_spec", "total", *self._kept}):
            lines.append(f"{self._format_name} has no place for the set's attributes {', '.join(left_out)}: left out")
        return lines


def filter_keys_of(source: DemoReader, names: Iterable[str]) -> dict[str, list[str]]:
    """The filter keys of `source`, each with those of its demos that are among `names`."""
    kept = set(names)
    return {key: [name for name in members if name in kept] for key, members in source.filter_keys.items()}


def action_spec_of(reader: DemoReader, actions: Iterable[np.ndarray] | None = None) -> ActionSpec:
    """The declared action spec, or one inferred from all demos by the default rule and completed by `action_facts`.

    Args:
        reader: the demos.
        actions: (T, width) of each demo, if they have been read already.
    """
    if reader.action_spec is not None:
        return reader.action_spec
    inferred = infer_action_spec(actions or (reader.read(name, keys=()).actions for name in reader.names))
    facts = dict(reader.action_facts)
    grippers = set(facts.pop("continuous_gripper", ())) & set(inferred.arm_columns)
    return replace(inferred, continuous_gripper=tuple(sorted(grippers)), **facts)


def require_demo(reader: DemoReader, name: str) -> None:
    """Refuse the name of a demo that doesn't exist.

    Raises:
        DemoFormatError: no demo has this name; the first names are listed.
    """
    if name not in reader.names:
        raise DemoFormatError(f"{reader.path.name}: no {name}; it has: {listed(reader.names)}")


def listed(names: Sequence[str]) -> str:
    """The first eight names, and the last where there are more."""
    return ", ".join(names[:8]) + (f" ... {names[-1]}" if len(names) > 8 else "")


def requested_keys(available: Iterable[str], keys: Sequence[str] | None, where: str) -> list[str]:
    """The observations to read: all, or those asked for.

    Raises:
        DemoFormatError: one is missing; those present are listed.
    """
    available = list(available)
    if missing := [key for key in keys or () if key not in available]:
        raise DemoFormatError(
            f"{where}: no {', '.join(missing)} among the observations; it has: {', '.join(available)}"
        )
    return available if keys is None else list(keys)


def is_image(values: np.ndarray) -> bool:
    """Whether an observation is a sequence of color images, uint8 (T, height, width, 3)."""
    return values.dtype == np.uint8 and values.ndim == 4 and values.shape[-1] == 3


def row_shapes(demo: Demo, fields: Iterable[str] = (), exact: bool = False) -> RowShapes:
    """Shape and type of one row of the actions, of each observation, and of these optional fields as far as a demo has them.

    With `exact` the type is the dtype; otherwise it is whether the dtype is uint8, as for images.
    """
    arrays = {"actions": demo.actions, **demo.obs, **{field: getattr(demo, field) for field in fields}}
    return {
        key: (values.shape[1:], values.dtype if exact else values.dtype == np.uint8)
        for key, values in arrays.items()
        if values is not None
    }


def row_difference(expected: RowShapes, found: RowShapes) -> str | None:
    """The first difference between the keys and rows of a demo and those of the demos before it, in words; None if equal."""
    if missing := sorted(set(expected) - set(found)):
        return f"no key {missing[0]!r}, which the demos before it have; it has: {', '.join(sorted(found))}"
    if more := sorted(set(found) - set(expected)):
        return f"the key {more[0]!r} is not in the demos before it; drop or rename it"
    for key, (shape, _) in found.items():
        if found[key] != expected[key]:
            if shape != expected[key][0]:
                return f"{key} has rows of shape {shape}; in the demos before it they are {expected[key][0]}"
            return f"{key} has rows of another type than in the demos before it"
    return None
