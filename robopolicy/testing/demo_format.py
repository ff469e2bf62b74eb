"""The conformance kit of demo formats; each check takes a format and a set of demos.

`source` is a file or folder of the format itself, made without its own writer where possible, except in `WRITER_CHECKS`,
which convert demos of any format to this one.
"""

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeAlias

import numpy as np

from robopolicy.demos.formats import DemoFormat, DemoReader, WritableFormat, action_spec_of, open_demos
from robopolicy.testing._assert import require, require_error
from robopolicy.types import Demo, DemoFormatError

LOSSY_DIFFERENCE = 6.0
"""Greatest mean difference of a channel value (0 .. 255) of images that the notes call lossy."""


def only_its_own_files_match(format: DemoFormat, source: Path) -> None:
    """The set matches; an empty folder and a text file don't."""
    require(format.matches(source), f"{source.name} does not match its own format")
    with TemporaryDirectory() as folder:
        require(not format.matches(Path(folder)), "an empty folder matches")
        text = Path(folder, "notes.txt")
        text.write_text("notes")
        try:
            matches = format.matches(text)
        except DemoFormatError:
            matches = False
        require(not matches, "a text file matches")


def it_is_found_by_its_content(format: DemoFormat, source: Path) -> None:
    """`open_demos` chooses this format among all known ones."""
    with format.open(source) as expected, open_demos(source) as found:
        require(type(found) is type(expected), f"opened by {type(found).__name__}, expected {type(expected).__name__}")


def the_reader_has_every_property(format: DemoFormat, source: Path) -> None:
    """`DemoReader`'s properties, with names without repetition, and notes of one line each."""
    with format.open(source) as reader:
        require(isinstance(reader, DemoReader), f"{type(reader).__name__} lacks a property of DemoReader")
        require(len(reader.names) > 0, "no demos; expected at least one")
        require(len(set(reader.names)) == len(reader.names), f"a demo's name occurs twice: {list(reader.names)}")
        require(all("\n" not in note for note in reader.notes), f"a note has several lines: {list(reader.notes)}")
        unknown = {name for names in reader.filter_keys.values() for name in names} - set(reader.names)
        require(not unknown, f"filter keys name demos that don't exist: {sorted(unknown)}")
        action_spec_of(reader)


def demos_are_whole_and_the_same_each_time(format: DemoFormat, source: Path) -> None:
    """One finite row of numbers per step in each array, and equal values when read again."""
    with format.open(source) as reader:
        for name in reader.names:
            demo = reader.read(name)
            require(demo.name == name, f"the demo {name} is called {demo.name}")
            for key, values in {"actions": demo.actions, **demo.obs}.items():
                require(len(values) == len(demo), f"{name}: {len(values)} rows of {key}, expected {len(demo)}")
                require(values.dtype.kind in "biuf", f"{name}: {key} has dtype {values.dtype}, expected numbers")
                require(np.isfinite(values).all(), f"{name}: {key} is not finite")
            _require_same(demo, reader.read(name), "", f"{name} read twice")
            times = reader.clock(name)
            require(times is None or len(times) == len(demo), f"{name}: the clock's length is not {len(demo)}")


def only_the_keys_asked_for_are_read(format: DemoFormat, source: Path) -> None:
    """`keys` selects observations; an unknown key or demo is a DemoFormatError."""
    with format.open(source) as reader:
        name = reader.names[0]
        available = sorted(reader.read(name).obs)
        for keys in ([], available[:1], available):
            found = sorted(reader.read(name, keys=keys).obs)
            require(found == keys, f"keys {keys} were asked for, got {found}")
        require_error(lambda: reader.read(name, keys=["nothing_such"]), "an unknown observation key")
        require_error(lambda: reader.read("demo_999999"), "an unknown demo")


def written_demos_are_read_back_as_they_were(format: DemoFormat, source: Path) -> None:
    """Reading, writing and reading again is the identity, except for what the notes name."""
    require(isinstance(format, WritableFormat), "the format has no write")
    assert isinstance(format, WritableFormat)
    with TemporaryDirectory() as folder, open_demos(source) as before:
        target = Path(folder) / "written"
        notes = "\n".join(format.write(before, target, tuple(before.names)))
        with format.open(target) as after:
            require(
                list(after.names) == list(before.names), f"names {list(after.names)}, expected {list(before.names)}"
            )
            for name in before.names:
                _require_same(before.read(name), after.read(name), notes, name)
            written, read = action_spec_of(before), action_spec_of(after)
            require(written == read or "action spec" in notes, f"action spec {read}, expected {written} or a note")
            gone = {key for key, value in before.attributes.items() if value} - set(after.attributes)
            for key in gone - {"total", "action_spec"}:
                require(key in notes, f"the attribute {key} of the set is lost without a note")
            masks = [{key: list(names) for key, names in one.filter_keys.items()} for one in (before, after)]
            require(masks[0] == masks[1] or "filter keys" in notes, f"filter keys {masks[1]}, expected {masks[0]}")


def _require_same(before: Demo, after: Demo, notes: str, where: str) -> None:
    """Refuse a field that differs, or that is lost although no note names it."""
    for field in (field.name for field in fields(Demo) if field.name not in ("name", "obs", "attributes")):
        one, other = getattr(before, field), getattr(after, field)
        if one is not None and other is None:
            require(field.rstrip("s") in notes, f"{where}: {field} is lost without a note")
        elif isinstance(one, np.ndarray):
            _require_equal_rows(one, other, f"{where}: {field}", exact_dtype=field not in ("dones",))
        else:
            require(one == other, f"{where}: {field} is {other!r}, expected {one!r}")
    lost = [key for key in before.obs if key not in after.obs and key not in notes]
    require(not lost, f"{where}: observations {lost} are lost without a note")
    for key in set(before.obs) & set(after.obs):
        one, other = before.obs[key], after.obs[key]
        if one.ndim == 4 and "lossy" in notes:
            difference = np.abs(one.astype(int) - other).mean()
            require(difference <= LOSSY_DIFFERENCE, f"{where}: {key} differs by {difference:.1f} on average")
        else:
            _require_equal_rows(one, other, f"{where}: {key}")
    lost = [key for key in before.attributes if key not in after.attributes and key not in notes]
    require(not lost, f"{where}: attributes {lost} are lost without a note")


def _require_equal_rows(one: np.ndarray, other: Any, where: str, exact_dtype: bool = True) -> None:
    require(isinstance(other, np.ndarray), f"{where} is {type(other).__name__}, expected an array")
    require(not exact_dtype or one.dtype == other.dtype, f"{where} has dtype {other.dtype}, expected {one.dtype}")
    require(np.array_equal(one, other), f"{where} differs")


Check: TypeAlias = Callable[[DemoFormat, Path], None]
CHECKS: tuple[Check, ...] = (
    only_its_own_files_match,
    it_is_found_by_its_content,
    the_reader_has_every_property,
    demos_are_whole_and_the_same_each_time,
    only_the_keys_asked_for_are_read,
)
"""The checks of every format that is read."""
WRITER_CHECKS: tuple[Check, ...] = (written_demos_are_read_back_as_they_were,)
"""The checks of every format that is written; `source` may be of any format."""
