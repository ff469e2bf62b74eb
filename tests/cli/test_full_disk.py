"""Every verb that writes, on a disk without room: one line, exit code 2, and no file under its final name."""

import pytest

from robopolicy.cli import main
from tests.demo_samples import write_act
from tests.full_disk import full_disk

VERBS = {
    "convert": ["convert", "{demos}", "{out}/a.hdf5"],
    "convert to lerobot": ["convert", "{demos}", "{out}/a", "--format", "lerobot"],
    "convert to act": ["convert", "{act}", "{out}/a", "--format", "act"],
    "salvage": ["check", "{demos}", "--salvage", "{out}/a.hdf5"],
    "page": ["check", "{demos}", "--html", "{out}/a.html"],
    "video": ["view", "{demos}", "--out", "{out}/a.mp4"],
    "gif": ["view", "{demos}", "--out", "{out}/a.gif"],
    "onnx": ["export", "{run}", "--format", "onnx", "--out", "{out}/a"],
    "collect": ["collect", "--task", "reach", "--episodes", "1", "--out", "{out}/a.hdf5"],
    "eval": ["eval", "{run}", "--task", "reach", "--episodes", "1", "--json", "{out}/a.json"],
}


@pytest.mark.parametrize("verb", VERBS)
def test_a_full_disk_is_one_line_and_leaves_no_file(tmp_path, tiny_demos, random_run, capsys, verb):
    """Guards against: the end by a signal inside HDF5, half a file that looks like a result, or exit code 0."""
    names = {"demos": tiny_demos, "act": write_act(tmp_path / "act"), "run": random_run, "out": tmp_path / "room"}
    words = [word.format(**names) for word in VERBS[verb]]
    (tmp_path / "room").mkdir()
    assert main(words) == 0
    for free_bytes in (0, 500):
        out = tmp_path / f"full_{free_bytes}"
        out.mkdir()
        capsys.readouterr()
        with full_disk(free_bytes):
            code = main([word.replace(str(tmp_path / "room"), str(out)) for word in words])
        said = capsys.readouterr().err
        assert (code, said.count("\n")) == (2, 1), said
        assert [path.name for path in out.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("--html", ["check", "{missing}.hdf5", "--html", "{out}/a.html"]),
        ("--salvage", ["check", "{missing}.hdf5", "--salvage", "{out}/a.hdf5"]),
        ("--json", ["run", "--replay", "{missing}.hdf5", "--robot", "sim", "--json", "{out}/a.json"]),
        ("--record", ["run", "--replay", "{missing}.hdf5", "--robot", "sim", "--record", "{out}/a.hdf5"]),
        ("--json", ["eval", "{missing}", "--task", "reach", "--json", "{out}/a.json"]),
        ("--out", ["collect", "--task", "reach", "--out", "{out}/a.hdf5"]),
        ("--out", ["report", "{missing}", "--out", "{out}/a.html"]),
        ("--run-dir", ["train", "--data.files", "{demos}", "--run-dir", "{out}/run"]),
    ],
)
def test_where_nothing_can_be_written_no_work_is_begun(tmp_path, tiny_demos, capsys, option, words):
    """Guards against: hours of work whose result has no place, which is found out at its end."""
    (tmp_path / "file").write_text("in the way")
    names = {"missing": tmp_path / "missing", "demos": tiny_demos, "out": tmp_path / "file"}
    assert main([word.format(**names) for word in words]) == 2
    said = capsys.readouterr()
    assert (said.out, said.err.count("\n")) == ("", 1)
    assert f"{option} " in said.err
    assert "is a file, where a folder must be" in said.err
