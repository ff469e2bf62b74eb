"""HDF5 files from strangers, opened so that they can neither read other files nor fill the memory.

An HDF5 file may point into other files (external links, external storage, virtual datasets) and may declare terabytes
in a few bytes. Every access to a file that we did not write in this process goes through `open_checked`, `group_in`
and `dataset_in`; they refuse such objects in one line. A file that crashes the HDF5 library itself is not caught here.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from robopolicy.demos.parts import parts_folder
from robopolicy.types import DemoFormatError

SIGNATURE = b"\x89HDF\r\n\x1a\n"
"""First bytes of an HDF5 file (HDF5 file format specification, version 0 superblock)."""
SMALL_BYTES = 2**30
"""A dataset up to this size is read whatever it is packed in."""
GREATEST_RATIO = 1100
"""Deflate packs at most 1032 : 1 (zlib technical notes); a large dataset that claims more is not really there."""
GREATEST_DEPTH = 8
"""Groups nested deeper than this are refused; links may form a ring."""

BROKEN = (OSError, RuntimeError, KeyError, ValueError, TypeError, OverflowError, MemoryError, UnicodeError)
"""What h5py raises on damaged files."""


def open_checked(path: str | Path) -> h5py.File:
    """An HDF5 file opened for reading; nothing is ever written.

    Raises:
        DemoFormatError: there is no such file, or it is empty, not HDF5, or cut short.
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
        reason = " ".join(str(error).split())
        if "truncated" in reason:
            reason = f"cut short at {size} bytes; copy it again from its source"
        elif "lock" in reason:
            reason = "another process is writing it; try again when it is done"
        else:
            reason = f"damaged ({reason})"
        raise DemoFormatError(f"{path.name}: {reason}") from error


def require_file(path: Path) -> None:
    """Refuse what is not a file, or a link to one.

    Raises:
        DemoFormatError: in one line; it names the parts that an unfinished writer left.
    """
    if not path.is_file():
        parts = parts_folder(path)
        more = f"; demos of a writer that did not finish are in {parts.name}, resume it" if parts.is_dir() else ""
        raise DemoFormatError(f"{path}: no such file{more}")


@contextmanager
def damage_named(where: str) -> Iterator[None]:
    """Turn whatever h5py raises on damaged data into one line that begins with `where`."""
    try:
        yield
    except DemoFormatError:
        raise
    except BROKEN as error:
        raise DemoFormatError(f"{where}: damaged ({' '.join(str(error).split())})") from error


def group_in(parent: h5py.Group, key: str, where: str) -> h5py.Group:
    """The group `key` of `parent`; `where` begins the message if it is missing, damaged, or elsewhere."""
    found = _child(parent, key, where)
    if not isinstance(found, h5py.Group):
        raise DemoFormatError(f"{where}: {key} is a dataset; expected a group")
    return found


def dataset_in(parent: h5py.Group, key: str, where: str) -> h5py.Dataset:
    """The numeric dataset `key` of `parent`, whose data is in this very file and no larger than it can be.

    Raises:
        DemoFormatError: missing (what is there is listed), stored elsewhere, not numeric, or too large to be real.
    """
    found = _child(parent, key, where)
    if not isinstance(found, h5py.Dataset):
        raise DemoFormatError(f"{where}: {key} is a group; expected a dataset")
    with damage_named(f"{where}: {key}"):
        if found.is_virtual or found.external:
            raise DemoFormatError(f"{where}: {key} is stored in another file; refused, since it may read any file here")
        if found.dtype.kind not in "biufS" or found.shape is None:
            raise DemoFormatError(f"{where}: {key} has type {found.dtype}; expected numbers")
        declared, stored = found.nbytes, found.id.get_storage_size()
        if declared > SMALL_BYTES and declared > GREATEST_RATIO * stored:
            raise DemoFormatError(f"{where}: {key} declares {declared} bytes but holds {stored}; refused")
    return found


def datasets_below(parent: h5py.Group, where: str, prefix: str = "") -> dict[str, h5py.Dataset]:
    """All datasets below a group by their path, nested groups as `outer/inner`, sorted by name."""
    if prefix.count("/") > GREATEST_DEPTH:
        raise DemoFormatError(f"{where}: groups nested more than {GREATEST_DEPTH} deep at {prefix}; refused")
    found: dict[str, h5py.Dataset] = {}
    for key in keys_of(parent, where):
        if isinstance(_child(parent, key, where), h5py.Group):
            found |= datasets_below(group_in(parent, key, where), where, f"{prefix}{key}/")
        else:
            found[prefix + key] = dataset_in(parent, key, where)
    return found


def keys_of(parent: h5py.Group, where: str) -> list[str]:
    """The names in a group, sorted."""
    with damage_named(where):
        return sorted(parent.keys())


def attributes_of(item: h5py.Group, where: str) -> dict[str, Any]:
    """All attributes of a group as plain Python values: bytes decoded, NumPy scalars unpacked."""
    with damage_named(f"{where}: attributes"):
        return {key: _plain(value) for key, value in item.attrs.items()}


def _child(parent: h5py.Group, key: str, where: str) -> Any:
    with damage_named(f"{where}: {key}"):
        link = parent.get(key, getlink=True)
        if link is None:
            there = ", ".join(sorted(parent.keys())) or "nothing"
            raise DemoFormatError(f"{where}: no {key}; it has: {there}")
        if not isinstance(link, h5py.HardLink):
            raise DemoFormatError(f"{where}: {key} is a link to elsewhere; refused, since it may read any file here")
        return parent[key]


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, np.ndarray):
        return [_plain(item) for item in value.tolist()]
    return value
