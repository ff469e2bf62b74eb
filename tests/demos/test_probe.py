"""Files of unknown origin: none may harm, stall or mislead the process that opens them."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from robopolicy.demos import probe
from robopolicy.demos.probe import UnsafeFileError, examine, open_hdf5
from robopolicy.types import DemoFormatError


@pytest.fixture
def file(tmp_path):
    """Path of a small sound file."""
    path = tmp_path / "demos.hdf5"
    with h5py.File(path, "w") as sound:
        sound["data/demo_0/actions"] = np.arange(12.0).reshape(6, 2)
    return path


def test_a_sound_file_opens(file):
    """Guards against: a sound file that is refused."""
    with open_hdf5(file) as opened:
        assert opened["data/demo_0/actions"].shape == (6, 2)


def test_a_verdict_is_remembered_until_the_file_changes(file, monkeypatch):
    """Guards against: a file replaced in the meantime that is not examined again, or one that is examined at each opening."""
    asked = []
    monkeypatch.setattr(probe._examiner, "ask", lambda path, limit: asked.append(path) or None)
    examine(file)
    examine(file)
    assert len(asked) == 1
    os.utime(file, ns=(1, 1))
    examine(file)
    assert len(asked) == 2


@pytest.mark.parametrize("size", [0, 100, 2000])
def test_a_file_cut_short_is_refused_in_one_line(file, size):
    """Guards against: an interrupted copy, the most common damage, that ends in a traceback."""
    file.write_bytes(file.read_bytes()[:size])
    with pytest.raises(DemoFormatError, match=r"^demos.hdf5: [^\n]*$"):
        examine(file)


def test_a_missing_file_is_said_to_be_missing(tmp_path):
    """Guards against: a missing file reported as damaged."""
    with pytest.raises(DemoFormatError, match="no such file"):
        examine(tmp_path / "none.hdf5")


def test_a_file_that_reads_other_files_is_refused(file, tmp_path):
    """Guards against: external storage, links and virtual data sets that put /etc/passwd among the observations."""
    secret = tmp_path / "secret"
    secret.write_bytes(bytes(48))
    other = tmp_path / "other.hdf5"
    with h5py.File(other, "w") as target:
        target["x"] = np.zeros(6)
    layout = h5py.VirtualLayout((6,), float)
    layout[:] = h5py.VirtualSource(str(other), "x", (6,))
    tricks = {
        "external storage": lambda group: group.create_dataset("a", (6,), "f8", external=[(str(secret), 0, 48)]),
        "external link": lambda group: group.__setitem__("a", h5py.ExternalLink(str(other), "/x")),
        "soft link": lambda group: group.__setitem__("a", h5py.SoftLink("/data")),
        "virtual": lambda group: group.create_virtual_dataset("a", layout),
    }
    for name, trick in tricks.items():
        path = tmp_path / f"{name}.hdf5"
        with h5py.File(path, "w") as hostile:
            trick(hostile.create_group("data"))
        with pytest.raises(UnsafeFileError, match=r"data/a is .*; refused, since it may read any file here"):
            examine(path)


def test_terabytes_declared_in_kilobytes_are_refused(tmp_path):
    """Guards against: a small file that declares terabytes, which end the process."""
    path = tmp_path / "huge.hdf5"
    with h5py.File(path, "w") as hostile:
        hostile.create_dataset("data/demo_0/actions", (2**39,), "f8", chunks=(2**16,), compression="gzip")
    with pytest.raises(UnsafeFileError, match=r"declares 4398046511104 bytes, .* the file holds \d+; refused"):
        examine(path)


def test_a_ring_of_hard_links_ends(tmp_path):
    """Guards against: a group that contains itself, which would be walked for ever."""
    path = tmp_path / "ring.hdf5"
    with h5py.File(path, "w") as hostile:
        group = hostile.create_group("data")
        group["data"] = group
    with pytest.raises(UnsafeFileError, match="data has another name too; refused"):
        examine(path)


def test_a_file_that_crashes_the_library_is_refused_and_the_next_one_is_read(file, tmp_path, monkeypatch):
    """Guards against: a fault inside the HDF5 library, which would take the training run, or the robot's log, with it."""

    def crash(path: str, alive: object) -> None:
        if path.endswith("bad.hdf5"):
            os.kill(os.getpid(), signal.SIGSEGV)

    monkeypatch.setattr(probe, "fault", crash)
    bad = tmp_path / "bad.hdf5"
    assert "crashed on it (signal 11)" in (probe._in_child(str(bad), 10.0) or "")
    assert probe._in_child(str(file), 10.0) is None


def test_a_file_that_stalls_its_reader_is_refused_in_time(file, monkeypatch):
    """Guards against: a loop in a damaged index, which would hang the command for ever."""
    monkeypatch.setattr(probe, "fault", lambda path, alive: time.sleep(60))
    start = time.monotonic()
    assert "no progress in reading it for 0.2 s" in (probe._in_child(str(file), 0.2) or "")
    assert time.monotonic() - start < 10


def test_a_large_file_may_take_longer_than_the_limit_on_silence(file, monkeypatch):
    """Guards against: a limit on the whole, which would refuse ten thousand sound demos on a slow disk."""

    def slow(path: str, alive: Callable[[], object]) -> None:
        for _ in range(8):
            time.sleep(0.05)
            alive()

    monkeypatch.setattr(probe, "fault", slow)
    assert probe._in_child(str(file), 0.3) is None


def test_the_examiner_is_started_anew_after_it_was_killed(file, tmp_path):
    """Guards against: a command that is stuck with a helper killed under memory pressure."""
    examine(file)
    process = probe._examiner._process
    assert process is not None
    process.kill()
    process.wait()
    second = Path(tmp_path / "second.hdf5")
    second.write_bytes(file.read_bytes())
    examine(second)
