"""Files that someone else wrote: trained on as they are, from the command line, or refused in one line."""

import os
from pathlib import Path

import h5py
import numpy as np
import pytest

from robopolicy.cli import main
from robopolicy.demos.formats import convert
from tests.demo_samples import write_act, write_lerobot, write_robomimic, write_robosuite_raw
from tests.small_runs import metrics, weights

FAMILIES = {
    "robomimic": (
        lambda folder: write_robomimic(folder / "lift.hdf5"),
        "--data.cameras agentview_image --encoder.kind pixels",
    ),
    "act": (lambda folder: write_act(folder / "act"), ""),
    "lerobot": (lambda folder: write_lerobot(folder / "so101"), ""),
}
"""Each with what the policy sees of it."""
SMALL = (
    "--encoder.width 8 --encoder.hidden 8 --memory.window 3 --action_head.chunk 2 --memory.hidden 8 --memory.layers 1 "
    "--data.batch_size 8 --training.valid_every 3 --max-steps 6"
)
"""A policy whose training takes a second."""
FOLDER = Path(os.environ.get("ROBOPOLICY_DEMOS", "/nonexistent"))
genuine = pytest.mark.skipif(not FOLDER.is_dir(), reason="ROBOPOLICY_DEMOS names no folder of third-party demos")


def train(files: Path, run_dir: Path, *options: str) -> int:
    """`robopolicy train` for a second; gives the exit code."""
    return main(["train", "--data.files", str(files), "--run-dir", str(run_dir), *SMALL.split(), *options])


def assert_same_training(one: Path, other: Path) -> None:
    """Equal losses on the held-out demos at every pass, and equal weights, bit for bit."""
    first, second = (metrics(run)["valid"] for run in (one, other))
    assert first == second
    assert len(first) == 2
    assert weights(one).equal(weights(other))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_file_and_its_converted_copy_train_the_same_policy(family, tmp_path):
    """Guards against: a conversion that rounds, reorders or splits otherwise, and changes published results."""
    write, sees = FAMILIES[family]
    original = write(tmp_path)
    convert(original, tmp_path / "copy.hdf5")
    assert train(original, tmp_path / "one", *sees.split()) == 0
    assert train(tmp_path / "copy.hdf5", tmp_path / "other", *sees.split()) == 0
    assert_same_training(tmp_path / "one", tmp_path / "other")


@genuine
@pytest.mark.parametrize("path", sorted(FOLDER.iterdir()) if FOLDER.is_dir() else [], ids=lambda path: path.name)
def test_every_genuine_file_is_trained_on_or_refused_in_one_line(path, tmp_path, capsys):
    """Guards against: a file of a common family that is neither trained on nor refused in one line."""
    if path.suffix not in ("", ".hdf5"):
        pytest.skip("no demos")
    code = train(path, tmp_path / "run")
    said = capsys.readouterr()
    if "raw" in path.name:
        assert code == 2
        assert "nothing to train on" in said.err
        assert said.err.count("\n") == 1
        assert not (tmp_path / "run").exists()
    else:
        assert code == 0
        assert metrics(tmp_path / "run")["valid"]


@genuine
def test_genuine_lift_demos_and_their_copy_train_the_same_policy(tmp_path):
    """Guards against: a paper's figures that depend on which of the two files was used."""
    convert(FOLDER / "robosuite_lift_lowdim.hdf5", tmp_path / "copy.hdf5")
    assert train(FOLDER / "robosuite_lift_lowdim.hdf5", tmp_path / "one") == 0
    assert train(tmp_path / "copy.hdf5", tmp_path / "other") == 0
    assert_same_training(tmp_path / "one", tmp_path / "other")


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def nan_action(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        file["data/demo_1/actions"][2, 3] = np.nan


def shorter_observations(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        kept = file["data/demo_1/obs/robot0_eef_pos"][:-1]
        del file["data/demo_1/obs/robot0_eef_pos"]
        file["data/demo_1/obs/robot0_eef_pos"] = kept


def empty_mask(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        del file["mask/train"]
        file["mask/train"] = np.array([], dtype="S8")


def other_width(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        kept = file["data/demo_1/actions"][:, :5]
        del file["data/demo_1/actions"]
        file["data/demo_1/actions"] = kept


def no_demo(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        for name in list(file["data"]):
            del file["data"][name]


def as_it_is(path: Path) -> None:
    """Nothing is wrong with the file."""


@pytest.mark.parametrize(
    ("spoil", "options", "message"),
    [
        (cut_short, "", "lift.hdf5: "),
        (nan_action, "", "lift.hdf5, demo_1: actions: nan at step 2"),
        (shorter_observations, "", "lift.hdf5, demo_1: 6 actions but 5 rows in obs/robot0_eef_pos"),
        (empty_mask, "", "no training demo; it has 3 demos and the filter keys train, valid"),
        (other_width, "", "demo_1: actions has rows of float32 (5,) but the first demo has float32 (7,)"),
        (no_demo, "", "lift.hdf5: no demo in it"),
        (as_it_is, "--data.cameras wrist", "no camera 'wrist'; it has: agentview_image"),
        (as_it_is, "--data.obs_keys speed", "no key 'speed'; it has: "),
        (as_it_is, "--data.train_filter half", "no such filter key; it has: train, valid"),
        (as_it_is, "--data.gripper 0", "--data.gripper 0: that column has"),
        (as_it_is, "--data.arm 9", "names column 9; actions have columns 0 .. 6"),
        (
            as_it_is,
            "--encoder.kind precomputed",
            "lift.hdf5: no tokens in it or beside it; `robopolicy encode` makes them",
        ),
        (
            as_it_is,
            "--encoder.kind pixels",
            "needs at least one camera; the policy sees: robot0_eef_pos; give --data.cameras",
        ),
        (as_it_is, '--normalization.rotations {"actions[0:4]":"quaternion"}', "actions: quaternions are of length"),
    ],
)
def test_what_cannot_be_trained_on_is_one_line_and_leaves_nothing(spoil, options, message, tmp_path, capsys):
    """Guards against: a traceback that names our code instead of the user's file, and half a run folder in the way."""
    path = write_robomimic(tmp_path / "lift.hdf5")
    spoil(path)
    assert train(path, tmp_path / "run", *options.split()) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert [item.name for item in tmp_path.iterdir()] == ["lift.hdf5"]


@pytest.mark.parametrize("verb", ["check", "convert", "train"])
def test_demos_without_observations_are_refused_by_every_verb(verb, tmp_path, capsys):
    """Guards against: robosuite's raw layout, which must be rendered first, accepted by some verb."""
    path = write_robosuite_raw(tmp_path / "demo.hdf5")
    words = {"convert": [str(tmp_path / "out.hdf5")], "train": []}.get(verb, [])
    code = train(path, tmp_path / "run") if verb == "train" else main([verb, str(path), *words])
    assert code == 2
    said = capsys.readouterr()
    assert "can't be trained on" in said.err + said.out
    assert [item.name for item in tmp_path.iterdir()] == ["demo.hdf5"]
