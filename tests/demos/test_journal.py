"""JournaledFile: changes take effect all at once, whatever instant the process dies at."""

import os
from pathlib import Path

import h5py
import pytest

from robopolicy.demos.journal import FileInUseError, JournaledFile, journal_of, recover


@pytest.fixture
def small_file(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(b"0123456789")
    return path


def test_nothing_changes_before_commit(small_file):
    """A reader would see half an index while the writer is at it."""
    file = JournaledFile(small_file)
    file.seek(2)
    file.write(memoryview(b"ABCDEFGHIJKL"))
    assert small_file.read_bytes()[:10] == b"0123456789"
    file.commit()
    assert small_file.read_bytes() == b"01ABCDEFGHIJKL"
    file.close()


def test_reads_see_what_was_written(small_file):
    """HDF5 reads back metadata that it wrote and evicted from its cache."""
    file = JournaledFile(small_file)
    for place, text in ((3, b"xyz"), (4, b"Q"), (9, b"end")):
        file.seek(place)
        file.write(memoryview(text))
    file.seek(1)
    assert file.read(11) == b"12xQz678end"
    assert file.seek(0, os.SEEK_END) == 12
    file.close()
    assert small_file.read_bytes()[:10] == b"0123456789", "closing without commit drops the changes"


def test_a_second_writer_is_refused(small_file):
    """Two writers would destroy each other's index."""
    first = JournaledFile(small_file)
    with pytest.raises(FileInUseError, match="another process"):
        JournaledFile(small_file)
    first.close()
    JournaledFile(small_file).close()


def test_a_torn_journal_is_dropped(small_file):
    """A journal cut short by the kill describes only part of the commit; applying it would corrupt the file."""
    journal_of(small_file).write_bytes(b"\x00" * 11)
    recover(small_file)
    assert small_file.read_bytes() == b"0123456789"
    assert not journal_of(small_file).exists()


def _append(path: Path, count: int) -> None:
    """Add groups to an HDF5 file, one commit each, and note each finished one in a file beside it."""
    raw = JournaledFile(path)
    file = h5py.File(raw, "r+")
    for _ in range(count):
        number = len(file["data"])
        group = file["data"].create_group(str(number))
        group.create_dataset("actions", data=[number] * 50)
        group.attrs["note"] = "a string in the global heap"
        file["data"].attrs["total"] = number + 1
        file.flush()
        raw.commit()
        path.with_suffix(".done").write_text(str(number + 1))
    file.close()
    raw.commit()
    raw.close()


def _in_a_child(path: Path, count: int, fatal_write: int, torn: bool) -> bool:
    """Append in a forked process that dies at its n-th write, or halfway through it; whether it came to an end."""
    child = os.fork()
    if child == 0:
        real, left = os.pwrite, fatal_write

        def dying(fd: int, data: memoryview, address: int) -> int:
            nonlocal left
            if left == 0:
                real(fd, data[: len(data) // 2 if torn else 0], address)
                os._exit(9)
            left -= 1
            return real(fd, data, address)

        os.pwrite = dying
        try:
            _append(path, count)
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("torn", [False, True])
def test_death_at_any_write_leaves_the_state_before_or_after_a_commit(tmp_path, monkeypatch, torn):
    """HDF5 updates its index in several writes; between two of them a plain file doesn't open, or lacks demos."""
    monkeypatch.setattr(os, "fsync", lambda _: None)  # the death of a process loses nothing that it wrote
    path, done = tmp_path / "demos.hdf5", tmp_path / "demos.done"
    with h5py.File(path, "w") as file:
        file.create_group("data").attrs["total"] = 0
    _append(path, 7)
    before = path.read_bytes()
    fatal = 0
    finished = False
    while not finished:  # two more groups: the eighth fits HDF5's index node, the ninth splits it
        path.write_bytes(before)
        done.write_text("7")
        finished = _in_a_child(path, 2, fatal, torn)
        recover(path)
        with h5py.File(path, "r") as file:
            numbers = sorted(int(name) for name in file["data"])
            assert numbers == list(range(len(numbers)))
            assert int(done.read_text()) <= len(numbers), f"a finished group is lost by a death at write {fatal}"
            assert file["data"].attrs["total"] == len(numbers)
            for number in numbers:
                assert (file["data"][str(number)]["actions"][()] == number).all()
                assert file["data"][str(number)].attrs["note"] == "a string in the global heap"
        fatal += 1
    assert fatal > 30
