"""Which files a policy was trained on."""

import os
import shutil
from dataclasses import replace

import h5py
import numpy as np
import pytest

from robopolicy.demos.hdf5 import DemoWriter
from robopolicy.demos.provenance import WatchedFiles, fingerprint
from robopolicy.types import DemoFormatError


def test_a_fingerprint_changes_with_the_content(tmp_path):
    """Guards against: two files of one name that pass for each other."""
    path = tmp_path / "a"
    path.write_bytes(bytes(3 * 2**20))
    before = fingerprint(path)
    path.write_bytes(bytes(3 * 2**20 - 1) + b"x")
    assert fingerprint(path) != before
    assert fingerprint(tmp_path)["bytes"] == 3 * 2**20


def test_a_watched_file_that_is_written_to_is_refused(tmp_path):
    """Guards against: a run of two data sets, whose record names neither."""
    path = tmp_path / "a.hdf5"
    path.write_bytes(bytes(2000))
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "episode_0.hdf5").write_bytes(bytes(10))
    for change in ("touched", "grown", "replaced", "as if nothing were"):
        files, was = WatchedFiles([path, folder]), path.stat()
        files.require_unchanged()
        if change == "touched":
            os.utime(path, ns=(was.st_atime_ns, was.st_mtime_ns + 1))
        elif change == "grown":
            path.write_bytes(bytes(2001))
        else:
            (tmp_path / "b").write_bytes(bytes(2000) + change.encode())
            os.replace(tmp_path / "b", path)
        if change == "as if nothing were":
            path.write_bytes(b"x" * was.st_size)
            os.utime(path, ns=(was.st_atime_ns, was.st_mtime_ns))
        with pytest.raises(DemoFormatError, match=r"a.hdf5: the file was written to since training began"):
            files.require_unchanged()
    files = WatchedFiles([path, folder])
    (folder / "episode_1.hdf5").write_bytes(bytes(10))
    with pytest.raises(DemoFormatError, match="set: the file was written to"):
        files.require_unchanged()


def test_a_watched_file_that_holds_the_same_is_accepted(tmp_path):
    """Guards against: a training that ends because its file was moved, or its mode was changed."""
    path = tmp_path / "a.hdf5"
    path.write_bytes(bytes(2000))
    files = WatchedFiles([path])
    path.chmod(0o600)
    files.require_unchanged()
    path.rename(tmp_path / "b.hdf5")
    files.require_unchanged()
    shutil.copy2(tmp_path / "b.hdf5", path)
    files.require_unchanged()


def test_a_change_in_the_middle_is_noticed_by_the_checksums(tmp_path, make_demo):
    """Guards against: other data between the first and the last MiB, under the old size and time."""
    path = tmp_path / "a.hdf5"
    with DemoWriter(path) as writer:
        for number in range(3):
            demo = make_demo(number)
            noise = np.random.default_rng(number).normal(size=(len(demo), 2**14))
            writer.write(replace(demo, obs={**demo.obs, "noise": noise}))
    files, was = WatchedFiles([path]), path.stat()
    path.chmod(0o600)
    files.require_unchanged()
    with h5py.File(path) as file:
        place = file["data/demo_1/obs/noise"].id.get_offset() + 2**19
    assert 2**20 < place < was.st_size - 2**20
    with path.open("r+b") as raw:
        raw.seek(place)
        raw.write(b"\0")
    os.utime(path, ns=(was.st_atime_ns, was.st_mtime_ns))
    with pytest.raises(DemoFormatError, match=r"a.hdf5: the file was written to since training began"):
        files.require_unchanged()
