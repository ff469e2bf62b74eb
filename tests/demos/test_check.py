"""The verb `check`: what is inside, what is wrong, the exit code, and salvage."""

import h5py
import numpy as np
import pytest
from rich.console import Console

from robopolicy.cli.files import run_check
from robopolicy.demos.check import check_file, compare_files, salvage
from robopolicy.demos.check_report import finding_lines
from robopolicy.demos.formats import open_demos
from robopolicy.demos.writer import DemoWriter
from robopolicy.types import ActionSpec, Demo, DemoFormatError
from tests.demo_samples import LENGTHS, write_act, write_libero, write_robomimic, write_robosuite_raw


@pytest.fixture
def damaged(tmp_path):
    """A robomimic file whose demo_0 is sound, demo_1 has a NaN, demo_2 has more images than actions, demo_3 equals demo_0."""
    path = write_robomimic(tmp_path / "lift.hdf5")
    with h5py.File(path, "r+") as file:
        file["data/demo_1/actions"][2, 3] = np.nan
        del file["data/demo_2/obs/agentview_image"]
        file["data/demo_2/obs/agentview_image"] = np.zeros((LENGTHS[2] + 1, 16, 24, 3), np.uint8)
        file.copy("data/demo_0", file["data"], "demo_3")
        file.copy("data/demo_0", file["data"], "demo_4")
        file["data/demo_4/actions"][:, :6] *= 0.5
        file["data/demo_4/actions"][:, 6] = -1
    return path


def test_a_sound_file_is_described_and_gives_0(tiny_demos):
    """Guards against: complaints about a sound file, which teach users to ignore them."""
    console = Console(record=True, width=200)
    assert run_check([tiny_demos], console=console) == 0
    text = console.export_text()
    for fact in (
        "robomimic",
        "5, 5 readable",
        "54 (7 - 15 a demo",
        "20 Hz",
        "arm 0-5 (delta, ee); binary gripper 6 (-1 or 1)",
        "'lift the red cube' x 3",
        "train 4, valid 1",
        "obs/front",
        "16 x 16 x 3",
        "nothing wrong in 5 demos",
    ):
        assert fact in text, fact


def test_constant_actions_of_every_demo_are_a_short_hint(tmp_path):
    """Guards against: a screen full of pauses, and an edit that cuts out motion, where the actions are velocities."""
    rng = np.random.default_rng(0)
    with DemoWriter(tmp_path / "drive.hdf5", action_spec=ActionSpec(arm=2, gripper=0, kind="absolute")) as writer:
        for number in range(12):
            rows = np.concatenate([rng.uniform(-1, 1, (20, 2)), np.ones((25 + 2 * number, 2))]).astype(np.float32)
            writer.write(Demo(f"demo_{number}", {"state": rng.uniform(-1, 1, rows.shape)}, rows))
    report = check_file(tmp_path / "drive.hdf5")
    lines = [line for line in finding_lines(report.notes) if "repeat the one before" not in line]
    assert lines[0].startswith("demo_0: nothing is commanded to move for 1.2 s from step 21; if the actions are veloc")
    assert lines[3] == "and 9 more messages like this one"
    assert report.edit_commands == []


def test_each_kind_of_damage_is_named_with_its_demo(damaged):
    """Guards against: damage without the demo and key that the user needs for a repair."""
    report = check_file(damaged)
    found = {(finding.demo, finding.text) for finding in report.problems}
    assert ("demo_1", "actions: nan at step 2; every value must be finite") in found
    assert any(demo == "demo_2" and "7 actions but 8 rows in obs/agentview_image" in text for demo, text in found)
    assert ("demo_3", "the same actions and observations as demo_0") in found
    assert any(demo == "demo_4" and "never moves" in text for demo, text in found)
    assert report.good == ["demo_0"]
    assert run_check([damaged], console=Console(quiet=True)) == 1


def test_salvage_writes_the_good_demos_only(damaged, tmp_path):
    """Guards against: hours of recording lost to one bad episode."""
    salvage(check_file(damaged), tmp_path / "good.hdf5")
    with open_demos(tmp_path / "good.hdf5") as demos:
        assert list(demos.names) == ["demo_0"]
        assert demos.filter_keys["train"] == ["demo_0"]
    assert run_check([tmp_path / "good.hdf5"], console=Console(quiet=True)) == 0


def test_nothing_good_is_nothing_to_salvage(damaged, tmp_path):
    """Guards against: an empty file, which would be refused later, without the reason."""
    with h5py.File(damaged, "r+") as file:
        for index in (0, 2, 3, 4):
            del file[f"data/demo_{index}"]
        del file["mask"]
    with pytest.raises(DemoFormatError, match="none of its 1 demos is without a problem"):
        run_check([damaged], salvage_to=tmp_path / "good.hdf5", console=Console(quiet=True))
    assert not (tmp_path / "good.hdf5").exists()


def test_what_can_t_be_opened_gives_2_and_the_others_are_still_reported(tiny_demos, tmp_path):
    """Guards against: one truncated file among twenty that hides the rest."""
    raw = write_robosuite_raw(tmp_path / "demo.hdf5")
    console = Console(record=True, width=300)
    assert run_check([raw, tiny_demos], console=console) == 2
    text = console.export_text()
    assert "demo.hdf5: robosuite's raw layout" in text
    assert "nothing wrong in 5 demos" in text


def test_files_that_don_t_fit_together_are_noted(tiny_demos, tmp_path):
    """Guards against: files that don't fit together, noticed at the first batch of a training or never."""
    reports = [check_file(tiny_demos), check_file(write_act(tmp_path / "act"))]
    compare_files(reports)
    second = reports[1]
    assert any("unequal clocks: 50 Hz here, 20 Hz in tiny.hdf5" in finding.text for finding in second.notes)
    assert any("14 columns" in finding.text for finding in second.notes)


def test_the_page_holds_everything_in_itself(tiny_demos, tmp_path):
    """Guards against: a page that loads scripts or images from elsewhere, and shows nothing offline."""
    page = tmp_path / "out" / "check.html"
    run_check([tiny_demos], html=page, console=Console(quiet=True))
    text = page.read_text()
    assert text.count("<svg") == 7, "one histogram for each action column"
    assert "data:image/png;base64," in text
    assert "http" not in text
    assert "<script" not in text


def test_names_from_strangers_are_escaped_on_the_page(tmp_path):
    """Guards against: an instruction that carries a script into the user's browser."""
    path = write_libero(tmp_path / "task.hdf5")
    with h5py.File(path, "r+") as file:
        file["data"].attrs["problem_info"] = '{"language_instruction": "<script>alert(1)</script>"}'
        file["data/demo_0/obs"]["<img src=x>"] = np.zeros((LENGTHS[0], 2))
    page = tmp_path / "check.html"
    run_check([path], html=page, console=Console(quiet=True))
    text = page.read_text()
    assert "<script>alert" not in text
    assert "<img src=x>" not in text
    assert "&lt;script&gt;alert(1)" in text


def test_where_no_file_opens_no_page_is_written(tmp_path):
    """Guards against: an empty page, which looks like a file with nothing in it."""
    (tmp_path / "a.hdf5").write_bytes(b"no demos")
    console = Console(record=True, width=200)
    assert run_check([tmp_path / "a.hdf5"], html=tmp_path / "page.html", console=console) == 2
    assert "page" not in console.export_text()
    assert not (tmp_path / "page.html").exists()


def test_a_damaged_first_demo_does_not_hide_the_others(damaged):
    """Guards against: a file refused as a whole because its first demo, whose keys are listed, is the damaged one."""
    with h5py.File(damaged, "r+") as file:
        del file["data/demo_3"], file["data/demo_4"]
        file["data/demo_0"].attrs["num_samples"] = 99
        file.copy("data/demo_1", file["data"], "demo_5")
        file["data/demo_5/actions"][2, 3] = 0
    report = check_file(damaged)
    assert ("demo_0", "num_samples is 99") in {(each.demo, each.text[:17]) for each in report.problems}
    assert report.good == ["demo_5"]
