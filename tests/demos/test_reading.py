"""Opening a demo file for reading never writes, whatever lies beside it."""

import os
import struct
import zlib

import pytest

from robopolicy.cli import main
from robopolicy.demos.hdf5 import DemoFile
from robopolicy.types import DemoFormatError

VERBS = (
    ["check", "{file}"],
    ["convert", "{file}", "{out}.hdf5"],
    ["view", "{file}", "--out", "{out}.gif"],
    ["encode", "{file}", "--model", "nowhere"],
    ["train", "--config", "lift_lowdim", "--data.files", "{file}", "--run-dir", "{out}"],
    ["collect", "--task", "reach", "--episodes", "1", "--out", "{file}", "--resume"],
    ["run", "--replay", "{file}", "--robot", "sim"],
    ["run", "--replay", "{demos}", "--robot", "sim", "--task", "lift", "--seconds", "0.2", "--record", "{file}"],
)


def journal(address: int, data: bytes) -> bytes:
    """A journal as the earlier write-ahead log would have replayed it."""
    body = struct.pack("<QQ", address, len(data)) + data
    return struct.pack("<QI", len(body), zlib.crc32(body)) + body


@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: "-".join(verb[:2]))
def test_no_verb_writes_through_a_link_in_a_downloaded_folder(tmp_path, tiny_demos, capsys, verb):
    """Guards against: demos.hdf5 as a link to a start-up file, with a crafted journal that is replayed into it."""
    victim = tmp_path / "profile"
    victim.write_text("export PATH\n")
    folder = tmp_path / "downloaded"
    folder.mkdir()
    file = folder / "demos.hdf5"
    file.symlink_to(victim)
    (folder / "demos.hdf5.journal").write_bytes(journal(0, b"rm -rf ~\n"))
    (folder / "demos.tokens.hdf5").symlink_to(victim)
    words = [word.format(file=file, demos=tiny_demos, out=tmp_path / "out") for word in verb]
    assert main(words) == 2
    assert "\n" not in capsys.readouterr().err.strip()
    assert victim.read_text() == "export PATH\n"
    assert file.is_symlink()


def test_a_file_of_ones_own_behind_a_link_is_read_and_stays_as_it_is(tmp_path, tiny_demos):
    """Guards against: a user's own demos, damaged by a journal that came with a link to them."""
    mine, before = tmp_path / "mine.hdf5", tiny_demos.read_bytes()
    mine.write_bytes(before)
    link = tmp_path / "link.hdf5"
    link.symlink_to(mine)
    for name in ("link.hdf5.journal", "mine.hdf5.journal"):
        (tmp_path / name).write_bytes(journal(0, bytes(4096)))
    with DemoFile(link) as file:
        assert len(list(file)) == 5
    assert main(["check", str(link), str(mine)]) == 0
    assert mine.read_bytes() == before


@pytest.mark.parametrize("beside", ["pipe", "sparse file", "folder"])
def test_what_lies_beside_a_file_is_not_looked_at(tmp_path, tiny_demos, beside):
    """Guards against: a journal that is a pipe and hangs its reader, or 8 GB of zeros that fill the memory."""
    path = tmp_path / "demos.hdf5"
    path.write_bytes(tiny_demos.read_bytes())
    journal = tmp_path / "demos.hdf5.journal"
    if beside == "pipe":
        os.mkfifo(journal)
    elif beside == "folder":
        journal.mkdir()
    else:
        journal.touch()
        os.truncate(journal, 2**33)
    with DemoFile(path) as file:
        assert len(list(file)) == 5


@pytest.mark.parametrize("place", ["demos.hdf5", "demos.tokens.hdf5"])
def test_a_pipe_is_not_waited_for(tmp_path, tiny_demos, place):
    """Guards against: reading that hangs until somebody writes into the pipe."""
    (tmp_path / "demos.hdf5").write_bytes(tiny_demos.read_bytes())
    (tmp_path / place).unlink(missing_ok=True)
    os.mkfifo(tmp_path / place)
    if place == "demos.hdf5":
        with pytest.raises(DemoFormatError, match="no such file"):
            DemoFile(tmp_path / "demos.hdf5")
    else:
        with DemoFile(tmp_path / "demos.hdf5") as file:
            assert file.read("demo_0").tokens is None
