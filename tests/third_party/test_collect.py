"""Demos of scripted experts in environments of others, with a point on a line for an environment."""

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import ClassVar

import h5py
import numpy as np
import pytest

from robopolicy.demos.formats import open_demos

COLLECT = Path(__file__).parents[2] / "eval" / "maps" / "collect.py"


@pytest.fixture(scope="module")
def collecting() -> ModuleType:
    spec = importlib.util.spec_from_file_location("maps_collect", COLLECT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class PointTask:
    """A point goes to the goal; where the seed is odd, the expert goes the wrong way."""

    env_args: ClassVar = {"env_name": "Point", "type": 2, "env_kwargs": {}}
    max_episode_steps = 12
    steps_after_success = 2

    def reset(self, seed: int) -> dict[str, np.ndarray]:
        """See `collect.Simulator`."""
        self.place, self.goal, self.seed = 0.0, 1.0 + (seed % 5) / 5, seed
        return self.obs()

    def step(self, action: np.ndarray) -> tuple[dict[str, np.ndarray], bool]:
        """See `collect.Simulator`."""
        self.place += 0.5 * float(np.clip(action[0], -1, 1))
        return self.obs(), abs(self.place - self.goal) < 0.1

    def expert(self) -> np.ndarray:
        """See `collect.Simulator`."""
        return np.array([2 * (self.goal - self.place) * (-1) ** self.seed])

    def obs(self) -> dict[str, np.ndarray]:
        """Where the point is and should be."""
        return {"state": np.array([self.place]), "goal": np.array([self.goal])}


def test_collected_demos_are_read_unconverted(collecting, tmp_path):
    """Guards against: files that the trainer refuses, or whose actions were clipped to the simulator's bounds on the way."""
    out = tmp_path / "point.hdf5"
    collecting.collect(PointTask(), out, episodes=3, seed=0)
    reader = open_demos(out)
    demos = [reader.read(name) for name in reader.names]
    reader.close()
    assert len(demos) == 3
    assert all(set(demo.obs) == {"state", "goal"} for demo in demos)
    assert max(float(demo.actions.max()) for demo in demos) > 1
    with h5py.File(out) as file:
        assert file["data"].attrs["total"] == sum(len(demo.actions) for demo in demos)


def test_seeds_on_which_the_expert_fails_are_passed_over(collecting):
    """Guards against: failed demos among the good ones, and fewer demos than asked for."""
    found = list(collecting.demonstrations(PointTask(), seed=1, count=3))
    assert [int(rows["seed"]) for rows in found] == [2, 4, 6]


def test_an_expert_that_never_succeeds_is_given_up(collecting):
    """Guards against: a search without end."""
    task = PointTask()
    task.max_episode_steps = 1
    with pytest.raises(RuntimeError, match="0 of 20 episodes"):
        list(collecting.demonstrations(task, seed=0, count=2))


def test_a_demo_shows_how_to_stay_at_the_goal(collecting):
    """Guards against: demos that end in the first step of success, after which a policy has seen nothing."""
    rows = collecting.demonstrate(PointTask(), seed=0)
    reached = np.abs(rows["obs/state"] - rows["obs/goal"])[:, 0] < 0.1
    assert reached.sum() == PointTask.steps_after_success


def test_a_demonstrator_that_waits_stands_still_once_and_keeps_its_gripper(collecting):
    """Guards against: demos for policies that should not learn to stall, without any pause in them."""

    class SlowPointWithGripper(PointTask):
        max_episode_steps = 200

        def step(self, action: np.ndarray) -> tuple[dict[str, np.ndarray], bool]:
            return super().step(action / 25)

        def expert(self) -> np.ndarray:
            return np.array([1.0, 0.5])

    rows = collecting.demonstrate(SlowPointWithGripper(), seed=0, pause=20)
    still = np.flatnonzero(rows["actions"][:, 0] == 0)
    np.testing.assert_array_equal(still, np.arange(20) + still[0])
    assert 10 <= still[0] < 40
    assert np.ptp(rows["obs/state"][still]) == 0
    np.testing.assert_array_equal(rows["actions"][:, 1], 0.5)


def test_each_row_pairs_an_observation_with_the_action_taken_in_it(collecting):
    """Guards against: actions that belong to the observation after."""
    rows = collecting.demonstrate(PointTask(), seed=0)
    np.testing.assert_allclose(rows["actions"], 2 * (rows["obs/goal"] - rows["obs/state"]))


def test_a_mapped_environment_is_collected_under_the_policys_keys(collecting, tmp_path, monkeypatch):
    """Guards against: demos whose keys are others than those that eval finds by the same map."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "rollout"))
    (tmp_path / "map.yaml").write_text(
        "max_episode_steps: 15\nobservation: {where: {from: [observation, desired_goal]}, goal: {from: desired_goal}}\n"
    )
    task = collecting.MappedTask("point_envs:GoalPoint", tmp_path / "map.yaml")
    task._expert = lambda arrays: 2 * (arrays["desired_goal"] - arrays["observation"])
    rows = collecting.demonstrate(task, seed=3)
    assert rows["obs/where"].shape[1:] == (2,)
    np.testing.assert_array_equal(rows["obs/where"][:, 1:], rows["obs/goal"])
    np.testing.assert_allclose(rows["actions"], 2 * (rows["obs/goal"] - rows["obs/where"][:, :1]))
    again = collecting.demonstrate(task, seed=3)
    np.testing.assert_array_equal(rows["obs/where"], again["obs/where"])


def test_an_environment_without_an_expert_is_refused(collecting):
    """Guards against: a traceback where there is nobody to demonstrate."""
    with pytest.raises(ValueError, match="no scripted expert for robosuite; there are some for metaworld"):
        collecting.make_expert("robosuite:Lift", None)
