"""`robopolicy report` and `view`: what they write, and what they refuse."""

import pytest

from robopolicy.cli import main


@pytest.mark.parametrize("ending", [".mp4", ".gif"])
def test_a_demo_becomes_a_video(tiny_demos, tmp_path, ending):
    """Guards against: a video that is empty, or in another format than its name says."""
    out = tmp_path / f"demo{ending}"
    assert main(["view", str(tiny_demos), "--out", str(out)]) == 0
    head = out.read_bytes()[:12]
    assert b"ftyp" in head if ending == ".mp4" else head.startswith(b"GIF8")


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
