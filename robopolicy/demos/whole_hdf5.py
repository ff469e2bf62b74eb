"""Writes HDF5 files atomically, even if the disk becomes full."""

import io
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import h5py

from robopolicy.files import replacing


def write_hdf5(path: Path, fill: Callable[[h5py.File], Iterable[object] | None]) -> None:
    """Write an HDF5 file under a temporary name, and rename it to `path` when it is complete.

    Args:
        path: the file; its folder must exist.
        fill: writes the content into the empty file. If it is a generator, it is stopped at the next `yield` after a write
            error, such as on a full disk.

    Raises:
        OSError: the first write error.
    """
    with replacing(path) as temporary, _DeferringFile(temporary, "r+b") as raw:
        try:
            with h5py.File(raw, "w") as file:
                for _ in fill(file) or ():
                    if raw.failure is not None:
                        break
        except Exception as error:
            raise raw.failure or error from error
        if raw.failure is not None:
            raise raw.failure


class _DeferringFile(io.FileIO):
    """A file for h5py's file-object driver whose write errors are raised only after HDF5 has finished.

    HDF5 can't handle a write error while it flushes or closes a file: the file stays open, and the process crashes when it
    ends. So after the first error, all writes go to memory, from which HDF5 can read them back, and `write_hdf5` raises the
    error after HDF5 has closed the file.
    """

    failure: OSError | None = None
    """The first write error."""

    def __init__(self, path: Path, mode: str) -> None:
        super().__init__(path, mode)
        self._kept: list[tuple[int, bytes]] = []

    def write(self, data: Any) -> int:
        view, start = memoryview(data), self.tell()
        try:
            if self.failure is None:
                done = 0
                while done < len(view):
                    done += super().write(view[done:]) or 0
                return len(view)
        except OSError as error:
            self.failure = error
        self._kept.append((start, bytes(view)))
        self.seek(start + len(view))
        return len(view)

    def readinto(self, buffer: Any) -> int:
        start, size = self.tell(), len(buffer)
        count = super().readinto(buffer) or 0
        buffer[count:] = bytes(size - count)
        for place, data in self._kept:
            low, high = max(start, place), min(start + size, place + len(data))
            if low < high:
                buffer[low - start : high - start] = data[low - place : high - place]
        self.seek(start + size)
        return size

    def truncate(self, size: int | None = None) -> int:
        try:
            return super().truncate(size)
        except OSError as error:
            self.failure = self.failure or error
            return size or 0
