"""Access to the large keys of demos (images, tokens), either in memory or read from disk for each batch."""

import math
import os
import sys
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import TypeAlias, cast

import h5py
import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from robopolicy.demos.guarded import damage_named
from robopolicy.types import DemoFormatError


class Recycler:
    """Host memory for batches, reused as soon as no tensor refers to it.

    A batch of images takes tens of megabytes. The C library returns that memory to the system whenever a batch is freed,
    and the page faults on a new batch take longer than filling it. A tensor made from a NumPy array holds a reference to the
    array as long as the tensor or a view of it exists, so the array's reference count shows whether it can be reused.
    """

    def __init__(self) -> None:
        self._arrays: list[np.ndarray] = []
        self._unused = _references([np.empty(0)], 0)

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """An uninitialized tensor of this shape; pinned if there is a GPU to copy it to."""
        if torch.cuda.is_available():  # torch recycles pinned memory by itself
            return torch.empty(shape, dtype=dtype, pin_memory=True)
        size = math.prod(shape) * dtype.itemsize
        free = [place for place in range(len(self._arrays)) if _references(self._arrays, place) == self._unused]
        fitting = [place for place in free if self._arrays[place].nbytes == size]
        if not fitting:  # release all unused arrays, which have the wrong size
            self._arrays = [array for place, array in enumerate(self._arrays) if place not in free]
            self._arrays.append(np.empty(size, dtype=np.uint8))
            fitting = [len(self._arrays) - 1]
        return torch.from_numpy(self._arrays[fitting[0]]).view(dtype).view(shape)


def _references(arrays: list[np.ndarray], place: int) -> int:
    return sys.getrefcount(arrays[place])


class MemoryFrames:
    """All rows of one key as one tensor, on the model's device or in host memory; `shape` and `dtype` are those of a row."""

    def __init__(self, values: Tensor) -> None:
        self.values = values
        self.shape, self.dtype = tuple(values.shape[1:]), values.dtype
        self._recycler = Recycler()

    def gather(self, rows: Int[Tensor, "batch segment"]) -> Tensor:
        """These rows (B, S, *shape), on the device that holds all rows."""
        requested = rows.reshape(-1).to(self.values.device)
        if self.values.device.type != "cpu":
            return self.values.index_select(0, requested).view(*rows.shape, *self.shape)
        batch = self._recycler.empty((*rows.shape, *self.shape), self.dtype)
        torch.index_select(self.values, 0, requested, out=batch.view(-1, *self.shape))
        return batch


class DiskFrames:
    """All rows of one key, left in the demo files; threads read and decompress the rows of each batch.

    Nothing is memory-mapped or cached, so the resident memory is that of a few batches, whatever the size of the files. Rows
    stored contiguously are read directly into the batch. Gzip chunks are read and decompressed without HDF5, which releases
    Python's global interpreter lock. Rows stored in any other way are read through HDF5, one thread at a time.
    """

    def __init__(self, readers: Sequence["RowReader"], threads: int, files: Sequence["Descriptor"] = ()) -> None:
        self._readers, self._files = list(readers), list(files)
        self._starts = np.concatenate([[0], np.cumsum([reader.length for reader in readers])])
        self.shape = readers[0].shape
        self.dtype = torch_type(readers[0].dtype)
        self._recycler = Recycler()
        self._pool = ThreadPoolExecutor(max_workers=max(1, threads), thread_name_prefix="demo-reader")

    def gather(self, rows: Int[Tensor, "batch segment"]) -> Tensor:
        """These rows (B, S, *shape), in host memory; the rows of a segment must ascend and belong to one demo."""
        for file in self._files:
            file.require_unchanged()
        requested = rows.cpu().numpy()
        batch = self._recycler.empty((*rows.shape, *self.shape), self.dtype)
        demos = np.searchsorted(self._starts, requested[:, 0], side="right") - 1
        local = requested - self._starts[demos][:, None]
        # One task per thread, not per segment: submitting a task costs as much as reading a few frames.
        shares = np.array_split(np.arange(len(requested)), self._pool._max_workers)
        into = batch.numpy()

        def fill(share: np.ndarray) -> None:
            for segment in share:
                self._readers[demos[segment]].read(local[segment], into[segment])

        list(self._pool.map(fill, shares))
        return batch


Frames: TypeAlias = MemoryFrames | DiskFrames
"""The rows of one key, of all demos one after another."""


class RowReader:
    """Reads rows of one dataset into an array that the caller provides."""

    def __init__(self, dataset: h5py.Dataset, where: str) -> None:
        self.length, self.shape, self.dtype = len(dataset), dataset.shape[1:], dataset.dtype.newbyteorder("=")
        self._where = where
        self._row_bytes = math.prod(self.shape) * self.dtype.itemsize

    def read(self, rows: np.ndarray, into: np.ndarray) -> None:
        """Fill `into` (n, *shape) with these ascending rows."""
        raise NotImplementedError


def torch_type(dtype: np.dtype) -> torch.dtype:
    """The torch dtype of a NumPy dtype, for any byte order."""
    return torch.from_numpy(np.empty(0, dtype=dtype.newbyteorder("="))).dtype


class Descriptor:
    """A file descriptor that several readers share; it detects whether the file has changed since it was opened."""

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)
        self.number = os.open(path, os.O_RDONLY)
        self._state = self._now()

    def require_unchanged(self) -> None:
        """Refuse a file whose size or modification time has changed since it was opened.

        Raises:
            DemoFormatError: the file has changed, so that rows read from now on may not match those read before.
        """
        if self._now() != self._state:
            raise DemoFormatError(
                f"{self._path.name}: the file was written to while it was read; start again when it is complete"
            )

    def _now(self) -> tuple[int, int]:
        status = os.fstat(self.number)
        return status.st_size, status.st_mtime_ns

    def __del__(self) -> None:
        os.close(self.number)


def row_reader(dataset: h5py.Dataset, file: Descriptor, where: str) -> RowReader:
    """The fastest reader that supports the dataset's storage layout.

    Args:
        dataset: a dataset with one row per step.
        file: the file that holds the dataset.
        where: the beginning of error messages.
    """
    with damage_named(where):
        native = dataset.dtype.isnative and dataset.dtype.kind in "biuf"
        if native and dataset.chunks is None and dataset.id.get_offset() is not None:
            return ContiguousReader(dataset, file, where)
        whole_rows = dataset.chunks is not None and dataset.chunks[1:] == dataset.shape[1:]
        gzip_only = dataset.compression == "gzip" and not dataset.shuffle and not dataset.fletcher32
        if native and whole_rows and gzip_only and dataset.scaleoffset is None:
            return GzipReader(dataset, file, where)
        return LibraryReader(dataset, where)


class ContiguousReader(RowReader):
    """Rows stored contiguously in the file, read without HDF5."""

    def __init__(self, dataset: h5py.Dataset, file: Descriptor, where: str) -> None:
        super().__init__(dataset, where)
        self._file, self._offset = file, dataset.id.get_offset()

    def read(self, rows: np.ndarray, into: np.ndarray) -> None:
        """See `RowReader`."""
        breaks = np.flatnonzero(np.diff(rows) != 1) + 1
        for first, last in pairwise([0, *breaks.tolist(), len(rows)]):
            target = into[first:last].reshape(-1).view(np.uint8).data
            place = self._offset + int(rows[first]) * self._row_bytes
            if os.preadv(self._file.number, [target], place) != len(target):
                raise DemoFormatError(f"{self._where}: the file ends before row {rows[last - 1]}; it is cut short")


class GzipReader(RowReader):
    """Rows in gzip-compressed chunks of whole rows without other filters, read and decompressed without HDF5."""

    def __init__(self, dataset: h5py.Dataset, file: Descriptor, where: str) -> None:
        super().__init__(dataset, where)
        self._file, self._frames = file, cast(tuple[int, ...], dataset.chunks)[0]
        self._chunk_bytes = self._frames * self._row_bytes
        self._chunks: dict[int, tuple[int, int, int]] = {}
        self._blank = np.full((self._frames, *self.shape), dataset.fillvalue, dtype=self.dtype)

        def note(chunk: h5py.h5d.StoreInfo) -> None:
            place = (chunk.byte_offset, chunk.size, chunk.filter_mask)
            self._chunks[chunk.chunk_offset[0] // self._frames] = place

        dataset.id.chunk_iter(note)

    def read(self, rows: np.ndarray, into: np.ndarray) -> None:
        """See `RowReader`."""
        chunks = rows // self._frames
        for chunk in np.unique(chunks):
            mine = chunks == chunk
            into[mine] = self._unpacked(int(chunk))[rows[mine] - chunk * self._frames]

    def _unpacked(self, chunk: int) -> np.ndarray:
        if chunk not in self._chunks:
            return self._blank
        offset, size, filter_mask = self._chunks[chunk]
        packed = os.pread(self._file.number, size, offset)
        try:
            # The output length is limited, since a damaged or malicious chunk may decompress to any size.
            stream = zlib.decompressobj()
            raw = packed if filter_mask else stream.decompress(packed, self._chunk_bytes + 1)
        except zlib.error as error:
            raise DemoFormatError(f"{self._where}: chunk {chunk} is damaged ({error})") from error
        if len(raw) != self._chunk_bytes:
            raise DemoFormatError(f"{self._where}: chunk {chunk} holds {len(raw)} bytes; expected {self._chunk_bytes}")
        if not (filter_mask or stream.eof):
            raise DemoFormatError(f"{self._where}: chunk {chunk} is damaged (its checksum is missing)")
        return np.frombuffer(raw, dtype=self.dtype).reshape(self._frames, *self.shape)


class LibraryReader(RowReader):
    """Rows read through the HDF5 library, which allows only one thread at a time."""

    def __init__(self, dataset: h5py.Dataset, where: str) -> None:
        super().__init__(dataset, where)
        self._dataset = dataset

    def read(self, rows: np.ndarray, into: np.ndarray) -> None:
        """See `RowReader`."""
        first = int(rows[0])
        with damage_named(self._where):
            into[:] = self._dataset[first : int(rows[-1]) + 1][rows - first]
