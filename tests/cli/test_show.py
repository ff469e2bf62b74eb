"""`robopolicy report` and `view`: what they write, and what they refuse."""

import numpy as np
import pytest

from robopolicy import ActionSpec, Demo, DemoWriter
from robopolicy.cli import main
from robopolicy.report.video import RerunViewer


@pytest.mark.parametrize("ending", [".mp4", ".gif"])
def test_a_demo_becomes_a_video(tiny_demos, tmp_path, ending):
    """Guards against: a video that is empty, or in another format than its name says."""
    out = tmp_path / f"demo{ending}"
    assert main(["view", str(tiny_demos), "--out", str(out)]) == 0
    head = out.read_bytes()[:12]
    assert b"ftyp" in head if ending == ".mp4" else head.startswith(b"GIF8")


def test_a_demo_is_shown_at_the_rate_of_its_file(tmp_path, monkeypatch):
    """Guards against: a recording at 10 Hz whose times in the viewer are those of 20 Hz, half as long as it was."""
    shown = []
    monkeypatch.setattr(RerunViewer, "__init__", lambda self, title: None)
    monkeypatch.setattr(RerunViewer, "show", lambda self, time_s, values: shown.append(time_s))
    with DemoWriter(tmp_path / "slow.hdf5", action_spec=ActionSpec(arm=2, gripper=0, rate_hz=10.0)) as writer:
        writer.write(Demo("demo_0", {"qpos": np.zeros((4, 2))}, np.zeros((4, 2))))
    assert main(["view", str(tmp_path / "slow.hdf5"), "--rerun"]) == 0
    np.testing.assert_allclose(shown, [0.0, 0.1, 0.2, 0.3])


@pytest.mark.parametrize(
    ("verb", "options", "expected"),
    [
        ("view", ("--out", "demo"), "expected a name that ends in .mp4 or .gif"),
        ("view", ("--demo", "demo_77"), "no demo_77; it has: demo_0"),
        ("report", ("--out", "."), "--out . is a folder"),
        ("report", (), "expected run folders"),
    ],
)
def test_a_mistake_is_one_line(tiny_demos, tmp_path, capsys, monkeypatch, verb, options, expected):
    """Guards against: an empty file and an encoder's traceback for a name without an ending."""
    monkeypatch.chdir(tmp_path)
    assert main([verb, str(tiny_demos), *options]) == 2
    said = capsys.readouterr().err
    assert expected in said
    assert said.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
