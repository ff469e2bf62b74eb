"""What the runners of third-party simulators share, with a point on a line for a simulator and a list for a server."""

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import ClassVar

import h5py
import numpy as np
import pytest

from robopolicy.demos.formats import open_demos

DRIVE = Path(__file__).parents[2] / "eval" / "third_party" / "drive.py"


@pytest.fixture(scope="module")
def drive() -> ModuleType:
    spec = importlib.util.spec_from_file_location("third_party_drive", DRIVE)
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
        """See `drive.Simulator`."""
        self.place, self.goal, self.seed = 0.0, 1.0 + (seed % 5) / 5, seed
        return self.obs()

    def step(self, action: np.ndarray) -> tuple[dict[str, np.ndarray], bool]:
        """See `drive.Simulator`."""
        self.place += 0.5 * float(np.clip(action[0], -1, 1))
        return self.obs(), abs(self.place - self.goal) < 0.1

    def expert(self) -> np.ndarray:
        """See `drive.Simulator`."""
        return np.array([2 * (self.goal - self.place) * (-1) ** self.seed])

    def obs(self) -> dict[str, np.ndarray]:
        """Where the point is and should be."""
        return {"state": np.array([self.place]), "goal": np.array([self.goal])}


class ListedPolicy:
    """Answers each call with the same chunk and keeps a list of what it was told."""

    def __init__(self, chunk: list[float]) -> None:
        self.chunk, self.told = np.array(chunk)[:, None], []

    def reset(self) -> None:
        """As the client's."""
        self.told.append("reset")

    def infer(self, obs: dict) -> dict:
        """As the client's."""
        self.told.append(obs)
        return {"actions": self.chunk}


def test_collected_demos_are_read_unconverted(drive, tmp_path):
    """Prevents files that the trainer refuses, or whose actions were clipped to the simulator's bounds on the way."""
    out = tmp_path / "point.hdf5"
    drive.collect(PointTask(), out, episodes=3, seed=0)
    reader = open_demos(out)
    demos = [reader.read(name) for name in reader.names]
    reader.close()
    assert len(demos) == 3
    assert all(set(demo.obs) == {"state", "goal"} for demo in demos)
    assert max(float(demo.actions.max()) for demo in demos) > 1
    with h5py.File(out) as file:
        assert file["data"].attrs["total"] == sum(len(demo.actions) for demo in demos)


def test_seeds_on_which_the_expert_fails_are_passed_over(drive):
    """Prevents failed demos among the good ones, and fewer demos than asked for."""
    found = list(drive.demonstrations(PointTask(), seed=1, count=3))
    assert [int(rows["seed"]) for rows in found] == [2, 4, 6]


def test_an_expert_that_never_succeeds_is_given_up(drive):
    """Prevents a search without end."""
    task = PointTask()
    task.max_episode_steps = 1
    with pytest.raises(RuntimeError, match="0 of 20 episodes"):
        list(drive.demonstrations(task, seed=0, count=2))


def test_a_demo_shows_how_to_stay_at_the_goal(drive):
    """Prevents demos that end in the first step of success, after which a policy has seen nothing."""
    rows = drive.demonstrate(PointTask(), seed=0)
    reached = np.abs(rows["obs/state"] - rows["obs/goal"])[:, 0] < 0.1
    assert reached.sum() == PointTask.steps_after_success


def test_each_row_pairs_an_observation_with_the_action_taken_in_it(drive):
    """Prevents actions that belong to the observation after."""
    rows = drive.demonstrate(PointTask(), seed=0)
    np.testing.assert_allclose(rows["actions"], 2 * (rows["obs/goal"] - rows["obs/state"]))


def test_a_rollout_resets_the_memory_and_executes_as_many_actions_as_said(drive):
    """Prevents an episode that begins with the last one's memory, and a chunk executed to another length than announced."""
    policy = ListedPolicy([1.0, 1.0, -1.0])
    outcome = drive.rollout(PointTask(), policy, range(0, 10, 5), replan_every=2)
    assert outcome["successes"] == 2
    assert outcome["steps"] == [2, 2]
    assert [told == "reset" for told in policy.told] == [True, False, True, False]
    assert policy.told[1]["actions_per_call"] == 2


def test_an_episode_that_outlasts_its_time_has_failed(drive):
    """Prevents a try without end, and one counted as success for ending."""
    outcome = drive.rollout(PointTask(), ListedPolicy([-1.0]), range(1), replan_every=1)
    assert outcome["successes"] == 0
    assert outcome["steps"] == [PointTask.max_episode_steps]
