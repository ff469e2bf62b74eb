"""Wide rows from memory and from the disk: the same bytes, whatever way they are stored."""

import os
import zlib
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from robopolicy.demos.frames import (
    ContiguousReader,
    Descriptor,
    DiskFrames,
    GzipReader,
    LibraryReader,
    MemoryFrames,
    row_reader,
)
from robopolicy.demos.hdf5 import DemoFile
from robopolicy.demos.rows import load_rows
from robopolicy.types import DemoFormatError

PICTURES = np.random.default_rng(0).integers(0, 256, (21, 6, 5, 3), dtype=np.uint8)
WAYS = {
    "contiguous": ({}, ContiguousReader),
    "gzip": ({"chunks": (8, 6, 5, 3), "compression": "gzip"}, GzipReader),
    "gzip, one chunk": ({"chunks": (21, 6, 5, 3), "compression": "gzip"}, GzipReader),
    "shuffled": ({"chunks": (8, 6, 5, 3), "compression": "gzip", "shuffle": True}, LibraryReader),
    "lzf": ({"chunks": (4, 6, 5, 3), "compression": "lzf"}, LibraryReader),
    "split rows": ({"chunks": (8, 3, 5, 3), "compression": "gzip"}, LibraryReader),
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    with h5py.File(tmp_path / "a.hdf5", "w") as file:
        for way, (options, _) in WAYS.items():
            file.create_dataset(way, data=PICTURES, **options)
        file.create_dataset("big-endian", data=PICTURES[:, 0, 0].astype(">f4"))
        file.create_dataset("unwritten", (21, 6), "f4", chunks=(8, 6), compression="gzip", fillvalue=0.5)
    return tmp_path / "a.hdf5"


@pytest.mark.parametrize("way", WAYS)
def test_rows_are_the_same_however_they_are_stored(path, way):
    """Guards against: an offset that gives another frame, since reading bypasses HDF5."""
    with h5py.File(path, "r") as file:
        reader = row_reader(file[way], Descriptor(path), "a.hdf5")
        assert isinstance(reader, WAYS[way][1])
        disk = DiskFrames([reader, reader], threads=2)
        rows = torch.tensor([[0, 1, 2, 3], [6, 7, 8, 9], [18, 20, 20, 20], [23, 25, 27, 29], [41, 41, 41, 41]])
        expected = MemoryFrames(torch.from_numpy(np.concatenate([PICTURES, PICTURES]))).gather(rows)
        assert torch.equal(disk.gather(rows), expected)
        assert disk.shape == (6, 5, 3)


def test_foreign_byte_order_and_unwritten_chunks_are_read_as_hdf5_reads_them(path):
    """Guards against: big-endian floats read as they lie, or chunks never written that don't hold the fill value."""
    with h5py.File(path, "r") as file:
        rows = np.array([3, 4])
        into = np.empty((2, 3), dtype=np.float32)
        row_reader(file["big-endian"], Descriptor(path), "a.hdf5").read(rows, into)
        np.testing.assert_array_equal(into, PICTURES[3:5, 0, 0].astype(np.float32))
        blank = np.empty((2, 6), dtype=np.float32)
        row_reader(file["unwritten"], Descriptor(path), "a.hdf5").read(rows, blank)
        assert (blank == 0.5).all()


def test_damaged_data_is_reported_not_returned(path):
    """Guards against: garbage images, which would train silently."""
    with h5py.File(path, "r") as file:
        chunk = file["gzip"].id.get_chunk_info(1)
        contiguous = file["contiguous"]
        readers = [row_reader(file[way], Descriptor(path), f"a.hdf5: {way}") for way in ("gzip", "contiguous")]
        end = contiguous.id.get_offset() + contiguous.nbytes
    content = bytearray(path.read_bytes())
    bomb = zlib.compress(bytes(8 * 90 + 1)).ljust(chunk.size, b"\x00")
    into = np.empty((1, 6, 5, 3), dtype=np.uint8)
    for damage, message in ((bytes(chunk.size), "chunk 1 is damaged"), (bomb, "chunk 1 holds 721 bytes; expected 720")):
        content[chunk.byte_offset : chunk.byte_offset + chunk.size] = damage
        path.write_bytes(content)
        with pytest.raises(DemoFormatError, match=f"^a.hdf5: gzip: {message}"):
            readers[0].read(np.array([9]), into)
    path.write_bytes(content[: end - 1])
    with pytest.raises(DemoFormatError, match=r"^a.hdf5: contiguous: the file ends before row 20"):
        readers[1].read(np.array([20]), into)


@pytest.mark.parametrize("placement", ["disk", "host"])
def test_a_file_overwritten_while_it_is_read_is_noticed(tiny_demos, tmp_path, monkeypatch, placement):
    """Guards against: a training that goes to its end on the rows of two data sets."""
    path = tmp_path / "a.hdf5"
    path.write_bytes(tiny_demos.read_bytes())
    with DemoFile(path) as file:
        if placement == "host":
            read = DemoFile.read

            def overwriting(self, name, keys=None):
                os.utime(path, ns=(1, 1))
                return read(self, name, keys)

            monkeypatch.setattr(DemoFile, "read", overwriting)
            with pytest.raises(DemoFormatError, match=r"a.hdf5: the file was written to while it was read"):
                load_rows([(file, file.names)], ("front",), placement="host")
            return
        rows = load_rows([(file, file.names)], ("front",), placement="disk")
        rows.large["front"].gather(torch.arange(4).view(2, 2))
        with path.open("r+b") as raw:
            raw.seek(0)
            raw.write(raw.read(8))
        os.utime(path, ns=(1, 1))
        with pytest.raises(DemoFormatError, match=r"a.hdf5: the file was written to while it was read"):
            rows.large["front"].gather(torch.arange(4).view(2, 2))
