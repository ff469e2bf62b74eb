"""Reads untrusted HDF5 files: every error of the HDF5 library becomes a message of one line.

`robopolicy.demos.probe` has examined the file before; it refuses links to other files and implausible sizes.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from robopolicy.types import DemoFormatError, one_line

SIGNATURE = b"\x89HDF\r\n\x1a\n"
"""First bytes of an HDF5 file (HDF5 file format specification, version 0 superblock)."""
MAX_ATTRIBUTES = 1024
"""Largest number of attributes of one object; objects in our files and in robomimic's have fewer than ten."""

BROKEN = (OSError, RuntimeError, LookupError, ValueError, TypeError, AttributeError, ArithmeticError, MemoryError)
"""Exceptions that h5py, and code that processes what it reads, raise on damaged files."""


def parts_folder(target: str | Path) -> Path:
    """Folder of a file's parts until the file is complete (`robopolicy.demos.parts`)."""
    return Path(f"{target}.parts")


def open_checked(path: str | Path) -> h5py.File:
    """An HDF5 file opened for reading; nothing is ever written.

    Raises:
        DemoFormatError: the file is missing, empty, not HDF5, or cut short.
    """
    path = Path(path)
    require_file(path)
    size = path.stat().st_size
    if size == 0:
        raise DemoFormatError(f"{path.name}: the file is empty; expected an HDF5 demo file")
    with path.open("rb") as raw:
        if raw.read(len(SIGNATURE)) != SIGNATURE:
            raise DemoFormatError(f"{path.name}: not an HDF5 file; `robopolicy convert` reads the other formats")
    try:
        return h5py.File(path, "r")
    except BROKEN as error:
        reason = one_line(error)
        if "truncated" in reason:
            reason = f"cut short at {size} bytes; copy it again from its source"
        elif "lock" in reason:
            reason = "another process is writing it; try again when it is done"
        else:
            reason = f"damaged ({reason})"
        raise DemoFormatError(f"{path.name}: {reason}") from error


def require_file(path: Path) -> None:
    """Refuse a path that is neither a file nor a link to one.

    Raises:
        DemoFormatError: in one line; it names the parts that an unfinished writer left.
    """
    if not path.is_file():
        parts = parts_folder(path)
        more = f"; demos of a writer that did not finish are in {parts.name}, resume it" if parts.is_dir() else ""
        raise DemoFormatError(f"{path}: no such file{more}")


@contextmanager
def damage_named(where: str) -> Iterator[None]:
    """Turn any exception that h5py raises for damaged data into one line that begins with `where`."""
    try:
        yield
    except DemoFormatError:
        raise
    except BROKEN as error:
        raise DemoFormatError(f"{where}: damaged ({one_line(error)})") from error


def group_in(parent: h5py.Group, key: str, where: str) -> h5py.Group:
    """The group `key` of `parent`; `where` begins the message if it is missing, or not a group."""
    found = _child(parent, key, where)
    if not isinstance(found, h5py.Group):
        raise DemoFormatError(f"{where}: {key} is a dataset; expected a group")
    return found


def dataset_in(parent: h5py.Group, key: str, where: str, *, text: bool = False) -> h5py.Dataset:
    """The numeric dataset `key` of `parent`; with `text` it may hold byte strings.

    Raises:
        DemoFormatError: missing (available keys are listed), or of a type that training can't use.
    """
    found = _child(parent, key, where)
    if not isinstance(found, h5py.Dataset):
        raise DemoFormatError(f"{where}: {key} is a group; expected a dataset")
    kind, size = found.dtype.kind, found.dtype.itemsize
    if found.shape is None or kind not in ("biufS" if text else "biuf") or (kind == "f" and size > 8):
        raise DemoFormatError(f"{where}: {key} has type {found.dtype}; expected numbers of at most 64 bits")
    return found


def datasets_below(parent: h5py.Group, where: str, prefix: str = "", *, text: bool = False) -> dict[str, h5py.Dataset]:
    """All datasets below a group by their path, nested groups as `outer/inner`, sorted by name; `text` as above."""
    found: dict[str, h5py.Dataset] = {}
    for key in sorted(parent):
        if isinstance(inner := _child(parent, key, where), h5py.Group):
            found |= datasets_below(inner, where, f"{prefix}{key}/", text=text)
        else:
            found[prefix + key] = dataset_in(parent, key, where, text=text)
    return found


def attributes_of(item: h5py.Group | h5py.Dataset, where: str) -> dict[str, Any]:
    """All attributes of a group as plain Python values: bytes decoded, NumPy arrays as lists.

    Raises:
        DemoFormatError: more than `MAX_ATTRIBUTES`, or one that is neither text nor numbers.
    """
    with damage_named(f"{where}: attributes"):
        if len(item.attrs) > MAX_ATTRIBUTES:
            raise DemoFormatError(f"{where}: {len(item.attrs)} attributes; at most {MAX_ATTRIBUTES} are read")
        if odd := [key for key in item.attrs if not isinstance(key, str)]:
            raise DemoFormatError(f"{where}: an attribute is named {odd[0]!r}; expected UTF-8 text")
        return {key: _plain(value, f"{where}: attribute {key}") for key, value in item.attrs.items()}


def _child(parent: h5py.Group, key: str, where: str) -> Any:
    with damage_named(f"{where}: {key}"):
        if key not in parent:
            raise DemoFormatError(f"{where}: no {key}; it has: {', '.join(sorted(parent)[:12]) or 'nothing'}")
        return parent[key]


def _plain(value: Any, where: str) -> Any:
    if isinstance(value, np.floating):  # also long doubles, whose item() is no Python float
        return float(value)
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, (np.ndarray, list)):
        return [_plain(item, where) for item in value]
    if isinstance(value, (str, bool, int, float)):
        return value
    raise DemoFormatError(f"{where} has type {type(value).__name__}; expected text or numbers")
