"""Checksums of a demo's content, kept with it: HDF5 has none of its own, so a flipped bit in a file would pass as data."""

import json
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from robopolicy.demos.packing import STEP_ARRAYS
from robopolicy.types import Demo, DemoFormatError

ATTRIBUTE = "checksums"
"""Demo attribute: JSON, name of each part -> its CRC-32."""
LATER = ("tokens",)
"""Parts that may be added to a demo after it was written; not covered."""


def checksums_of(demo: Demo) -> dict[str, int]:
    """CRC-32 of every array as the file stores it, and of everything else that the demo says, as `attributes`."""
    arrays = {"actions": demo.actions, **{f"obs/{key}": values for key, values in demo.obs.items()}}
    arrays |= {key: getattr(demo, key) for key in STEP_ARRAYS if key not in LATER and getattr(demo, key) is not None}
    said = {"instruction": demo.instruction, "seed": demo.seed, **demo.attributes}
    return {key: _crc(values) for key, values in arrays.items()} | {"attributes": _crc_text(said)}


def verify(demo: Demo, expected: Mapping[str, Any], where: str) -> None:
    """Compare those parts that were read with what they were when they were written.

    Raises:
        DemoFormatError: a part differs.
    """
    found = checksums_of(demo)
    changed = sorted(key for key, value in found.items() if key in expected and expected[key] != value)
    if changed:
        raise DemoFormatError(
            f"{where}: {', '.join(changed)} changed since it was written; damaged, copy the file again"
        )


def _crc(values: np.ndarray) -> int:
    stored = values.astype(np.int64) if values.dtype == bool else values
    return zlib.crc32(np.ascontiguousarray(stored).data.cast("B"), zlib.crc32(f"{stored.dtype}{stored.shape}".encode()))


def _crc_text(said: Mapping[str, Any]) -> int:
    told = {key: value for key, value in said.items() if value is not None and key not in (ATTRIBUTE, "token_valid")}
    return zlib.crc32(json.dumps(told, sort_keys=True, default=str).encode())
