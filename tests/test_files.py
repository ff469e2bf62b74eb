"""Files that appear whole or not at all."""

import os
import stat
from contextlib import suppress

import pytest

from robopolicy.files import replacing, write_file


def test_a_file_is_replaced_in_one_step(tmp_path):
    """Guards against: a reader that sees half a file, or a temporary file left behind."""
    path = tmp_path / "folder" / "a.json"
    write_file(path, "one")
    with replacing(path) as temporary:
        temporary.write_text("two")
        assert temporary.suffix == ".json", "some libraries choose the format by it"
        assert path.read_text() == "one"
    assert path.read_text() == "two"
    assert os.listdir(path.parent) == ["a.json"]


def test_an_error_leaves_what_was_there(tmp_path):
    """Guards against: results of last week lost because this week's could not be written."""
    path = tmp_path / "a.json"
    path.write_text("one")
    with suppress(ValueError), replacing(path) as temporary:
        temporary.write_text("tw")
        raise ValueError
    assert path.read_text() == "one"
    assert os.listdir(tmp_path) == ["a.json"]


@pytest.mark.parametrize("kind", ["link", "dangling link", "pipe", "folder"])
def test_what_is_not_a_regular_file_is_not_replaced(tmp_path, kind):
    """Guards against: writing through a planted link, or over a device such as /dev/null."""
    victim, path = tmp_path / "victim", tmp_path / "a.json"
    victim.write_text("mine")
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to(victim if kind == "link" else tmp_path / "new")
    with pytest.raises(OSError, match=r"a.json is (a symbolic link|a folder|not a regular file); name a regular file"):
        write_file(path, "two")
    assert victim.read_text() == "mine"
    assert sorted(os.listdir(tmp_path)) == ["a.json", "victim"]


def test_a_file_has_the_mode_that_the_umask_says(tmp_path):
    """Guards against: run folders that nobody else in the group can read."""
    before = os.umask(0o027)
    try:
        write_file(tmp_path / "a.json", "one")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a.json").stat().st_mode) == 0o640


def test_the_temporary_name_can_not_be_predicted(tmp_path):
    """Guards against: a link planted at the name that the next write will use."""
    names = set()
    for _ in range(20):
        with replacing(tmp_path / "a.json") as temporary:
            names.add(temporary.name)
    assert len(names) == 20
