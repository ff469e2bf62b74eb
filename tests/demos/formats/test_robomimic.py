"""The robomimic layout as others write it, and what refuses robosuite's raw one."""

import json

import h5py
import numpy as np
import pytest
import torch

from robopolicy.demos.actions import robosuite_action_facts
from robopolicy.demos.formats import action_spec_of, convert, open_demos
from robopolicy.experiment import ExperimentConfig, load_policy
from robopolicy.training.train import train
from robopolicy.types import DemoFormatError
from tests.demo_samples import write_robomimic, write_robosuite_raw
from tests.small_runs import SMALL, weights


def test_kind_and_rate_come_from_the_controller_columns_from_the_data(tmp_path):
    """Guards against: deltas taken as poses, which would fling the arm; a wrong rate plays chunks too fast."""
    with open_demos(write_robomimic(tmp_path / "lift.hdf5")) as demos:
        spec = action_spec_of(demos)
        assert any("next_obs" in note for note in demos.notes)
    assert (spec.kind, spec.space, spec.rate_hz) == ("delta", "ee", 20.0)
    assert (spec.arm_columns, spec.gripper_columns) == ((0, 1, 2, 3, 4, 5), (6,))


ABSOLUTE_ARM = {"right": {"type": "OSC_POSE", "input_type": "absolute"}}


@pytest.mark.parametrize(
    ("controller", "expected"),
    [
        ({"type": "OSC_POSE", "control_delta": True}, {"space": "ee", "kind": "delta"}),
        ({"type": "OSC_POSE", "control_delta": False}, {"space": "ee", "kind": "absolute"}),
        (
            {"type": "BASIC", "body_parts": ABSOLUTE_ARM},
            {"space": "ee", "kind": "absolute"},
        ),
        ({"type": "JOINT_POSITION"}, {"space": "joint_position", "kind": "delta"}),
        ([{"type": "JOINT_VELOCITY"}], {"space": "joint_velocity", "kind": "absolute"}),
        ("nonsense", {}),
        ({"type": "JOINT_TORQUE"}, {}),
    ],
)
def test_robosuite_s_controllers_are_understood(controller, expected):
    """Guards against: a controller of robosuite 1.4 or 1.5 that isn't recognized, or an unknown one that is guessed."""
    assert robosuite_action_facts({"env_kwargs": {"controller_configs": controller}}) == expected


def test_robocasa_s_language_is_the_instruction(tmp_path):
    """Guards against: RoboCasa's instruction in ep_meta, where a plain robomimic reader never looks."""
    path = write_robomimic(tmp_path / "kitchen.hdf5")
    with h5py.File(path, "r+") as file:
        file["data/demo_1"].attrs["ep_meta"] = json.dumps({"lang": "close the left drawer"})
    with open_demos(path) as demos:
        assert demos.read("demo_1").instruction == "close the left drawer"
        assert demos.read("demo_0").instruction is None


def test_robosuite_s_raw_layout_is_refused_in_one_line(tmp_path):
    """Guards against: an empty training set from a file without observations, which fails later and elsewhere."""
    with pytest.raises(DemoFormatError, match=r"demo.hdf5: robosuite's raw layout.*can't be trained on"):
        open_demos(write_robosuite_raw(tmp_path / "demo.hdf5"))


def test_a_converted_copy_trains_on_the_same_numbers(tmp_path):
    """Guards against: a copy whose validation loss is not that of the original, bit for bit."""
    original = write_robomimic(tmp_path / "lift.hdf5")
    convert(original, tmp_path / "copy.hdf5")
    with open_demos(original) as one, open_demos(tmp_path / "copy.hdf5") as other:
        assert other.action_spec is one.action_spec is None
        assert other.action_facts == one.action_facts
        for name in one.names:
            np.testing.assert_array_equal(one.read(name).actions, other.read(name).actions, strict=True)


@pytest.mark.parametrize("part", ["actions", "obs/robot0_eef_pos", "states"])
def test_a_bit_flipped_in_a_copy_is_noticed(tmp_path, part):
    """Guards against: a bad disk that silently changes what is trained on: HDF5 keeps no checksums of plain arrays."""
    convert(write_robomimic(tmp_path / "lift.hdf5"), tmp_path / "copy.hdf5")
    with h5py.File(tmp_path / "copy.hdf5", "r+") as file:
        file[f"data/demo_1/{part}"][2] *= -1
    with open_demos(tmp_path / "copy.hdf5") as demos:
        demos.read("demo_0")
        with pytest.raises(DemoFormatError, match=rf"copy.hdf5, demo_1: {part} changed since it was written"):
            demos.read("demo_1")


def test_isaac_labs_tree_of_states_is_named_and_not_read(tmp_path):
    """Guards against: a file of Isaac Lab, whose states are a group, that is refused though training needs no states."""
    path = write_robomimic(tmp_path / "stack.hdf5")
    with h5py.File(path, "r+") as file:
        for demo in file["data"].values():
            del demo["states"]
            demo["states/articulation/robot/joint_position"] = np.zeros((len(demo["actions"]), 9))
            demo["initial_state/articulation/robot/joint_position"] = np.zeros((1, 9))
    with open_demos(path) as demos:
        assert demos.notes[0] == "of each demo, initial_state, next_obs, states is not read"
        assert demos.read("demo_0").states is None


def write_isaac_lab(path):
    """Two demos of 12 steps as Isaac Lab's recorder and its annotation for Mimic write them."""
    rng, steps = np.random.default_rng(0), 12
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["total"] = 2 * steps
        data.attrs["env_args"] = json.dumps({"env_name": "Isaac-Stack-Cube-Franka-IK-Rel-Mimic-v0", "type": 2})
        for number in range(2):
            demo = data.create_group(f"demo_{number}")
            demo.attrs.update(num_samples=steps, seed=number, success=True)
            state = {"joint_position": 9, "joint_velocity": 9, "root_pose": 7, "root_velocity": 6}
            values = {"actions": 7, "processed_actions": 8, "obs/actions": 7, "obs/joint_pos": 9, "obs/eef_pos": 3}
            values |= {"obs/eef_quat": 4, "obs/gripper_pos": 2, "obs/object": 39}
            values |= {f"states/articulation/robot/{name}": width for name, width in state.items()}
            values |= {"states/rigid_object/cube_1/root_pose": 7}
            for name, width in values.items():
                rows = rng.normal(size=(steps, width)).astype(np.float32)
                if name == "actions":
                    rows[:, -1] = np.where(np.arange(steps) < 6, 1.0, -1.0)
                demo.create_dataset(name, data=rows, compression="gzip")
            demo["initial_state/articulation/robot/joint_position"] = np.zeros((1, 9), np.float32)
            demo["obs/datagen_info/eef_pose/franka"] = np.tile(np.eye(4, dtype=np.float32), (steps, 1, 1))
            demo["obs/datagen_info/subtask_term_signals/grasp_1"] = np.arange(steps) > 6
    return path


def test_a_file_of_isaac_lab_is_read_converted_and_trained_on(tmp_path):
    """Guards against: nested groups among states and observations that stop a reader; a copy that trains on other numbers."""
    original = write_isaac_lab(tmp_path / "isaac.hdf5")
    convert(original, tmp_path / "copy.hdf5")
    changes = {"data.obs_keys": ["joint_pos", "eef_pos"], "training.max_steps": 2, "training.select": "last"}
    config = ExperimentConfig().change(SMALL | changes | {"data.valid_fraction": 0.0, "training.valid_every": 2})
    trained = []
    for path in (original, tmp_path / "copy.hdf5"):
        with open_demos(path) as demos:
            assert demos.read("demo_1").actions.shape == (12, 7)
        run = train(config.change({"data.files": [str(path)]}), tmp_path / path.stem)
        trained.append(weights(run))
        assert load_policy(run).spec.action.width == 7
    assert torch.equal(*trained)
