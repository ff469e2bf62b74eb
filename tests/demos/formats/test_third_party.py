"""Genuine files of others, where the environment variable ROBOPOLICY_DEMOS names a folder that holds them."""

import os
from pathlib import Path

import h5py
import numpy as np
import pytest

from robopolicy.demos.check import check_file
from robopolicy.demos.formats import convert, open_demos
from robopolicy.types import DemoFormatError

FOLDER = Path(os.environ.get("ROBOPOLICY_DEMOS", "/nonexistent"))
pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason="ROBOPOLICY_DEMOS names no folder of third-party demos")


def test_every_file_is_read_whole_or_refused_in_one_line():
    """Guards against: a traceback for a file that someone else wrote: a user's first contact with `check`."""
    outcomes = {}
    for path in sorted(item for item in FOLDER.iterdir() if item.is_dir() or item.suffix in (".hdf5", ".h5")):
        try:
            report = check_file(path)
            outcomes[path.name] = (report.format_name, len(report.problems))
            assert len(report.lengths) == len(report.names)
        except DemoFormatError as error:
            one_line = "\n" not in str(error)
            outcomes[path.name] = "raw" if one_line and "robosuite's raw layout" in str(error) else str(error)
    assert outcomes
    assert all(outcome in (("robomimic", 0), ("act", 0), "raw") for outcome in outcomes.values()), outcomes


@pytest.mark.parametrize("name", ["robosuite_lift_lowdim.hdf5", "robosuite_lift_image.hdf5", "act_transfer_cube"])
def test_the_native_copy_holds_the_same_numbers(name, tmp_path):
    """Guards against: losses that differ between a file and its copy."""
    convert(FOLDER / name, tmp_path / "copy.hdf5")
    with open_demos(FOLDER / name) as original, open_demos(tmp_path / "copy.hdf5") as copy:
        assert list(original.names) == list(copy.names)
        assert {k: list(v) for k, v in original.filter_keys.items()} == copy.filter_keys
        for demo_name in original.names:
            one, other = original.read(demo_name), copy.read(demo_name)
            np.testing.assert_array_equal(one.actions, other.actions, strict=True)
            for key, values in one.obs.items():
                np.testing.assert_array_equal(values, other.obs[key], strict=True)


def test_robomimic_s_own_fields_survive_in_the_copy(tmp_path):
    """Guards against: a copy that robomimic's playback can't use, since env_args or model files are missing."""
    name = "robosuite_lift_lowdim.hdf5"
    convert(FOLDER / name, tmp_path / "copy.hdf5")
    with h5py.File(FOLDER / name) as original, h5py.File(tmp_path / "copy.hdf5") as copy:
        assert copy["data"].attrs["total"] == original["data"].attrs["total"]
        for key in ("model_file", "num_samples"):
            assert copy["data/demo_3"].attrs[key] == original["data/demo_3"].attrs[key]
        np.testing.assert_array_equal(copy["data/demo_3/states"][()], original["data/demo_3/states"][()])
