"""Demo files named by URL, on fsspec's filesystem in memory."""

import builtins
import logging

import fsspec
import pytest

from robopolicy.cli import main
from robopolicy.demos.formats import open_demos
from robopolicy.demos.remote import local_path
from robopolicy.types import DemoFormatError
from tests.demo_samples import write_act


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Copies go to a folder of this test's own."""
    monkeypatch.setenv("ROBOPOLICY_CACHE", str(tmp_path / "cache"))
    yield tmp_path / "cache"
    fsspec.filesystem("memory").store.clear()


@pytest.fixture
def storage(tiny_demos):
    """A bucket that holds the tiny demos."""
    memory = fsspec.filesystem("memory")
    memory.pipe("/bucket/tiny.hdf5", tiny_demos.read_bytes())
    return memory


def test_a_file_by_url_reads_as_the_file_itself(storage, tiny_demos):
    """Guards against: a demo set in a bucket that can't be read as a file."""
    with open_demos("memory://bucket/tiny.hdf5") as remote, open_demos(tiny_demos) as here:
        assert remote.names == here.names
        assert remote.read("demo_1").actions.tobytes() == here.read("demo_1").actions.tobytes()


def test_a_version_is_copied_once_and_another_version_anew(storage, tiny_demos, make_demo, caplog):
    """Guards against: terabytes fetched by every run, or a run that trains on yesterday's copy."""
    with caplog.at_level(logging.INFO):
        first = local_path("memory://bucket/tiny.hdf5")
        assert local_path("memory://bucket/tiny.hdf5") == first
        storage.pipe("/bucket/tiny.hdf5", tiny_demos.read_bytes() + b"\0")
        assert local_path("memory://bucket/tiny.hdf5") != first
    said = [record.getMessage() for record in caplog.records if record.name == "robopolicy.demos.remote"]
    assert ["copied before" if "copied before" in line else "copied to" for line in said] == [
        "copied to",
        "copied before",
        "copied to",
    ]


def test_a_folder_by_url_is_one_data_set(tmp_path):
    """Guards against: data sets that are folders, such as ACT's and LeRobot's, read as single files."""
    write_act(tmp_path / "act")
    fsspec.filesystem("memory").put(str(tmp_path / "act"), "/bucket/act", recursive=True)
    with open_demos("memory://bucket/act") as remote, open_demos(tmp_path / "act") as here:
        assert (remote.format_name, remote.names) == ("act", here.names)


def test_a_copy_that_is_not_whole_leaves_nothing(storage, cache, monkeypatch):
    """Guards against: a connection that breaks, which would leave a file that the next run takes for the copy."""
    whole = type(storage).get_file

    def cut(self, source, target, **options):
        whole(self, source, target, **options)
        with open(target, "r+b") as file:
            file.truncate(100)

    monkeypatch.setattr(type(storage), "get_file", cut)
    with pytest.raises(DemoFormatError, match=r"100 of .* bytes arrived; try again"):
        local_path("memory://bucket/tiny.hdf5")
    assert [path.name for path in cache.rglob("*") if path.is_file()] == [".lock"]


def test_a_storage_that_fails_while_a_file_is_copied_is_named(storage, cache, monkeypatch):
    """Guards against: a traceback, or a message that doesn't say which file failed."""

    def fail(self, source, target, **options):
        raise OSError("connection reset")

    monkeypatch.setattr(type(storage), "get_file", fail)
    with pytest.raises(DemoFormatError, match=r"memory://bucket/tiny.hdf5: .* can't be copied: connection reset"):
        local_path("memory://bucket/tiny.hdf5")


def test_names_that_leave_the_folder_are_refused(storage, cache, tiny_demos, monkeypatch):
    """Guards against: an object's name with `..`, by which a stranger's bucket writes any file."""
    named = {"/bucket/tiny.hdf5/../../../evil": {"size": 1, "type": "file"}}
    monkeypatch.setattr(type(storage), "info", lambda self, path, **_: {"type": "directory"})
    monkeypatch.setattr(type(storage), "find", lambda self, path, **_: named)
    with pytest.raises(DemoFormatError, match="outside its folder; refused"):
        local_path("memory://bucket/tiny.hdf5")


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("memory://bucket/none.hdf5", "memory://bucket/none.hdf5: no such file or folder"),
        ("nonsense://bucket/a.hdf5", "nonsense"),
    ],
)
@pytest.mark.parametrize("verb", [["check"], ["convert", "--format", "act"], ["train", "--data.files"]])
def test_what_is_not_there_is_one_line_for_every_verb(url, message, verb, tmp_path, capsys):
    """Guards against: a storage library's traceback, which hides the typo in the name."""
    rest = {"convert": [str(tmp_path / "out")], "train": ["--run-dir", str(tmp_path / "run")]}.get(verb[0], [])
    assert main([*verb, url, *rest]) == 2
    said = capsys.readouterr()
    assert message in said.err + said.out
    assert "Traceback" not in said.err
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "run").exists()


def test_a_missing_package_is_named(monkeypatch):
    """Guards against: a missing package without the extra that installs it."""
    real = builtins.__import__

    def without(name, *rest, **options):
        if name == "fsspec":
            raise ImportError("No module named 'fsspec'")
        return real(name, *rest, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"pip install 'robopolicy\[formats\]'"):
        local_path("s3://bucket/a.hdf5")


def test_tokens_are_not_written_into_a_copy(storage, capsys):
    """Guards against: tokens written into a cached copy and lost with it."""
    assert main(["encode", "memory://bucket/tiny.hdf5", "--model", "nowhere"]) == 2
    assert "tokens are written beside the file; copy it to this machine first" in capsys.readouterr().err
