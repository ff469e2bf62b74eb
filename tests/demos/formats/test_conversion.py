"""Conversion as a whole: complete or absent, and nothing silent."""

import pytest

from robopolicy.cli import main
from robopolicy.demos.formats import convert, open_demos
from robopolicy.demos.formats.robomimic import RobomimicFormat
from robopolicy.types import DemoFormatError
from tests.demo_samples import write_libero, write_robomimic


def test_an_existing_target_is_never_overwritten(tiny_demos, tmp_path):
    """Guards against: the source given as target, which would be destroyed."""
    (tmp_path / "out.hdf5").write_text("precious")
    with pytest.raises(FileExistsError, match=r"out.hdf5 exists; choose another name"):
        convert(tiny_demos, tmp_path / "out.hdf5")
    assert (tmp_path / "out.hdf5").read_text() == "precious"


@pytest.mark.parametrize(
    ("format", "options"), [("robomimic", {}), ("lerobot", {}), ("lerobot", {"version": "v2.1", "images": "png"})]
)
def test_a_conversion_that_fails_leaves_nothing(tmp_path, format, options):
    """Guards against: half a data set under the right name, which would be trained on."""
    import h5py

    path = write_robomimic(tmp_path / "lift.hdf5")
    with h5py.File(path, "r+") as file:
        file["data/demo_2/actions"][3, 2] = float("nan")
    with pytest.raises(DemoFormatError, match="demo_2: actions: nan"):
        convert(path, tmp_path / "out", format, options=options)
    assert [item.name for item in tmp_path.iterdir()] == ["lift.hdf5"]


def test_only_the_names_asked_for_are_written_with_their_masks(tiny_demos, tmp_path):
    """Guards against: a mask that names a demo which was left out, and makes the file unreadable."""
    convert(tiny_demos, tmp_path / "some.hdf5", names=["demo_1", "demo_4"])
    with open_demos(tmp_path / "some.hdf5") as demos:
        assert list(demos.names) == ["demo_1", "demo_4"]
        assert demos.filter_keys == {"train": ["demo_1"], "valid": ["demo_4"]}


def test_what_was_done_and_left_out_is_printed(tmp_path, capsys):
    """Guards against: content that a format can't hold, dropped without a word."""
    source = write_libero(tmp_path / "task.hdf5")
    assert main(["convert", str(source), str(tmp_path / "set"), "--format", "lerobot"]) == 0
    text = capsys.readouterr().out
    assert "flipped vertically" in text
    assert "agentview_rgb: stored as H.264 video" in text
    assert text.strip().endswith(str(tmp_path / "set"))


def test_a_target_that_appears_meanwhile_is_kept_and_leftovers_are_named(tiny_demos, tmp_path, monkeypatch):
    """Guards against: two conversions into one target of which the slower destroys the other's; gigabytes left by a kill."""
    write = RobomimicFormat.write

    def slow(self: RobomimicFormat, *words: object) -> object:
        (tmp_path / "a.hdf5").write_bytes(b"theirs")
        return write(self, *words)

    monkeypatch.setattr(RobomimicFormat, "write", slow)
    with pytest.raises(FileExistsError, match="was made by another process in the meantime"):
        convert(tiny_demos, tmp_path / "a.hdf5")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("a.hdf5", b"theirs")]
    monkeypatch.undo()
    (tmp_path / ".b-0123.unfinished").mkdir()
    (note,) = [note for note in convert(tiny_demos, tmp_path / "b", "lerobot") if ".b-0123.unfinished" in note]
    assert "belongs to another run; remove it if that run was interrupted" in note
