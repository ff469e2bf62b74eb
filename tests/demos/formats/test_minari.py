"""Minari data sets."""

import json
import os
import re
import subprocess
import venv
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest

from robopolicy.components import ConfigError
from robopolicy.demos.formats import convert, open_demos
from robopolicy.demos.hdf5 import DemoWriter
from robopolicy.types import DemoFormatError
from tests.demo_samples import LENGTHS, assert_same, images, jpeg, write_minari, write_minari_arrow

MINARI = ("minari[hdf5]==0.5.4", "pillow")


def test_observations_line_up_with_the_actions_taken_on_them(tmp_path):
    """Guards against: taking the last T of T + 1 observations, which would show each action the state after it."""
    folder = write_minari(tmp_path / "pen")
    with h5py.File(folder / "data/main_data.hdf5") as file:
        stored = file["episode_1/observations/observation"][()]
    with open_demos(folder) as demos:
        demo = demos.read("demo_1")
    assert len(demo) == LENGTHS[1]
    np.testing.assert_array_equal(demo.obs["observation"], stored[:-1])


def test_nested_observations_seed_and_ends_are_kept(tmp_path):
    """Guards against: goals in nested groups that are lost, and so can't be learned."""
    with open_demos(write_minari(tmp_path / "pen")) as demos:
        demo = demos.read("demo_2")
        assert demos.attributes["env_args"]["env_name"] == "AdroitHandPen-v1"
        assert any("infos" in note for note in demos.notes)
    assert set(demo.obs) == {"observation", "desired_goal_pen"}
    assert demo.seed == 42
    assert demo.dones.tolist() == [False] * (LENGTHS[2] - 1) + [True]


def test_a_mission_text_is_the_instruction(tmp_path):
    """Guards against: a file with a text among its observations, which would be refused, or its instruction lost."""
    folder = write_minari(tmp_path / "pen")
    with h5py.File(folder / "data/main_data.hdf5", "r+") as file:
        file["episode_0/observations/mission"] = ["turn the pen"] * (LENGTHS[0] + 1)
    with open_demos(folder) as demos:
        assert demos.read("demo_0").instruction == "turn the pen"
        assert demos.read("demo_1").instruction is None
        assert any("the text mission at an episode's first step" in note for note in demos.notes)


def test_other_texts_and_groups_are_said_to_be_left_out(tmp_path):
    """Guards against: recorded content that a reader drops without a word."""
    folder = write_minari(tmp_path / "pen")
    with h5py.File(folder / "data/main_data.hdf5", "r+") as file:
        file["episode_0/observations/remark"] = ["slippery"] * (LENGTHS[0] + 1)
        file["episode_0/forces"] = np.zeros(LENGTHS[0])
    with open_demos(folder) as demos:
        assert "text observations are left out: remark" in demos.notes
        assert "of each episode, forces, infos is not read" in demos.notes
        assert "remark" not in demos.read("demo_0").obs


def test_jpeg_images_are_decoded(tmp_path):
    """Guards against: JPEG byte strings, as Minari packs images, read as text."""
    folder, frames = write_minari(tmp_path / "pen"), images(LENGTHS[0] + 1)
    with h5py.File(folder / "data/main_data.hdf5", "r+") as file:
        file["episode_0/observations/front"] = np.array([jpeg(frame) for frame in frames])
    with open_demos(folder) as demos:
        decoded = demos.read("demo_0").obs["front"]
    assert np.abs(decoded.astype(int) - frames[:-1]).mean() < 6


def test_the_hdf5_file_inside_opens_alone(tmp_path):
    """Guards against: a file refused because the user passed it instead of its folder."""
    folder = write_minari(tmp_path / "pen")
    with open_demos(folder / "data/main_data.hdf5") as demos:
        assert demos.format_name == "minari"
        assert len(demos.names) == len(LENGTHS)


def test_discrete_actions_are_refused_in_one_line(tmp_path):
    """Guards against: a column of action numbers, which would be regressed as if 3 were between 2 and 4."""
    folder = write_minari(tmp_path / "grid")
    with h5py.File(folder / "data/main_data.hdf5", "r+") as file:
        del file["episode_0/actions"]
        file["episode_0/actions"] = np.zeros(LENGTHS[0], np.int64)
    with open_demos(folder) as demos, pytest.raises(DemoFormatError, match=r"demo_0: actions have shape \(9,\)"):
        demos.read("demo_0")


def test_an_observation_cut_short_is_refused(tmp_path):
    """Guards against: observations shifted by one against their actions, where the last one is missing."""
    folder = write_minari(tmp_path / "pen")
    with h5py.File(folder / "data/main_data.hdf5", "r+") as file:
        del file["episode_0/observations/observation"]
        file["episode_0/observations/observation"] = np.zeros((LENGTHS[0], 45))
    with open_demos(folder) as demos, pytest.raises(DemoFormatError, match=r"9 actions but 9 rows .* expected 10"):
        demos.read("demo_0")


@pytest.mark.parametrize(
    ("key", "values", "message"),
    [
        ("truncations", np.zeros((3, 2)), "truncations has shape"),
        ("rewards", np.float32(1), "rewards has shape"),
        ("observations/extra", np.zeros(LENGTHS[0] + 1, np.complex64), "extra has type complex64"),
    ],
)
def test_step_arrays_of_another_shape_or_type_are_refused(tmp_path, key, values, message):
    """Guards against: a traceback of numpy, and complex numbers that are trained on."""
    folder = write_minari(tmp_path / "pen")
    with h5py.File(folder / "data/main_data.hdf5", "r+") as file:
        file.pop(f"episode_0/{key}", None)
        file[f"episode_0/{key}"] = values
    with open_demos(folder) as demos, pytest.raises(DemoFormatError, match=message):
        demos.read("demo_0")


def written(tiny_demos: Path, folder: Path, demos: list[str] | None = None) -> Path:
    convert(tiny_demos, folder, "minari", names=demos, options={"dataset_id": "lab/lift-v3"})
    return folder


def test_our_own_demos_come_back_with_names_masks_and_columns(tiny_demos, tmp_path):
    """Guards against: a conversion there and back after which training splits or scales otherwise."""
    target = written(tiny_demos, tmp_path / "out", ["demo_4", "demo_1"])
    with open_demos(target) as found, open_demos(tiny_demos) as given:
        assert list(found.names) == ["demo_4", "demo_1"]
        assert found.filter_keys == {"train": ["demo_1"], "valid": ["demo_4"]}
        assert found.action_spec == given.action_spec
        for name in found.names:
            was = given.read(name)
            assert_same(replace(found.read(name), dones=was.dones), was)


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ({"names": ["demo_0"]}, "do not fit the 5 episodes"),
        ({"names": ["demo_0"] * 5}, "do not fit the 5 episodes"),
        ({"names": ["../x", *(f"demo_{number}" for number in range(4))]}, "a demo is named '../x'"),
        ({"filter_keys": {"train": ["demo_9"]}}, "name demo_9, which the data set does not hold"),
        ({"action_spec": {"arm": -1}}, "arm is '-1'"),
    ],
)
def test_a_crafted_sidecar_is_refused_in_one_line(tiny_demos, tmp_path, own, message):
    """Guards against: a stranger's names and columns taken unseen."""
    target = written(tiny_demos, tmp_path / "out")
    (target / "data/robopolicy.json").write_text(json.dumps(own))
    with pytest.raises(DemoFormatError, match=re.escape(message)):
        open_demos(target)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"obs": {"mission": np.zeros((10, 2))}}, "can't be called 'mission'"),
        ({"rewards": None}, "only some of the demos have rewards"),
        ({"instruction": None}, "only some of the demos have instruction"),
        ({"actions": np.zeros((10, 6))}, "actions has rows of shape .6,.; in the demos before it they are .7,."),
    ],
)
def test_demos_that_fit_no_common_space_are_refused(tmp_path, make_demo, change, message):
    """Guards against: a data set that Minari itself can't load."""
    with DemoWriter(tmp_path / "a.hdf5") as writer:
        writer.write(make_demo(0))
        writer.write(replace(make_demo(1), **change))
    with pytest.raises(DemoFormatError, match=message):
        convert(tmp_path / "a.hdf5", tmp_path / "out", "minari")
    assert not (tmp_path / "out").exists()


def test_a_data_set_id_that_minari_refuses_is_refused(tiny_demos, tmp_path):
    """Guards against: a data set that Minari refuses when it is loaded."""
    with pytest.raises(ConfigError, match="dataset_id must be"):
        convert(tiny_demos, tmp_path / "out", "minari", options={"dataset_id": "lift"})


@pytest.mark.parametrize("kind", ["arrow", "parquet"])
def test_tables_hold_the_same_as_an_hdf5_file(tmp_path, kind):
    """Guards against: shapes, the instruction or the seed lost, or the padding of the last row taken for a step."""
    with open_demos(write_minari_arrow(tmp_path / "pen", kind)) as demos:
        assert demos.attributes["env_args"]["env_name"] == "AdroitHandPen-v1"
        demo = demos.read("demo_1")
    rng = np.random.default_rng(1)
    goal, pose = rng.normal(size=(LENGTHS[1] + 1, 2, 2)), rng.normal(size=(LENGTHS[1] + 1, 3))
    np.testing.assert_array_equal(demo.obs["goal_pen"], goal[:-1])
    np.testing.assert_array_equal(demo.obs["pose"], pose[:-1])
    np.testing.assert_array_equal(demo.actions, rng.uniform(-1, 1, (LENGTHS[1], 4)))
    assert demo.obs["front"].shape == (LENGTHS[1], 16, 24, 3)
    assert (demo.instruction, demo.seed) == ("turn the pen", 41)
    assert demo.dones is not None
    assert demo.dones.tolist() == [False] * (LENGTHS[1] - 1) + [True]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda data: (data / "1/part-0.arrow").write_bytes(b"ARROW1" + bytes(90)), "damaged"),
        (lambda data: (data / "1/part-0.arrow").unlink(), "found 0 files, 0 bytes in total; expected regular"),
        (lambda data: change_metadata(data, observation_space="[" * 9000), "observation_space is not a space"),
        (lambda data: change_metadata(data, observation_space='{"type": "Box", "shape": [7]}'), None),
        (lambda data: change_metadata(data, data_format="zip"), "data_format is 'zip'"),
    ],
)
def test_a_crafted_table_is_refused_in_one_line(tmp_path, spoil, message):
    """Guards against: a traceback of pyarrow, or a stranger's shapes that are believed."""
    folder = write_minari_arrow(tmp_path / "pen")
    spoil(folder / "data")
    if message is None:
        with open_demos(folder) as demos:
            assert demos.read("demo_1").obs["goal_pen"].shape == (LENGTHS[1], 4)
        return
    with pytest.raises(DemoFormatError, match=message) as error, open_demos(folder) as demos:
        demos.read("demo_1")
    assert "\n" not in str(error.value)


def change_metadata(data: Path, **changes: str) -> None:
    path = data / "metadata.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


READ_BY_MINARI = """
import json, sys
import minari, numpy as np
data = minari.MinariDataset(sys.argv[1] + "/data")
print(json.dumps({
    "id": data.spec.dataset_id, "episodes": len(data), "steps": int(data.total_steps),
    "spaces": sorted(data.observation_space.spaces), "action": list(data.action_space.shape),
    "lengths": [len(episode.rewards) for episode in data],
    "inside": all(
        data.observation_space.contains({key: rows[0] for key, rows in episode.observations.items()})
        and data.action_space.contains(episode.actions[0])
        for episode in data
    ),
    "sums": [float(np.sum(episode.actions, dtype=np.float64)) for episode in data],
    "pixels": [int(np.sum(episode.observations["front"][:-1], dtype=np.int64)) for episode in data],
    "missions": [episode.observations["mission"][0] for episode in data],
    "ends": [bool(episode.terminations[-1]) for episode in data],
    "seeds": [int(item["seed"]) for item in data.storage.get_episode_metadata(range(len(data)))],
}))
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_minari_itself_reads_what_is_written(tmp_path, make_demo):
    """Guards against: a data set that only our own reader opens.

    `ROBOPOLICY_MINARI_PYTHON` names an interpreter with Minari, to build no environment for it.
    """
    python = os.environ.get("ROBOPOLICY_MINARI_PYTHON")
    if python is None:
        venv.create(tmp_path / "env", with_pip=True)
        python = str(tmp_path / "env" / "bin" / "python")
        done = subprocess.run([python, "-m", "pip", "install", "-q", *MINARI], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"no environment for Minari: {done.stderr.strip().splitlines()[-1]}")
    demos = [make_demo(number, steps=8 + number, image_size=40) for number in range(3)]
    with DemoWriter(tmp_path / "a.hdf5") as writer:
        for demo in demos:
            writer.write(demo)
    target = written(tmp_path / "a.hdf5", tmp_path / "out")
    done = subprocess.run([python, "-c", READ_BY_MINARI, str(target)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == {
        "id": "lab/lift-v3",
        "episodes": 3,
        "steps": 27,
        "spaces": ["cube_red", "ee_pose", "front", "gripper", "mission"],
        "action": [7],
        "lengths": [8, 9, 10],
        "inside": True,
        "sums": [pytest.approx(float(np.sum(demo.actions, dtype=np.float64))) for demo in demos],
        "pixels": [int(np.sum(demo.obs["front"], dtype=np.int64)) for demo in demos],
        "missions": [demo.instruction for demo in demos],
        "ends": [True] * 3,
        "seeds": [0, 1, 2],
    }
