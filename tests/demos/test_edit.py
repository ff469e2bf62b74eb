"""The verb `edit`: what is written, what is left as it was, and what is refused."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest

from robopolicy.cli import main
from robopolicy.demos.edit import Edit, edit_demos, parts_of
from robopolicy.demos.formats import DemoReader, convert, open_demos
from robopolicy.demos.hdf5 import DemoFile, DemoWriter
from robopolicy.types import ActionSpec, Demo, DemoFormatError
from tests.demo_samples import assert_same, write_act, write_lerobot, write_libero, write_minari, write_robomimic

SHARED = Path(__file__).parents[3] / "shared" / "demos"


def digest(path: Path) -> str:
    """SHA-256 of a file, or of a folder's."""
    files = sorted(item for item in path.rglob("*") if item.is_file()) if path.is_dir() else [path]
    found = hashlib.sha256()
    for file in files:
        found.update(str(file.relative_to(path)).encode() + file.read_bytes())
    return found.hexdigest()


def content(path: Path) -> dict[str, object]:
    """Checksums of every demo, the masks, and the facts of the set but for its history."""
    with DemoFile(path) as file:
        about = {key: value for key, value in file.attributes.items() if key != "edits"}
        marks = {name: json.loads(file._group(name).attrs["checksums"]) for name in file.names}
        return {"demos": marks, "masks": file.filter_keys, **about}


def edited(path: Path, target: Path, changes: Edit) -> list[Demo]:
    edit_demos([path], {target: "all"}, changes)
    with open_demos(target) as demos:
        return [demos.read(name) for name in demos.names]


def one_demo(path: Path, demo: Demo, spec: ActionSpec) -> Path:
    with DemoWriter(path, action_spec=spec) as writer:
        writer.write(demo)
    return path


WRITE = {
    "robomimic": lambda folder: write_robomimic(folder / "demos.hdf5"),
    "libero": lambda folder: write_libero(folder / "task_demo.hdf5"),
    "act": lambda folder: write_act(folder / "act"),
    "lerobot": lambda folder: write_lerobot(folder / "set"),
    "minari": lambda folder: write_minari(folder / "pen"),
}


@pytest.mark.parametrize(
    "parts", [{"a": "0.6", "b": "rest"}, {"a": "train", "b": "valid"}, {"a": "1", "b": "2", "c": "rest"}]
)
def test_what_is_split_and_merged_is_what_it_was(tiny_demos, tmp_path, parts):
    """Guards against: a demo, a mask or an attribute lost or renumbered on the way."""
    before = digest(tiny_demos)
    outputs = {tmp_path / f"{name}.hdf5": part for name, part in parts.items()}
    files, _ = edit_demos([tiny_demos], outputs)
    assert sum(len(file.steps) for file in files) == 5
    edit_demos([*reversed(outputs)], {tmp_path / "merged.hdf5": "all"})
    assert content(tmp_path / "merged.hdf5") == content(tiny_demos)
    assert digest(tiny_demos) == before


@pytest.mark.parametrize("kind", WRITE)
def test_files_of_every_format_are_split_and_merged(kind, tmp_path):
    """Guards against: a format that `edit` reads otherwise than `convert` does, or writes into."""
    source = WRITE[kind](tmp_path)
    before = digest(source)
    convert(source, tmp_path / "whole.hdf5")
    edit_demos([source], {tmp_path / "a.hdf5": "1", tmp_path / "b.hdf5": "rest"}, Edit(seed=3))
    edit_demos([tmp_path / "a.hdf5", tmp_path / "b.hdf5"], {tmp_path / "merged.hdf5": "all"})
    assert content(tmp_path / "merged.hdf5") == content(tmp_path / "whole.hdf5")
    assert digest(source) == before


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared third-party demos are not on this machine")
@pytest.mark.parametrize("name", ["robosuite_lift_image.hdf5", "act_transfer_cube"])
def test_genuine_files_are_split_and_merged(name, tmp_path):
    """Guards against: a layout of a real tool that the samples do not have."""
    before = digest(SHARED / name)
    convert(SHARED / name, tmp_path / "whole.hdf5")
    edit_demos([SHARED / name], {tmp_path / "a.hdf5": "70%", tmp_path / "b.hdf5": "rest"})
    edit_demos([tmp_path / "a.hdf5", tmp_path / "b.hdf5"], {tmp_path / "merged.hdf5": "all"})
    assert content(tmp_path / "merged.hdf5") == content(tmp_path / "whole.hdf5")
    assert digest(SHARED / name) == before


@pytest.mark.parametrize(("format", "options"), [("lerobot", {"images": "png"}), ("robomimic", {})])
def test_the_history_is_kept_in_the_new_file(tiny_demos, tmp_path, format, options):
    """Guards against: a data set of which nobody knows what was done to it."""
    edit_demos([tiny_demos], {tmp_path / "a.hdf5": "2"}, Edit(drop_keys=["front"]))
    edit_demos([tmp_path / "a.hdf5"], {tmp_path / "b": "all"}, Edit(rate_hz=10.0), format=format, options=options)
    with open_demos(tmp_path / "b") as demos:
        first, second = json.loads(demos.attributes["edits"])["history"]
    assert (first["sources"][0]["name"], first["drop_keys"], first["part"]) == ("tiny.hdf5", ["front"], "2")
    assert first["sources"][0]["bytes"] == tiny_demos.stat().st_size
    assert (second["sources"][0]["name"], second["rate_hz"]) == ("a.hdf5", 10.0)


def test_a_long_history_loses_its_oldest_edits_first(tiny_demos, tmp_path):
    """Guards against: an attribute beyond HDF5's 64 KiB, which can't be written."""
    source = tiny_demos
    for number in range(3):
        rename = {f"{'k' * (15_000 * (number > 0))}{number - 1}" if number else "front": f"{'k' * 15_000}{number}"}
        edit_demos([source], {tmp_path / f"{number}.hdf5": "all"}, Edit(rename=rename))
        source = tmp_path / f"{number}.hdf5"
    with open_demos(source) as demos:
        history = json.loads(demos.attributes["edits"])["history"]
    assert [edit["sources"][0]["name"] for edit in history] in (["1.hdf5"], ["0.hdf5", "1.hdf5"])


def test_demos_of_one_name_are_renumbered_with_their_masks(tiny_demos, tmp_path):
    """Guards against: of two demo_0 one that replaces the other, or a mask that names the wrong one."""
    other = tmp_path / "other.hdf5"
    edit_demos([tiny_demos], {other: "all"}, Edit(select=["demo_3..demo_4"]))
    (file,), _ = edit_demos([tiny_demos, other], {tmp_path / "merged.hdf5": "all"})
    assert {name: origin[1] for name, origin in file.origin.items()}["demo_6"] == "demo_4"
    with DemoFile(tmp_path / "merged.hdf5") as merged, DemoFile(tiny_demos) as file:
        assert merged.filter_keys == {
            "train": ["demo_0", "demo_1", "demo_2", "demo_3", "demo_5"],
            "valid": ["demo_4", "demo_6"],
        }
        assert_same(merged.read("demo_6"), replace(file.read("demo_4"), name="demo_6"))


def test_demos_and_keys_are_chosen_renamed_and_relabeled(tiny_demos, tmp_path):
    """Guards against: a change that touches another demo, or another array of the demo."""
    changes = Edit(
        select=["train"],
        drop=["demo_2"],
        drop_keys=["cube_red"],
        rename={"front": "top"},
        instructions={"demo_1": "lift it", "demo_3": ""},
        filter_keys={"train": "2", "valid": "rest"},
    )
    found = edited(tiny_demos, tmp_path / "new.hdf5", changes)
    with DemoFile(tiny_demos) as file:
        for demo, text in zip(found, ("lift the red cube", "lift it", None), strict=True):
            was = file.read(demo.name)
            obs = {"ee_pose": was.obs["ee_pose"], "gripper": was.obs["gripper"], "top": was.obs["front"]}
            assert_same(demo, replace(was, obs=obs, instruction=text))
    with DemoFile(tmp_path / "new.hdf5") as file:
        assert sorted(map(len, file.filter_keys.values())) == [1, 2]


def pausing(rate_hz: float = 20.0) -> tuple[Demo, ActionSpec]:
    """40 steps of motion, 30 without, 30 with; the gripper closes at step 80 and the arm waits for it until 88."""
    rng = np.random.default_rng(0)
    arm = rng.uniform(0.3, 1, (100, 3)) * rng.choice([-1, 1], (100, 3))
    arm[40:70] = arm[80:88] = 0
    actions = np.c_[arm, np.where(np.arange(100) < 80, -1.0, 1.0)]
    obs = {"step": np.arange(100.0)[:, None], "stamp_s": np.arange(100) / rate_hz}
    demo = Demo("demo_0", obs, actions, rewards=np.arange(100.0), dones=np.arange(100) == 99)
    return demo, ActionSpec(arm=3, gripper=1, kind="delta", space="ee", rate_hz=rate_hz)


def test_idle_stretches_are_cut_and_waits_for_the_gripper_stay(tmp_path):
    """Guards against: a policy that learns to stand still, and one that lifts before its hand is closed."""
    source = one_demo(tmp_path / "a.hdf5", *pausing())
    (found,) = edited(source, tmp_path / "b.hdf5", Edit(trim_idle=4))
    assert found.obs["step"][:, 0].tolist() == [*range(40), *range(66, 100)]
    np.testing.assert_allclose(found.obs["stamp_s"], np.arange(74) / 20)
    assert found.rewards is not None
    assert found.rewards[-1] == 99


def test_absolute_targets_that_repeat_are_idle(tmp_path):
    """Guards against: joint targets far from zero that are taken for motion."""
    targets = np.linspace(1, 2, 60)[:, None] * np.ones(3)
    targets[20:50] = targets[20]
    demo = Demo("demo_0", {"step": np.arange(60.0)[:, None]}, targets)
    spec = ActionSpec(arm=3, gripper=0, kind="absolute", space="joint_position", rate_hz=20.0)
    (found,) = edited(one_demo(tmp_path / "a.hdf5", demo, spec), tmp_path / "b.hdf5", Edit(trim_idle=2))
    assert len(found) == 60 - 29 + 2


@pytest.mark.parametrize(
    ("kind", "space", "expected"),
    [
        ("delta", "ee", [3, 12, 21, 19]),
        ("absolute", "ee", [2, 5, 8, 10]),
        ("absolute", "joint_velocity", [1, 4, 7, 9.5]),
    ],
)
def test_a_lower_rate_keeps_the_motion_of_deltas_targets_and_velocities(tmp_path, kind, space, expected):
    """Guards against: every third action kept, which moves a delta-controlled robot a third of the way."""
    rows = np.arange(11.0)[:, None]
    demo = Demo(
        "demo_0",
        {"step": rows, "stamp_s": np.arange(11) / 30},
        np.c_[rows, np.where(rows < 5, -1, 1)],
        rewards=np.arange(11.0),
        dones=np.arange(11) == 10,
    )
    spec = ActionSpec(arm=1, gripper=1, kind=kind, space=space, rate_hz=30.0)
    (found,) = edited(one_demo(tmp_path / "a.hdf5", demo, spec), tmp_path / "b.hdf5", Edit(rate_hz=10.0))
    assert found.actions[:, 0].tolist() == expected
    assert found.actions[:, 1].tolist() == [-1, 1, 1, 1]
    assert found.obs["step"][:, 0].tolist() == [0, 3, 6, 9]
    assert found.dones is not None
    assert found.dones.tolist() == [0, 0, 0, 1]
    with DemoFile(tmp_path / "b.hdf5") as file:
        assert file.action_spec == replace(spec, rate_hz=10.0)


def test_a_rate_that_does_not_divide_keeps_the_sum_of_deltas(tmp_path):
    """Guards against: steps lost or used twice where 20 Hz become 15."""
    demo, spec = pausing()
    (found,) = edited(one_demo(tmp_path / "a.hdf5", demo, spec), tmp_path / "b.hdf5", Edit(rate_hz=15.0))
    assert len(found) == 75
    np.testing.assert_allclose(found.actions[:, :3].sum(0), demo.actions[:, :3].sum(0))
    assert np.abs(found.obs["stamp_s"] - np.arange(75) / 15).max() <= 0.5 / 20 + 1e-9


def test_a_dry_run_prints_and_writes_nothing(tiny_demos, tmp_path, capsys):
    """Guards against: a dry run that leaves a file, or promises another result than the run gives."""
    words = ["edit", str(tiny_demos), "--out", str(tmp_path / "new.hdf5"), "--select", "demo_1", "--rate", "10"]
    assert main([*words, "--dry-run"]) == 0
    text = capsys.readouterr().out
    assert "demo      demo_1: 5 steps, demo_1 of tiny.hdf5" in text
    assert "would be  " in text
    assert list(tmp_path.iterdir()) == []
    assert main(words) == 0
    assert "1 demos, 5 steps; cube_red, ee_pose, front, gripper" in capsys.readouterr().out.replace("\n", " ")


def test_a_killed_edit_leaves_no_file_under_the_name(tmp_path, make_demo):
    """Guards against: half a data set that is taken for the whole."""
    source, target = tmp_path / "a.hdf5", tmp_path / "out.hdf5"
    with DemoWriter(source) as writer:
        for number in range(40):
            writer.write(make_demo(number, steps=60, image_size=64))
    before, killed = digest(source), 0
    for delay_s in (0.02, 0.1, 0.2, 0.4, 0.6):
        code = "import sys; from robopolicy.cli import main; print('go', flush=True); sys.exit(main())"
        words = [sys.executable, "-c", code, "edit", str(source), "--out", str(target)]
        with subprocess.Popen(words, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(delay_s)
            process.send_signal(signal.SIGKILL)
            killed += process.wait() < 0
        assert digest(source) == before
        if target.exists():
            assert content(target) == content(source) | {key: content(target)[key] for key in ("env_args",)}
            os.remove(target)
    assert killed > 0
    assert main(["edit", str(source), "--out", str(target)]) == 0
    assert content(target)["demos"] == content(source)["demos"]


def test_an_instruction_that_changes_leaves_tokens_out(tmp_path, make_demo):
    """Guards against: tokens of the old instruction beside the new one."""
    tokens = np.zeros((10, 2, 4), np.float16)
    one_demo(tmp_path / "a.hdf5", replace(make_demo(0), tokens=tokens), ActionSpec(arm=6, gripper=1))
    _, notes = edit_demos([tmp_path / "a.hdf5"], {tmp_path / "b.hdf5": "all"}, Edit(instructions={"demo_0": "push"}))
    assert any("tokens were made from the old instructions" in note for note in notes)
    with DemoFile(tmp_path / "b.hdf5") as file:
        assert file.read("demo_0").tokens is None


def reader_peak(path: Path, target: Path) -> int:
    """Most bytes of observations of the demos alive at once while `edit` writes."""
    import gc
    import weakref

    alive: dict[int, int] = {}
    peak = 0
    read = DemoFile.read

    def counted(self, name, keys=None):
        nonlocal peak
        demo = read(self, name, keys)
        for values in demo.obs.values():
            alive[id(values)] = values.nbytes
            weakref.finalize(values, alive.pop, id(values), None)
        gc.collect()
        peak = max(peak, sum(alive.values()))
        return demo

    DemoFile.read = counted
    try:
        edit_demos([path], {target: "all"}, Edit(trim_idle=4))
    finally:
        DemoFile.read = read
    return peak


def test_memory_holds_a_demo_at_a_time(tmp_path, make_demo):
    """Guards against: an image file larger than memory that can't be edited."""
    with DemoWriter(tmp_path / "a.hdf5") as writer:
        for number in range(12):
            writer.write(make_demo(number, steps=10, image_size=32))
    one = sum(values.nbytes for values in make_demo(0, steps=10, image_size=32).obs.values())
    assert reader_peak(tmp_path / "a.hdf5", tmp_path / "b.hdf5") <= 2 * one


def csv_file(folder: Path, text: str) -> str:
    (folder / "labels.csv").write_text(text)
    return str(folder / "labels.csv")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--select", "demo_9"],
            "no demo 'demo_9'; there are demo_0, demo_1, demo_2, demo_3, demo_4; filter keys train",
        ),
        (["--drop", "tset"], "no demo 'tset'"),
        (["--drop", "demo_0..demo_4"], "no demo is left of 5"),
        (["--drop-keys", "wrist"], "no key 'wrist'; it has: cube_red, ee_pose, front, gripper"),
        (["--rename", "wrist=top"], "no key 'wrist'"),
        (["--rename", "front=ee_pose"], "two keys would be called 'ee_pose'"),
        (["--rename", "front"], "'front' is not NAME=VALUE"),
        (["--rename", "front=a", "gripper=a"], "two keys would be called 'a'"),
        (["--rename", "front=a", "--drop-keys", "front"], "'front' is to be dropped and renamed"),
        (["--relabel", "demo,instruction\ndemo_0,a\ndemo_0,b\n"], "labels.csv, row 3: names demo_0 a second time"),
        (["--relabel", "demo,instruction\ndemo_7,a\n"], "no demo 'demo_7' to give an instruction to"),
        (["--relabel", "name,text\ndemo_0,a\n"], "expected demo,instruction"),
        (["--relabel", "demo,instruction\ndemo_0,lift, slowly\n"], "row 2: 3 columns"),
        (["--rate", "0"], "rate is 0.0; expected more than 0 Hz"),
        (["--rate", "-5"], "expected more than 0 Hz"),
        (["--rate", "40"], "tiny.hdf5 has 20 Hz; expected a new rate in (0, 20], got 40"),
        (["--rate", "nan"], "rate is nan"),
        (["--trim-idle", "0"], "expected 1 step or more"),
        (["--filter-keys", "train=1.5"], "train=1.5: expected a count such as 20, a share such as 0.9 or 90%"),
        (["--filter-keys", "train=6"], "6 demos are needed; there are 5 to draw from"),
        (["--filter-keys", "train=0"], "train=0: expected a count"),
        (["--filter-keys", "train=1", "train=2"], "names 'train' twice"),
        (["--filter-keys", "a=1.0", "b=rest"], "b=rest: no demo would be in it"),
        (["--split", "a=1"], "give either --out FILE or --split"),
        (["--format", "libero"], "'libero' can only be read"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(tiny_demos, tmp_path, capsys, words, message):
    """Guards against: a traceback, or a file of something else than was meant."""
    words = [csv_file(tmp_path, word) if "\n" in word else word for word in words]
    before = sorted(tmp_path.iterdir())
    for dry in ([], ["--dry-run"]):
        assert main(["edit", str(tiny_demos), "--out", str(tmp_path / "new.hdf5"), *words, *dry]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert message in error
    assert sorted(tmp_path.iterdir()) == before


def other(demo: Demo, spec: ActionSpec, change: str) -> tuple[Demo, ActionSpec]:
    if change == "rate":
        return demo, replace(spec, rate_hz=10.0)
    if change == "kind":
        return demo, replace(spec, kind="absolute")
    if change == "columns":
        return replace(demo, actions=demo.actions[:, 1:]), ActionSpec(
            arm=2, gripper=1, kind="delta", space="ee", rate_hz=20.0
        )
    if change == "key":
        return replace(demo, obs={"step": demo.obs["step"]}), spec
    return replace(demo, obs={**demo.obs, "step": np.zeros((100, 2))}), spec


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("rate", "b.hdf5: rate_hz of the actions is 10.0, in a.hdf5 20.0; resample one with --rate"),
        ("kind", "b.hdf5: kind of the actions is absolute, in a.hdf5 delta; merging needs the same action columns"),
        ("columns", "b.hdf5: actions has rows of shape (3,); in the demos before it they are (4,)"),
        ("key", "b.hdf5: no key 'stamp_s', which the demos before it have"),
        ("shape", "b.hdf5: step has rows of shape (2,); in the demos before it they are (1,)"),
    ],
)
def test_files_that_differ_are_not_merged(tmp_path, capsys, change, message):
    """Guards against: one data set of two robots, on which training fails at the first batch, or worse, doesn't."""
    one_demo(tmp_path / "a.hdf5", *pausing())
    one_demo(tmp_path / "b.hdf5", *other(*pausing(), change))
    files = [str(tmp_path / name) for name in ("a.hdf5", "b.hdf5")]
    assert main(["edit", *files, "--out", str(tmp_path / "c.hdf5")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "c.hdf5").exists()


def test_files_of_two_rates_and_key_names_merge_when_made_alike(tmp_path):
    """Guards against: the way out that the messages name being closed."""
    demo, spec = pausing()
    one_demo(tmp_path / "a.hdf5", replace(demo, obs={"count": demo.obs["step"], "stamp_s": demo.obs["stamp_s"]}), spec)
    one_demo(tmp_path / "b.hdf5", *pausing(rate_hz=10.0))
    changes = Edit(rename={"count": "step"}, rate_hz=10.0)
    (file,), _ = edit_demos([tmp_path / "a.hdf5", tmp_path / "b.hdf5"], {tmp_path / "c.hdf5": "all"}, changes)
    assert list(file.steps.values()) == [50, 100]


@pytest.mark.parametrize(
    "spec", [ActionSpec(arm=3, gripper=1, rate_hz=20.0), ActionSpec(arm=3, gripper=1, kind="delta")]
)
def test_what_a_file_does_not_declare_is_not_guessed_to_resample(tmp_path, spec):
    """Guards against: targets that are added up, or a rate that nobody wrote."""
    one_demo(tmp_path / "a.hdf5", pausing()[0], spec)
    with pytest.raises(DemoFormatError, match="declare"):
        edit_demos([tmp_path / "a.hdf5"], {tmp_path / "b.hdf5": "all"}, Edit(rate_hz=5.0))


def test_an_existing_output_is_never_overwritten(tiny_demos, tmp_path, capsys):
    """Guards against: an edit in place."""
    before = digest(tiny_demos)
    assert main(["edit", str(tiny_demos), "--out", str(tiny_demos)]) == 2
    assert "exists; choose another name" in capsys.readouterr().err
    (tmp_path / "b.hdf5").write_text("mine")
    assert main(["edit", str(tiny_demos), "--split", f"{tmp_path}/a.hdf5=2", f"{tmp_path}/b.hdf5=rest"]) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["b.hdf5"]
    assert digest(tiny_demos) == before


@pytest.mark.parametrize("total", [1, 2, 3, 10, 97])
def test_shares_that_sum_to_one_leave_no_demo_out(total):
    """Guards against: rounding that loses a demo, or hands it out twice."""
    names = [f"demo_{number}" for number in range(total)]
    parts = {"a": "0.5", "b": "rest"} if total < 10 else {"a": "1", "b": "50%", "c": "0.25", "d": "rest"}
    if total == 1:
        parts = {"a": "100%"}
    found = parts_of(parts, names, {}, seed=1)
    assert sorted(name for part in found.values() for name in part) == sorted(names)


def test_a_wrapped_reader_is_still_a_reader(tiny_demos):
    """Guards against: a step of an edit that lacks what a format's writer asks for."""
    from robopolicy.demos.edit_readers import ChangedReader

    with open_demos(tiny_demos) as reader:
        assert isinstance(ChangedReader(reader), DemoReader)


def test_a_mask_file_keeps_only_what_is_left(tiny_demos, tmp_path):
    """Guards against: an empty mask, which training refuses as a split without demos."""
    edit_demos([tiny_demos], {tmp_path / "a.hdf5": "all"}, Edit(select=["demo_0", "demo_1"]))
    with h5py.File(tmp_path / "a.hdf5") as file:
        assert list(file["mask"]) == ["train"]
