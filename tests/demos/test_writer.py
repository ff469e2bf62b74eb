"""Writing the native demo file: whole or not at all, and nothing that was finished is ever lost."""

import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import h5py
import numpy as np
import pytest

from robopolicy.demos.guarded import parts_folder
from robopolicy.demos.hdf5 import DemoFile, DemoWriter
from robopolicy.demos.parts import file_or_first_part
from robopolicy.types import Demo, DemoFormatError
from tests.full_disk import full_disk


def test_images_are_packed_such_that_a_window_reads_few_chunks(tmp_path, make_demo):
    """Guards against: one chunk per demo, which would unpack 500 frames for a window of 10; one per frame costs a read each."""
    with DemoWriter(tmp_path / "a.hdf5") as writer:
        writer.write(make_demo(0, steps=50, image_size=16))
    with h5py.File(tmp_path / "a.hdf5", "r") as file:
        frames = file["data/demo_0/obs/front"]
        assert frames.chunks == (8, 16, 16, 3)
        assert frames.compression == "gzip"


def test_an_existing_file_is_never_overwritten(tmp_path, make_demo):
    """Guards against: a second collect with the same name, which would destroy hours of demonstrations."""
    path = tmp_path / "a.hdf5"
    with DemoWriter(path) as writer:
        writer.write(make_demo(0))
    with pytest.raises(FileExistsError, match="resume"):
        DemoWriter(path)
    with DemoWriter(path, resume=True) as writer:
        assert writer.names == ["demo_0"]
        assert writer.seeds == [0]
        assert writer.write(make_demo(0)) == "demo_1", "a name that is taken gets the next number"
    with DemoFile(path) as file:
        assert file.attributes["total"] == 20


def test_a_demo_that_can_not_be_stored_leaves_the_file_as_it_was(tmp_path, make_demo):
    """Guards against: a half-written group, which would count as a demo when the file is opened again."""
    path = tmp_path / "a.hdf5"
    with DemoWriter(path) as writer:
        writer.write(make_demo(0))
        with pytest.raises(DemoFormatError, match="x has type object; expected numbers"):
            writer.write(Demo("demo_1", {"x": np.array([["a"], ["b"]], dtype=object)}, np.zeros((2, 1))))
        with pytest.raises(DemoFormatError, match="x holds NaN"):
            writer.write(Demo("demo_1", {"x": np.full((2, 1), np.nan)}, np.zeros((2, 1))))
        writer.write(make_demo(2))
    with DemoFile(path) as file:
        assert file.names == ["demo_0", "demo_2"]
        assert file.attributes["total"] == 20


@pytest.mark.parametrize("share", [0, 0.01, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9, 0.99])
def test_a_full_disk_is_reported_and_resumed_as_if_nothing_was(tmp_path, make_demo, share):
    """Guards against: HDF5 swallowing the error of a write, or crashing when the file is closed."""
    whole, path = tmp_path / "whole.hdf5", tmp_path / "a.hdf5"

    def collect(path: Path) -> None:
        with DemoWriter(path, resume=True) as writer:
            for number in range(len(writer.names), 5):
                writer.write(make_demo(number))

    collect(whole)
    with full_disk(int(share * whole.stat().st_size)), pytest.raises(OSError, match="File too large"):
        collect(path)
    assert not path.exists(), "a file under its final name is whole"
    collect(path)
    assert path.read_bytes() == whole.read_bytes()
    assert sorted(tmp_path.iterdir()) == [path, whole]


WRITER = """
import sys
import numpy as np
from robopolicy.demos.hdf5 import DemoWriter
from robopolicy.types import Demo
with DemoWriter(sys.argv[1], resume=True) as writer:
    print("ready", flush=True)
    for number in range(len(writer.names), 24):
        frames = np.random.default_rng(number).integers(0, 255, (20, 16, 16, 3), dtype=np.uint8)
        writer.write(Demo(f"demo_{number}", {"front": frames}, np.full((20, 7), float(number)), f"task {number}", seed=number))
        print(number, flush=True)
"""


def test_a_writer_killed_at_random_times_ends_with_the_same_file(tmp_path):
    """Guards against: finished demos lost by a kill, wherever it comes, merging and clearing up included."""
    path, rng, done, kills = tmp_path / "killed.hdf5", np.random.default_rng(0), -1, 0
    command = [sys.executable, "-c", WRITER]
    subprocess.run([*command, str(tmp_path / "whole.hdf5")], check=True, stdout=subprocess.PIPE)
    while not path.exists():
        with subprocess.Popen([*command, str(path)], stdout=subprocess.PIPE, text=True) as writer:
            assert writer.stdout is not None
            lines = [writer.stdout.readline() for _ in range(1 + rng.integers(2, 7))]
            time.sleep(rng.uniform(0.0, 0.02))
            writer.send_signal(signal.SIGKILL)
            lines += writer.stdout.read().split()
        numbers = [int(word) for word in lines if word.strip().isdigit()]
        assert not numbers or numbers[0] in (done + 1, done + 2), "the next process did not start behind what was there"
        done, kills = max([done, *numbers]), kills + 1
    subprocess.run([*command, str(path)], check=True, stdout=subprocess.PIPE)
    assert kills >= 3
    assert path.read_bytes() == (tmp_path / "whole.hdf5").read_bytes()
    assert len(list(tmp_path.iterdir())) == 2, "the parts are cleared up"


@pytest.mark.parametrize("event", ["open", "os.rename", "os.remove", "os.rmdir"])
def test_death_at_any_change_of_the_disk_loses_no_finished_demo(tmp_path, make_demo, event):
    """Guards against: an instant between two changes of the folder at which a kill loses, doubles or blocks something."""
    whole, reached = tmp_path / "whole.hdf5", True
    _collect_two(whole, make_demo)
    fatal = 0
    while reached:
        path = tmp_path / f"{event}-{fatal}.hdf5"
        reached = dies_in_a_child(lambda path=path: _collect_two(path, make_demo), event, fatal)
        _collect_two(path, make_demo)
        assert path.read_bytes() == whole.read_bytes(), f"{event} number {fatal}"
        assert not path.with_name(f"{path.name}.parts").exists()
        fatal += 1
    assert fatal >= 2


def _collect_two(path: Path, make_demo) -> None:
    with DemoWriter(path, resume=True) as writer:
        for number in range(len(writer.names), 2):
            writer.write(make_demo(number))


def dies_in_a_child(work: Callable[[], None], event: str, fatal: int) -> bool:
    """Run it in a forked process that dies at the n-th audit event of a kind; returns whether there were n."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        left = fatal

        def dying(name: str, _: object) -> None:
            nonlocal left
            if name == event:
                left -= 1
                if left < 0:
                    os._exit(9)

        sys.addaudithook(dying)
        try:
            work()
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9


def test_a_second_writer_is_refused_and_costs_the_first_nothing(tmp_path, make_demo):
    """Guards against: two collections into one file, each destroying the other's demos."""
    with DemoWriter(tmp_path / "a.hdf5") as writer:
        writer.write(make_demo(0))
        with pytest.raises(OSError, match=r"another process is writing .*a.hdf5; wait until it ends"):
            DemoWriter(tmp_path / "a.hdf5", resume=True)
        with DemoFile(tmp_path / "a.hdf5.parts" / "demo_0.hdf5") as part:
            assert part.names == ["demo_0"], "what is written so far can be looked at"
        writer.write(make_demo(1))
    with DemoFile(tmp_path / "a.hdf5") as file:
        assert file.names == ["demo_0", "demo_1"]


def test_parts_of_an_unfinished_file_are_named_and_not_overwritten(tmp_path, make_demo):
    """Guards against: a second collect that discards what an interrupted one left, or a file that seems to be lost."""
    path = tmp_path / "a.hdf5"
    with suppress(KeyboardInterrupt), DemoWriter(path) as writer:
        writer.write(make_demo(0))
        raise KeyboardInterrupt
    with pytest.raises(
        DemoFormatError, match=r"no such file; demos of a writer that did not finish are in a.hdf5.parts"
    ):
        DemoFile(path)
    with pytest.raises(FileExistsError, match=r"1 parts of an unfinished a.hdf5; resume it, or remove the folder"):
        DemoWriter(path)
    with DemoWriter(path, resume=True) as writer:
        assert writer.names == ["demo_0"]


@pytest.mark.parametrize("place", ["a.hdf5", "a.hdf5.parts", "a.hdf5.parts/demo_0.hdf5", "a.hdf5.parts/x"])
@pytest.mark.parametrize("kind", ["link", "dangling link", "pipe"])
def test_a_writer_never_writes_through_what_is_planted(tmp_path, make_demo, place, kind):
    """Guards against: a downloaded folder whose links make `collect --resume` write into the victim's own files."""
    victim = tmp_path / "home" / "profile"
    victim.mkdir(parents=True) if place == "a.hdf5.parts" else victim.parent.mkdir()
    if not victim.is_dir():
        victim.write_text("mine")
    at = tmp_path / "downloaded" / place
    at.parent.mkdir(parents=True)
    if kind == "pipe":
        os.mkfifo(at)
    else:
        at.symlink_to(victim if kind == "link" else tmp_path / "home" / "new")
    with pytest.raises((OSError, DemoFormatError)) as caught:
        DemoWriter(tmp_path / "downloaded" / "a.hdf5", resume=True)
    assert "\n" not in str(caught.value)
    assert sorted(path.name for path in (tmp_path / "home").iterdir()) == ["profile"]
    assert victim.is_dir() or victim.read_text() == "mine"
    assert not victim.is_dir() or not list(victim.iterdir())


def test_demos_are_numbered_by_seed_where_that_is_asked(tmp_path, make_demo):
    """Guards against: a resumed collection whose demos come in another order than an uninterrupted one's."""
    with DemoWriter(tmp_path / "a.hdf5", by_seed=True) as writer:
        for number in (4, 1, 3):
            writer.write(make_demo(number))
        writer.write_filter_key("train", ["demo_4", "demo_1"])
    with DemoFile(tmp_path / "a.hdf5") as file:
        assert [(demo.name, demo.seed) for demo in file] == [("demo_0", 1), ("demo_1", 3), ("demo_2", 4)]
        assert file.filter_keys == {"train": ["demo_0", "demo_2"]}


def test_a_resumed_file_is_a_new_one_that_keeps_what_the_old_held(tmp_path, make_demo):
    """Guards against: masks and facts lost, or a file changed while somebody reads it."""
    path = tmp_path / "a.hdf5"
    with DemoWriter(path, attributes={"renderer": "ray"}) as writer:
        writer.write(make_demo(0))
        writer.write_filter_key("train", ["demo_0"])
        writer.write_filter_key("few/first", ["demo_0"])
    before = path.stat().st_ino
    with DemoFile(path) as reader:
        with DemoWriter(path, resume=True) as writer:
            writer.write(make_demo(1))
        assert reader.read("demo_0").seed == 0
    assert path.stat().st_ino != before
    with DemoFile(path) as file:
        assert (file.names, file.filter_keys) == (["demo_0", "demo_1"], {"few/first": ["demo_0"], "train": ["demo_0"]})
        assert (file.attributes["renderer"], file.attributes["total"]) == ("ray", 20)


def test_a_writer_without_a_demo_leaves_no_file(tmp_path):
    """Guards against: an empty file that no verb opens and that stands in the way of the next try."""
    with DemoWriter(tmp_path / "a.hdf5"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_what_a_kill_left_beside_the_file_goes_with_the_next_writer(tmp_path, make_demo):
    """Guards against: hidden half-written files that pile up beside a demo file, or another file's being removed."""
    left, others = tmp_path / f".a-{'0a' * 8}.unfinished.hdf5", tmp_path / f".a-b-{'0a' * 8}.unfinished.hdf5"
    left.touch()
    others.touch()
    with DemoWriter(tmp_path / "a.hdf5") as writer:
        writer.write(make_demo(0))
    assert not left.exists()
    assert others.exists()


def test_a_part_that_a_kill_cut_short_is_not_continued(tmp_path):
    """Guards against: `collect --resume` that reads the part which a kill cut short, and refuses it as damaged."""
    target = tmp_path / "a.hdf5"
    parts_folder(target).mkdir()
    (parts_folder(target) / f".demo_2-{'0a' * 8}.unfinished.hdf5").touch()
    assert file_or_first_part(target) is None
    whole = parts_folder(target) / "demo_0.hdf5"
    whole.touch()
    assert file_or_first_part(target) == whole
