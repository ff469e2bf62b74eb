"""Which format a file or folder is taken for."""

import os
import subprocess
import sys

import h5py
import numpy as np
import pytest

from robopolicy.components import ConfigError
from robopolicy.demos.formats import open_demos
from robopolicy.demos.formats._detection import writable_format
from robopolicy.types import DemoFormatError


def test_a_folder_of_something_else_is_refused_with_what_it_holds(tmp_path):
    """Guards against: an error that doesn't show that it is the wrong folder."""
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(
        DemoFormatError, match=r"it holds notes.txt\); known are act, lerobot, libero, minari, robomimic"
    ):
        open_demos(tmp_path)


def test_an_hdf5_file_of_something_else_is_refused_with_what_it_holds(tmp_path):
    """Guards against: h5py's KeyError, which names no file."""
    with h5py.File(tmp_path / "weights.h5", "w") as file:
        file["layer_1"] = np.zeros(3)
    with pytest.raises(DemoFormatError, match=r"weights.h5: unknown demo format \(it holds layer_1\)"):
        open_demos(tmp_path / "weights.h5")


def test_a_missing_path_is_said_to_be_missing(tmp_path):
    """Guards against: a missing file reported as damaged."""
    with pytest.raises(DemoFormatError, match="no such file or folder"):
        open_demos(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("lerobt", {}, "demo_format 'lerobt' is unknown; choose one of act, lerobot"),
        (
            "lerobot",
            {"image": "png"},
            "option --options image; the options of demo_format 'lerobot' are: version",
        ),
        ("lerobot", {"images": "jpeg"}, "images must be one of video, png, got jpeg"),
    ],
)
def test_an_unknown_target_format_or_option_lists_those_known(kind, options, message):
    """Guards against: a typo in --format that ends in the default format."""
    with pytest.raises(ConfigError, match=message):
        writable_format(kind, options)


PLUGIN = """
from robopolicy.components import NoOptions, register
from robopolicy.demos.hdf5 import DemoFile
from robopolicy.demos.probe import open_hdf5

@register("demo_format", "lab")
class LabFormat:
    refines = {refines}

    def __init__(self, options: NoOptions) -> None:
        pass

    def matches(self, path):
        if path.is_dir():
            return False
        with open_hdf5(path) as file:
            return "data" in file and "lab" in file["data"].attrs

    def open(self, path):
        return DemoFile(path)
"""


@pytest.mark.parametrize(
    ("refines", "message"), [("('robomimic',)", ""), ("()", "matches the formats lab and robomimic")]
)
def test_a_plugin_format_is_found_by_content(tmp_path, tiny_demos, refines, message):
    """Guards against: a format outside the package that needs an edit inside it, or a silent choice between two."""
    (tmp_path / "lab_format.py").write_text(PLUGIN.replace("{refines}", refines))
    path = tmp_path / "lab.hdf5"
    with h5py.File(tiny_demos, "r") as source, h5py.File(path, "w") as file:
        source.copy("data/demo_0", file.create_group("data"))
        file["data"].attrs["lab"] = "ours"
    run = "import sys; from robopolicy.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", run, "check", str(path), "--plugins", "lab_format"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert message in done.stderr + done.stdout
    assert "Traceback" not in done.stderr
    assert done.returncode == (2 if message else 0), done.stderr + done.stdout
