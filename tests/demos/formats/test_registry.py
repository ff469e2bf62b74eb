"""Which format a file or folder is taken for."""

import h5py
import numpy as np
import pytest

from robopolicy.demos.formats import open_demos
from robopolicy.demos.formats.registry import writable_format
from robopolicy.types import DemoFormatError


def test_a_folder_of_something_else_is_refused_with_what_it_holds(tmp_path):
    """The user sees at once that it is the wrong folder."""
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(DemoFormatError, match=r"it holds notes.txt\); known are lerobot, minari, act, libero"):
        open_demos(tmp_path)


def test_an_hdf5_file_of_something_else_is_refused_with_what_it_holds(tmp_path):
    """h5py's KeyError names no file."""
    with h5py.File(tmp_path / "weights.h5", "w") as file:
        file["layer_1"] = np.zeros(3)
    with pytest.raises(DemoFormatError, match=r"weights.h5: no demo format known here \(it holds layer_1\)"):
        open_demos(tmp_path / "weights.h5")


def test_a_missing_path_is_said_to_be_missing(tmp_path):
    """Not 'no HDF5 file', which sends the user looking for damage."""
    with pytest.raises(DemoFormatError, match="no such file or folder"):
        open_demos(tmp_path / "nowhere")


def test_an_unknown_target_format_lists_those_that_can_be_written():
    """A typo in --format must not end in the default format."""
    with pytest.raises(DemoFormatError, match="can't write the format 'lerobt'; convert writes: robomimic, lerobot"):
        writable_format("lerobt")
