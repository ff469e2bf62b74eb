"""The token file beside a demo file: `robopolicy encode` writes `demos.tokens.hdf5`, and `DemoFile` reads both.

    data                      attributes: token_encoder (JSON: which backbone made the tokens), checksums
    data/demo_<i>             attributes: num_samples, token_valid (N,) with 0 where a token is padding, source (identifies
                              the demo's content), checksums
    data/demo_<i>/tokens      (T, N, D) float16

If a demo has changed since its tokens were made, its `source` no longer matches, and the tokens are refused.
"""

import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from jaxtyping import Bool, Float16

from robopolicy.demos.checksums import checksum, require_seal
from robopolicy.demos.guarded import attributes_of, dataset_in, group_in
from robopolicy.demos.packing import CHECKSUMS, write_rows
from robopolicy.demos.parts import PartWriter, file_or_first_part
from robopolicy.demos.probe import open_hdf5
from robopolicy.demos.schema import is_integer, json_object, list_of
from robopolicy.types import TOKEN_VALID_KEY, TOKENS_KEY, Demo, DemoFormatError

IDENTITY = "token_encoder"
"""Attribute of the file: JSON with the backbone, the cameras and the template that the tokens were made with."""
SOURCE = "source"
"""Attribute of a demo's tokens: `mark_of` the demo."""


def tokens_beside(path: str | Path) -> Path:
    """Path of the token file of a demo file: `demos.hdf5` -> `demos.tokens.hdf5`."""
    return Path(path).with_suffix(".tokens.hdf5")


def mark_of(attributes: Mapping[str, Any], actions: np.ndarray) -> int:
    """A number that identifies a demo's content: the CRC-32 of its checksums, or of its actions if it has no checksums."""
    written = attributes.get(CHECKSUMS)
    return checksum(actions) if written is None else zlib.crc32(str(written).encode())


def encoder_described(identity: Mapping[str, Any]) -> str:
    """Describe a backbone for an error message, from the attribute `token_encoder`."""
    if not identity:
        return "an encoder that the file does not name"
    return f"{identity.get('model')} ({identity.get('weights')}) on {', '.join(identity.get('cameras', []))}"


class TokenFile:
    """A token file opened for reading.

    Raises:
        DemoFormatError: the file can't be read, or does not match its checksums.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = open_hdf5(path)
        try:
            self._data = group_in(self._file, "data", path.name)
            require_seal(self._file, path.name)
            self.identity = attributes_of(self._data, path.name).get(IDENTITY)
            """The attribute `token_encoder`, JSON text; None if missing."""
            if self.identity is not None:
                json_object(self.identity, f"{path.name}: {IDENTITY}")
        except BaseException:
            self._file.close()
            raise

    def __contains__(self, name: str) -> bool:
        return name in self._data

    def dataset(self, name: str) -> h5py.Dataset:
        """The tokens of a demo (T, N, D)."""
        return dataset_in(group_in(self._data, name, self.path.name), TOKENS_KEY, f"{self.path.name}, {name}")

    def valid(self, name: str) -> list[int]:
        """The demo's token mask (N,): 1 where a token is real, 0 where it is padding."""
        return self._attributes(name)[TOKEN_VALID_KEY]

    def require_match(self, demo: Demo, mark: int) -> None:
        """Refuse tokens that were not made from this demo, or that have changed since they were written.

        Args:
            demo: the demo, with its tokens.
            mark: `mark_of` the demo as it is now.

        Raises:
            DemoFormatError: the tokens were made from other content, or do not match their checksums.
        """
        stored, where = self._attributes(demo.name), f"{self.path.name}, {demo.name}"
        if stored.get(SOURCE) != mark:
            raise DemoFormatError(f"{where}: tokens of another demo than the demo file's; encode the demo file again")
        assert demo.tokens is not None
        if stored.get(CHECKSUMS) != _checksums(demo.tokens, stored[TOKEN_VALID_KEY]):
            raise DemoFormatError(f"{where}: tokens changed since they were written; copy the file, or encode it again")

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _attributes(self, name: str) -> dict[str, Any]:
        where = f"{self.path.name}, {name}"
        found = attributes_of(group_in(self._data, name, self.path.name), where)
        if missing := [key for key in (TOKEN_VALID_KEY, SOURCE, CHECKSUMS) if key not in found]:
            raise DemoFormatError(f"{where}: no attribute {missing[0]}; encode the demo file again")
        if not list_of(is_integer)(found[TOKEN_VALID_KEY]):
            raise DemoFormatError(f"{where}: {TOKEN_VALID_KEY} is not a list of 0 and 1; encode the demo file again")
        return found


class TokenWriter(PartWriter):
    """Writes a token file, demo by demo, safe against crashes like every `PartWriter`; an existing file is always resumed.

    Args:
        path: the token file.
        identity: describes the backbone that makes the tokens.
        marks: name of a demo -> `mark_of` it; existing tokens whose name and mark match none of these are not kept.

    Raises:
        DemoFormatError: the file holds tokens of a different backbone.
    """

    def __init__(self, path: Path, identity: Mapping[str, Any], marks: Mapping[str, int]) -> None:
        self._marks = marks
        text = json.dumps(identity)
        if (first := file_or_first_part(path)) is not None:
            with open_hdf5(first) as file:
                found = attributes_of(group_in(file, "data", path.name), path.name).get(IDENTITY, "{}")
            if found != text:
                raise DemoFormatError(
                    f"{first}: holds tokens of {encoder_described(json_object(found, first.name))}, not of "
                    f"{encoder_described(identity)}; remove it, or write another file with --out"
                )
        super().__init__(path, {IDENTITY: text, CHECKSUMS: ""}, resume=True)

    def write(
        self, name: str, tokens: Float16[np.ndarray, "time tokens width"], valid: Bool[np.ndarray, " tokens"]
    ) -> None:
        """Add the tokens of one demo, and their mask `valid` (True: real); they are on disk when this returns."""
        mask = valid.astype(np.int64).tolist()
        attributes = {
            "num_samples": len(tokens),
            TOKEN_VALID_KEY: mask,
            SOURCE: self._marks[name],
            CHECKSUMS: _checksums(tokens, mask),
        }

        def fill(group: h5py.Group) -> None:
            write_rows(group, TOKENS_KEY, tokens)
            for key, value in attributes.items():
                group.attrs[key] = value

        self._add({name: (fill, attributes)})

    def _keeps(self, name: str, attributes: Mapping[str, Any]) -> bool:
        return name in self._marks and attributes.get(SOURCE) == self._marks[name]


def _checksums(tokens: np.ndarray, valid: list[int]) -> str:
    return json.dumps({TOKENS_KEY: checksum(tokens), TOKEN_VALID_KEY: checksum(np.asarray(valid, np.int64))})
