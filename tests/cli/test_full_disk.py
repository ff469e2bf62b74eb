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
