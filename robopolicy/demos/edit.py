"""The command `edit`: writes new demo files from existing ones of any format, one demo at a time; sources stay unchanged."""

import csv
import io
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from robopolicy.components import ConfigError, require
from robopolicy.demos.edit_readers import Chosen, Merged, OtherKeys, Resampled, TrimmedIdle
from robopolicy.demos.formats import DemoReader, open_demos
from robopolicy.demos.formats._conversion import write_new
from robopolicy.demos.formats._detection import writable_format
from robopolicy.demos.formats.base import listed
from robopolicy.demos.packing import DEMO_NAME, demo_number
from robopolicy.demos.provenance import EDITS, edit_history
from robopolicy.demos.schema import text_of
from robopolicy.types import DemoFormatError

ALL, REST = "all", "rest"
"""Reserved names of parts: `all` is every demo, `rest` every demo that is in no other part."""


@dataclass(frozen=True)
class Edit:
    """Edits of demos.

    Keys, idle steps and rate of each source are changed first, in this order, and then the sources are merged: `select`,
    `drop`, `instructions` and `filter_keys` name demos of the merged set.
    """

    drop_keys: Sequence[str] = ()
    """Observation keys to leave out."""
    rename: Mapping[str, str] = field(default_factory=dict)
    """Observation key -> its new name."""
    trim_idle: int | None = None
    """Largest number of idle steps in a row; longer pauses are shortened to it."""
    rate_hz: float | None = None
    """Lower control rate to resample to."""
    select: Sequence[str] = ()
    """Demos to keep: names, ranges such as `demo_3..demo_9`, filter keys; empty: all."""
    drop: Sequence[str] = ()
    """Demos to leave out, named as in `select`."""
    instructions: Mapping[str, str] = field(default_factory=dict)
    """Demo -> its new instruction; an empty one removes it."""
    filter_keys: Mapping[str, str] = field(default_factory=dict)
    """Filter key -> its part of the demos: a count, a share (`0.9`, `90%`), `rest`, or another filter key."""
    seed: int = 0
    """Seed of the random choice of demos for counts and shares."""

    def __post_init__(self) -> None:
        if self.trim_idle is not None and self.trim_idle < 1:
            raise ConfigError(f"trim_idle is {self.trim_idle}; expected 1 step or more to keep of each pause")
        if self.rate_hz is not None and not 0 < self.rate_hz < np.inf:
            raise ConfigError(f"rate is {self.rate_hz}; expected more than 0 Hz")
        new = list(self.rename.values())
        if twice := sorted({key for key in new if new.count(key) > 1}):
            raise ConfigError(f"two keys would be called {twice[0]!r}; give each its own name")
        if both := sorted(set(self.rename) & set(self.drop_keys)):
            raise ConfigError(f"the key {both[0]!r} is to be dropped and renamed; name it once")


@dataclass(frozen=True)
class Edited:
    """One file that was written, or that a dry run would write."""

    path: Path
    steps: Mapping[str, int]
    """Steps of each demo."""
    origin: Mapping[str, tuple[Path, str]]
    """The file that each demo comes from, and its name there."""
    keys: tuple[str, ...]
    """Its observation keys."""


def edit_demos(
    sources: Sequence[str | Path],
    outputs: Mapping[Any, str],
    changes: Edit | None = None,
    *,
    format: str | None = None,
    options: Mapping[str, Any] | None = None,
    dry_run: bool = False,
) -> tuple[list[Edited], list[str]]:
    """Write edited copies of demos. Memory use: the actions of one source, and one complete demo.

    Args:
        sources: files or folders of any known format; several are merged.
        outputs: path of a new file -> the part of the demos that it gets, written as in `Edit.filter_keys`, or `all`.
            All files appear under their names at the end, when all are complete.
        changes: the edits; None: copy only.
        format: kind of the family `demo_format`; None: robomimic, the native file.
        options: of the format.
        dry_run: write nothing.

    Returns:
        The files, and notes on what was changed or left out, one line each.

    Raises:
        FileExistsError: an output exists.
        DemoFormatError: a source can't be read, names a missing demo or key, or does not fit the others.
        ConfigError: an option contradicts another one, or the format is unknown or can only be read.
    """
    changes = changes or Edit()
    writer = writable_format(format, options)
    for path in map(Path, outputs):
        if path.exists():
            raise FileExistsError(f"{path} exists; choose another name, or remove it first")
    with ExitStack() as stack:
        opened = [stack.enter_context(open_demos(path)) for path in sources]
        merged = Merged(_changed(opened, changes))
        names = _chosen(merged, changes)
        if unknown := [name for name in changes.instructions if name not in merged.names]:
            raise DemoFormatError(f"no demo {unknown[0]!r} to give an instruction to; there are {listed(merged.names)}")
        operations = {key: value for key, value in asdict(changes).items() if value and key != "instructions"}
        operations |= {"relabeled": len(changes.instructions)} if changes.instructions else {}
        readers = [(reader.path, reader.attributes) for reader in opened]
        parts = parts_of(outputs, names, merged.filter_keys, changes.seed)
        keys = parts_of(changes.filter_keys, names, merged.filter_keys, changes.seed)
        files: dict[Path, Chosen] = {}
        for path, members in parts.items():
            made = files[Path(path)] = Chosen(merged, members, changes.instructions, keys)
            part = {} if outputs[path] == ALL else {"part": str(outputs[path])}
            made.attributes = {**made.attributes, EDITS: edit_history(readers, {**operations, **part})}
        notes = list(next(iter(files.values())).notes)
        left_out = len(set(names)) - len({name for members in parts.values() for name in members})
        notes += [f"{left_out} of {len(names)} demos are in no output"] if left_out else []
        if not dry_run:
            notes += write_new({path: (made, made.names) for path, made in files.items()}, writer)
        return [_described(path, made, merged) for path, made in files.items()], notes


def read_instructions(path: str | Path) -> dict[str, str]:
    """The instructions of a CSV file with the columns `demo` and `instruction`.

    Raises:
        DemoFormatError: another header, a row of another length, or a demo that is named twice.
    """
    path = Path(path)
    try:
        rows = list(csv.reader(io.StringIO(text_of(path).removeprefix("\ufeff"), newline=""), strict=True))
    except csv.Error as error:
        raise DemoFormatError(f"{path.name}: not a CSV file ({error}); expected demo,instruction in each row") from None
    header = [word.strip() for word in rows[0]] if rows else []
    if header != ["demo", "instruction"]:
        raise DemoFormatError(f"{path.name}: the first line is {','.join(header)[:80]!r}; expected demo,instruction")
    found: dict[str, str] = {}
    for number, row in enumerate(rows[1:], start=2):
        if not row:
            continue
        if len(row) != 2:
            raise DemoFormatError(f"{path.name}, row {number}: {len(row)} columns; expected demo,instruction")
        name = row[0].strip()
        if name in found:
            raise DemoFormatError(f"{path.name}, row {number}: names {name} a second time; expected each demo once")
        found[name] = row[1].strip()
    return found


def parts_of(
    parts: Mapping[Any, str], names: Sequence[str], filter_keys: Mapping[str, Sequence[str]], seed: int
) -> dict[Any, list[str]]:
    """The demos of each part, in their order; for counts and shares, demos are drawn at random and without overlap.

    Args:
        parts: part -> `all`, `rest`, a filter key, a count (`20`), or a share of the demos (`0.9`, `90%`).
        names: all demos.
        filter_keys: filter key -> its demos.
        seed: seed of the random choice.

    Raises:
        ConfigError: a part is something else or has no demo, or there are too few demos.
    """
    named = {key: set(members) & set(names) for key, members in filter_keys.items()} | {ALL: set(names)}
    found = {part: named[text] for part, text in parts.items() if text in named}
    taken = set().union(*found.values()) if ALL not in parts.values() else set()
    free = [name for name in names if name not in taken]
    order = [free[place] for place in np.random.default_rng(seed).permutation(len(free))]
    counted = {part: text for part, text in parts.items() if text not in (*named, REST)}
    numbers = {part: _number(part, text, filter_keys) for part, text in counted.items()}
    for part, (start, stop) in _ranges(numbers, len(names)).items():
        if stop > len(order):
            raise ConfigError(f"{part}={parts[part]}: {stop} demos are needed; there are {len(order)} to draw from")
        found[part] = set(order[start:stop])
    rest = set(names).difference(*found.values())
    found |= {part: rest for part, text in parts.items() if text == REST}
    for part, members in found.items():
        if not members:
            raise ConfigError(f"{part}={parts[part]}: no demo would be in it, of {len(names)}")
    return {part: [name for name in names if name in found[part]] for part in parts}


def _ranges(numbers: Mapping[Any, int | float], demos: int) -> dict[Any, tuple[int, int]]:
    """Start and end of each part in the random order; parts follow one another. A float is a share of the demos."""
    found, stop, share = {}, 0, 0.0
    for part, number in numbers.items():
        if isinstance(number, float):  # cumulative sums are rounded, so that shares that add up to 1 leave no demo out
            before, share = share, share + number
            number = round(share * demos) - round(before * demos)
        start, stop = stop, stop + number
        found[part] = start, stop
    return found


def _number(part: Any, text: str, filter_keys: Mapping[str, Sequence[str]]) -> int | float:
    """A count of demos as an int, or a share as a float."""
    with suppress(ValueError):
        number = float(text[:-1]) / 100 if text.endswith("%") else float(text) if "." in text else int(text)
        if 1 <= number < np.inf if isinstance(number, int) else 0 < number <= 1:
            return number
    known = ", ".join((ALL, REST, *filter_keys))
    raise ConfigError(f"{part}={text}: expected a count such as 20, a share such as 0.9 or 90%, or one of {known}")


def _changed(opened: Sequence[DemoReader], changes: Edit) -> list[DemoReader]:
    """Apply the edits of single sources; a key that is dropped or renamed must be in at least one source."""
    edited = dict.fromkeys((*changes.drop_keys, *changes.rename))
    there = [set(reader.read(reader.names[0]).obs) if edited else set() for reader in opened]
    for key in edited:
        if not any(key in keys for keys in there):
            raise DemoFormatError(f"{opened[0].path.name}: no key {key!r}; it has: {', '.join(sorted(there[0]))}")
    found = []
    for reader, keys in zip(opened, there, strict=True):
        changed = reader
        if edited:
            rename = {key: new for key, new in changes.rename.items() if key in keys}
            changed = OtherKeys(changed, [key for key in changes.drop_keys if key in keys], rename)
        if changes.trim_idle is not None:
            changed = TrimmedIdle(changed, changes.trim_idle)
        if changes.rate_hz is not None:
            changed = Resampled(changed, changes.rate_hz)
        found.append(changed)
    return found


def _chosen(merged: Merged, changes: Edit) -> list[str]:
    """The names that are selected and not dropped."""
    select, drop = (_named(words, merged) for words in (changes.select, changes.drop))
    names = [name for name in merged.names if (name in select or not changes.select) and name not in drop]
    require(names, f"no demo is left of {len(merged.names)}; select more or drop fewer")
    return names


def _named(words: Sequence[str], merged: Merged) -> set[str]:
    """The demos that these names, ranges `demo_3..demo_9` or filter keys select."""
    found: set[str] = set()
    for word in words:
        first, _, last = word.partition("..")
        ends = [DEMO_NAME.fullmatch(end) for end in (first, last or first)]
        members = set(merged.filter_keys.get(word, ()))
        if not members and ends[0] and ends[1]:
            low, high = int(ends[0][1]), int(ends[1][1])
            members = {name for name in merged.names if low <= demo_number(name, word) <= high}
        if not members:
            known = f"{listed(merged.names)}; filter keys {', '.join(merged.filter_keys) or 'none'}"
            raise DemoFormatError(f"no demo {word!r}; there are {known}")
        found |= members
    return found


def _described(path: Path, made: Chosen, merged: Merged) -> Edited:
    keys = tuple(sorted(made.read(made.names[0]).obs))
    steps = {name: made.lengths.get(name) or len(made.read(name, keys=())) for name in made.names}
    origin = {name: (merged.origin[name][0].path, merged.origin[name][1]) for name in made.names}
    return Edited(path, steps, origin, keys)
