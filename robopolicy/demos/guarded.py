"""Reads untrusted HDF5 files: every error of the HDF5 library becomes a one-line message.

Call `robopolicy.demos.probe.examine` on a file first: it refuses links to other files and implausible sizes.
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
"""Maximum number of attributes of one object; objects in native files and in robomimic's have fewer than ten."""

BROKEN = (OSError, RuntimeError, LookupError, ValueError, TypeError, AttributeError, ArithmeticError, MemoryError)
"""Exceptions that h5py, and code that processes what it reads, raise on damaged files."""


def parts_folder(target: str | Path) -> Path:
    """The folder that holds the parts of a file until the file is complete (see `robopolicy.demos.parts`)."""
    return Path(f"{target}.parts")


def open_checked(path: str | Path) -> h5py.File:
    """Open an HDF5 file, for reading only.

    Raises:
        DemoFormatError: the file is missing, empty, not HDF5, truncated, damaged, or locked by a process that writes it.
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
        DemoFormatError: the path is neither; the message names the parts, if an unfinished writer left any.
    """
    if not path.is_file():
        parts = parts_folder(path)
        more = f"; demos of a writer that did not finish are in {parts.name}, resume it" if parts.is_dir() else ""
        raise DemoFormatError(f"{path}: no such file{more}")


@contextmanager
def damage_named(where: str) -> Iterator[None]:
    """Turn any exception that h5py raises on damaged data into a DemoFormatError whose message begins with `where`."""
    try:
        yield
    except DemoFormatError:
        raise
    except BROKEN as error:
        raise DemoFormatError(f"{where}: damaged ({one_line(error)})") from error


def group_in(parent: h5py.Group, key: str, where: str) -> h5py.Group:
    """The group `key` of `parent`.

    Raises:
        DemoFormatError: `key` is missing or not a group; the message begins with `where`.
    """
    found = _child(parent, key, where)
    if not isinstance(found, h5py.Group):
        raise DemoFormatError(f"{where}: {key} is a dataset; expected a group")
    return found


def dataset_in(parent: h5py.Group, key: str, where: str, *, text: bool = False) -> h5py.Dataset:
    """The numeric dataset `key` of `parent`; with `text` it may hold byte strings.

    Raises:
        DemoFormatError: `key` is missing (available keys are listed), is a group, or has a type that training can't use.
    """
    found = _child(parent, key, where)
    if not isinstance(found, h5py.Dataset):
        raise DemoFormatError(f"{where}: {key} is a group; expected a dataset")
    kind, size = found.dtype.kind, found.dtype.itemsize
    if found.shape is None or kind not in ("biufS" if text else "biuf") or (kind == "f" and size > 8):
        raise DemoFormatError(f"{where}: {key} has type {found.dtype}; expected numbers of at most 64 bits")
    return found


def datasets_below(parent: h5py.Group, where: str, prefix: str = "", *, text: bool = False) -> dict[str, h5py.Dataset]:
    """All datasets below a group, path -> dataset, sorted; nested paths are `outer/inner`; `text` as in `dataset_in`."""
    found: dict[str, h5py.Dataset] = {}
    for key in sorted(parent):
        if isinstance(inner := _child(parent, key, where), h5py.Group):
            found |= datasets_below(inner, where, f"{prefix}{key}/", text=text)
        else:
            found[prefix + key] = dataset_in(parent, key, where, text=text)
    return found


def attributes_of(item: h5py.Group | h5py.Dataset, where: str) -> dict[str, Any]:
    """All attributes of a group or dataset as plain Python values: bytes decoded, NumPy arrays converted to lists.

    Raises:
        DemoFormatError: there are more than `MAX_ATTRIBUTES`, or the value of one is neither text nor numbers.
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
    if isinstance(value, np.floating):  # also long doubles, whose item() does not return a Python float
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
