"""Checksums of a demo's content, stored with it, since HDF5 itself does not detect a flipped bit in its data."""

import json
import zlib
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

import h5py
import numpy as np

from robopolicy.demos.guarded import attributes_of, datasets_below, group_in
from robopolicy.demos.packing import CHECKSUMS
from robopolicy.demos.schema import json_object
from robopolicy.types import STEP_ARRAYS, Demo, DemoFormatError

DEMOS_ONLY = "crc32"
"""The attribute `checksums` of a file of version 0.1.0."""


def with_checksums(demo: Demo) -> Demo:
    """The demo with the attribute that `verified` compares; an existing one is replaced."""
    return replace(demo, attributes={**demo.attributes, CHECKSUMS: json.dumps(_checksums(demo))})


def verified(demo: Demo, where: str, *, unread: Collection[str] = (), expected: bool = False) -> Demo:
    """Compare a demo with its checksums; returns the demo without the checksum attribute.

    Args:
        demo: as it was read.
        where: begins the message.
        unread: names of arrays in the file that were not read, such as `obs/front`; they are not compared.
        expected: whether every demo of the file must have checksums.

    Raises:
        DemoFormatError: a part has changed since it was written, or is missing.
    """
    if CHECKSUMS not in demo.attributes and not expected:
        return demo
    bare = replace(demo, attributes={key: value for key, value in demo.attributes.items() if key != CHECKSUMS})
    written = _parsed(demo.attributes.get(CHECKSUMS))
    found = _checksums(bare)
    missing = written.keys() - found.keys() - set(unread)
    changed = sorted(missing | {key for key in found if written.get(key) != found[key]})
    if changed or "actions" not in written:
        parts = ", ".join(changed) if "actions" in written else CHECKSUMS
        raise DemoFormatError(
            f"{where}: {parts} changed since it was written; copy the file again, or, if the change was meant, delete "
            f"the attribute {CHECKSUMS} of the demo and of data"
        )
    return bare


def seal_of(file: h5py.File, where: str) -> str:
    """The attribute `checksums` of a whole file: CRC-32 of its attributes, its masks and the names of its demos."""
    data = group_in(file, "data", where)
    facts = attributes_of(file, where) | attributes_of(data, where)
    facts.pop(CHECKSUMS, None)
    masks = datasets_below(group_in(file, "mask", where), where, text=True) if "mask" in file else {}
    members = {key: np.atleast_1d(names[()]).tolist() for key, names in masks.items()}
    return json.dumps({"file": _crc_text({"facts": facts, "masks": members, "demos": sorted(data)})})


def require_seal(file: h5py.File, where: str) -> bool:
    """Whether the file has checksums; files of an earlier version have them for demos only, not for the whole file.

    Raises:
        DemoFormatError: an attribute, a mask or the list of demos changed since it was written.
    """
    attributes = attributes_of(group_in(file, "data", where), where)
    written = attributes.get(CHECKSUMS)
    # A bit flip in the attribute's own name would otherwise look like a file whose checksums were deleted on purpose.
    renamed = written is None and any(map(_is_flipped_name, attributes))
    if renamed or written not in (None, DEMOS_ONLY, seal_of(file, where)):
        raise DemoFormatError(
            f"{where}: attributes, masks or the list of demos changed since it was written; copy the file again, or, if the "
            f"change was meant, delete the attribute {CHECKSUMS} of data"
        )
    return written is not None


def _is_flipped_name(name: str) -> bool:
    """Whether the name is `checksums` with one bit changed."""
    found, right = name.encode(errors="surrogateescape"), CHECKSUMS.encode()
    return len(found) == len(right) and sum((a ^ b).bit_count() for a, b in zip(found, right, strict=True)) == 1


def _checksums(demo: Demo) -> dict[str, int]:
    """CRC-32 of every array as the file stores it, and of all other fields of the demo, under `attributes`."""
    arrays = {"actions": demo.actions, **{f"obs/{key}": values for key, values in demo.obs.items()}}
    arrays |= {key: getattr(demo, key) for key in STEP_ARRAYS if getattr(demo, key) is not None}
    described = {"instruction": demo.instruction, "seed": demo.seed, **demo.attributes}
    return {key: checksum(values) for key, values in arrays.items()} | {"attributes": _crc_text(described)}


def _parsed(text: Any) -> dict[str, Any]:
    """The attribute as a dictionary; empty if the attribute itself is damaged."""
    try:
        return json_object(text, CHECKSUMS)
    except DemoFormatError:
        return {}


def checksum(values: np.ndarray) -> int:
    """CRC-32 of an array as the file stores it, of its shape and of its type."""
    stored = values.astype(np.int64) if values.dtype == bool else values
    content = np.ascontiguousarray(stored).reshape(-1).view(np.uint8)  # reshape(-1): `view` needs an axis
    return zlib.crc32(content.data, zlib.crc32(f"{stored.dtype}{stored.shape}".encode()))


def _crc_text(described: Mapping[str, Any]) -> int:
    stored = {key: value for key, value in described.items() if value is not None and key != CHECKSUMS}
    return zlib.crc32(json.dumps(stored, sort_keys=True, default=_as_read).encode())


def _as_read(value: Any) -> Any:
    """An attribute's value as it will be read back."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    return value.decode() if isinstance(value, bytes) else str(value)
