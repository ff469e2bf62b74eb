"""Writing the native demo file, such that nothing that was finished is ever lost."""

import errno
import os
import signal
import subprocess
import sys
import time

import h5py
import numpy as np
import pytest

from robopolicy.demos.hdf5 import DemoFile, DemoWriter
from robopolicy.types import Demo, DemoFormatError
from tests.demo_samples import assert_same


def test_pictures_are_packed_such_that_a_window_reads_few_chunks(tmp_path, make_demo):
    """One chunk per demo would unpack 500 frames for a window of 10; one per frame costs a read each."""
    with DemoWriter(tmp_path / "a.hdf5") as writer:
        writer.write(make_demo(0, steps=50, image_size=16))
    with h5py.File(tmp_path / "a.hdf5", "r") as file:
        frames = file["data/demo_0/obs/front"]
        assert frames.chunks == (8, 16, 16, 3)
        assert frames.compression == "gzip"


def test_an_existing_file_is_never_overwritten(tmp_path, make_demo):
    """A second collect with the same name would destroy hours of demonstrations."""
    path = tmp_path / "a.hdf5"
    with DemoWriter(path) as writer:
        writer.write(make_demo(0))
    with pytest.raises(FileExistsError, match="resume"):
        DemoWriter(path)
    with DemoWriter(path, resume=True) as writer:
        assert writer.names == ["demo_0"]
        assert writer.seeds == [0]
        assert writer.write(make_demo(0)) == "demo_1", "a name that is taken gets the next number"
    with DemoFile(path) as file:
        assert file.attributes["total"] == 20


def test_a_demo_that_can_not_be_stored_leaves_the_file_as_it_was(tmp_path, make_demo):
    """A half-written group would count as a demo when the file is opened again."""
    path = tmp_path / "a.hdf5"
    with DemoWriter(path) as writer:
        writer.write(make_demo(0))
        with pytest.raises(DemoFormatError, match="x has type object; expected numbers"):
            writer.write(Demo("demo_1", {"x": np.array([["a"], ["b"]], dtype=object)}, np.zeros((2, 1))))
        with pytest.raises(DemoFormatError, match="x holds NaN"):
            writer.write(Demo("demo_1", {"x": np.full((2, 1), np.nan)}, np.zeros((2, 1))))
        writer.write(make_demo(2))
    with DemoFile(path) as file:
        assert file.names == ["demo_0", "demo_2"]
        assert file.attributes["total"] == 20


@pytest.mark.parametrize("room", range(0, 60, 4))
def test_a_full_disk_is_reported_and_costs_only_the_demo_being_written(tmp_path, make_demo, monkeypatch, room):
    """HDF5 swallows the error of a write, or turns it into a crash when the file is closed."""
    path, left, real = tmp_path / "a.hdf5", 10**9, os.pwrite

    def limited(fd: int, data: memoryview, address: int) -> int:
        nonlocal left
        if left == 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        left -= 1
        return real(fd, data, address)

    monkeypatch.setattr(os, "pwrite", limited)

    def collect() -> None:
        nonlocal left
        with DemoWriter(path) as writer:
            writer.write(make_demo(0))
            left = room
            for number in range(1, 5):
                writer.write(make_demo(number))

    with pytest.raises(OSError, match="No space left"):
        collect()
    left = 10**9
    with DemoWriter(path, resume=True) as writer:
        kept = writer.names
        assert kept == [f"demo_{number}" for number in range(len(kept))]
        writer.write(make_demo(len(kept)))
    with DemoFile(path) as file:
        for demo in file:
            assert_same(demo, file.read(demo.name))
            np.testing.assert_array_equal(demo.actions, make_demo(demo.seed).actions)


WRITER = """
import sys
import numpy as np
from robopolicy.demos.hdf5 import DemoWriter
from robopolicy.types import Demo
with DemoWriter(sys.argv[1], resume=True) as writer:
    print("ready", flush=True)
    while True:
        number = len(writer.names)
        frames = np.random.default_rng(number).integers(0, 255, (20, 16, 16, 3), dtype=np.uint8)
        writer.write(Demo(f"demo_{number}", {"front": frames}, np.full((20, 7), float(number)), f"task {number}", seed=number))
        print(number, flush=True)
"""


def test_a_writer_killed_at_random_times_loses_no_finished_demo_and_can_go_on(tmp_path):
    """HDF5 is not crash-safe: a killed collect used to cost the whole file."""
    path, rng, finished = tmp_path / "killed.hdf5", np.random.default_rng(0), 0
    for _ in range(4):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True)
        assert writer.stdout is not None
        for _ in range(1 + rng.integers(1, 4)):
            told = writer.stdout.readline()
        time.sleep(rng.uniform(0.0, 0.02))
        writer.send_signal(signal.SIGKILL)
        told = (told + writer.stdout.read()).split()
        writer.stdout.close()
        assert writer.wait() == -signal.SIGKILL
        assert int(told[-1]) >= finished, "the next process went on behind what was there"
        with DemoFile(path) as file:
            assert file.names[: int(told[-1]) + 1] == [f"demo_{number}" for number in range(int(told[-1]) + 1)]
            for number, demo in enumerate(file):
                assert (demo.name, demo.seed, demo.instruction) == (f"demo_{number}", number, f"task {number}")
                assert (demo.actions == number).all()
                expected = np.random.default_rng(number).integers(0, 255, (20, 16, 16, 3), dtype=np.uint8)
                np.testing.assert_array_equal(demo.obs["front"], expected)
            finished = len(file)
    assert finished >= 4


def test_a_file_being_written_can_be_looked_at_but_not_written_by_a_second(tmp_path, make_demo):
    """`check` on a running collect is useful; a second collect into the same file would destroy it."""
    with DemoWriter(tmp_path / "a.hdf5") as writer:
        writer.write(make_demo(0))
        with DemoFile(tmp_path / "a.hdf5") as file:
            assert_same(file.read("demo_0"), file.read("demo_0"))
        with pytest.raises(OSError, match="another process is writing"):
            DemoWriter(tmp_path / "a.hdf5", resume=True)
