"""The plain baselines, on a point that moves to its goal along a line."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import h5py
import numpy as np
import pytest
import torch

FLOORS = Path(__file__).parents[2] / "eval" / "floors.py"


@pytest.fixture(scope="module")
def floors() -> ModuleType:
    spec = importlib.util.spec_from_file_location("eval_floors", FLOORS)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


class PointSimulator:
    """A point on a line with a goal beside it; the action is its velocity."""

    max_episode_steps = 25

    def reset(self, seed: int) -> dict[str, np.ndarray]:
        """The point at 0, the goal on either side."""
        self.place, self.goal = 0.0, np.random.default_rng(seed).uniform(-1, 1)
        return self.obs()

    def step(self, action: np.ndarray) -> tuple[dict[str, np.ndarray], bool]:
        """Move by a fifth of the action; success within 0.05 of the goal."""
        self.place += 0.2 * float(np.clip(action[0], -1, 1))
        return self.obs(), abs(self.place - self.goal) < 0.05

    def obs(self) -> dict[str, np.ndarray]:
        """The two positions, a constant column, and an image with the point's and the goal's columns lit."""
        image = np.zeros((32, 32, 3), dtype=np.uint8)
        for channel, value in enumerate((self.place, self.goal)):
            image[:, int(np.clip(16 + 15 * value, 0, 31)), channel] = 255
        return {"state": np.array([self.place, 3.0]), "goal": np.array([self.goal]), "image": image}


@pytest.fixture(scope="module")
def point_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve demos of 14 frames, by an expert that moves straight to the goal."""
    path, simulator = tmp_path_factory.mktemp("floors") / "point.hdf5", PointSimulator()
    with h5py.File(path, "w") as file:
        for number in range(12):
            obs, frames, actions = simulator.reset(number), [], []
            for _ in range(14):
                frames.append(obs)
                actions.append([3 * (simulator.goal - simulator.place)])
                obs, _ = simulator.step(np.array(actions[-1]))
            demo = file.create_group(f"data/demo_{number}")
            demo["actions"] = np.array(actions)
            for key in obs:
                demo[f"obs/{key}"] = np.stack([frame[key] for frame in frames])
    return path


@pytest.mark.parametrize("kind", ["mlp", "lstm"])
def test_a_floor_reaches_goals_it_has_not_seen(floors, point_file, kind):
    """Guards against: statistics, labels or frames out of step with each other, in training or in the rollout."""
    demos = floors.clipped(floors.read_demos(point_file, 12), 1.0)
    policy = floors.train(kind, demos, floors.Recipe(steps=100, batch=16, window=floors.RECIPES[kind].window), seed=0)
    assert sum(floors.evaluate(policy, PointSimulator(), range(1000, 1020))) >= 18


def test_the_convolutional_floor_acts_on_its_images(floors, point_file):
    """Guards against: an image that reaches the network in another layout in the rollout than in training."""
    demos = floors.read_demos(point_file, 4)
    policy = floors.train("conv", demos, floors.Recipe(steps=2, batch=8), seed=0)
    obs = {"state": np.array([0.0, 3.0]), "goal": np.array([0.5]), "image": np.zeros((32, 32, 3), dtype=np.uint8)}
    dark = policy.act(obs)
    policy.reset()
    lit = policy.act(
        {**obs, "image": np.full((32, 32, 3), 255, dtype=np.uint8) * np.tri(32, dtype=np.uint8)[..., None]}
    )
    assert dark.shape == (1,)
    assert not np.allclose(dark, lit)


def test_the_lstm_remembers_a_window_and_forgets_at_a_reset(floors, point_file):
    """Guards against: memory of an earlier episode, and of more frames than a window."""
    demos = floors.read_demos(point_file, 4)
    policy = floors.train("lstm", demos, floors.Recipe(steps=2, batch=8, window=3), seed=0)
    simulator = PointSimulator()
    frames = [simulator.reset(5), *(simulator.step(np.array([0.5]))[0] for _ in range(4))]
    actions = [policy.act(frame) for frame in frames]
    policy.reset()
    last_window = [policy.act(frame) for frame in frames[-3:]]
    np.testing.assert_allclose(last_window[-1], actions[-1], atol=1e-6)
    assert not np.allclose(last_window[0], actions[-3])


def test_windows_stay_within_one_demo(floors):
    """Guards against: windows that begin in one demo and end in the next."""
    assert floors.window_starts([4, 2, 5], 3).tolist() == [0, 1, 6, 7, 8]


def test_a_shift_moves_the_image_and_keeps_its_pixels(floors):
    """Guards against: axes confused by the random shift, which would scramble the image."""
    torch.manual_seed(0)
    images = torch.randint(0, 256, (6, 2, 12, 10), dtype=torch.uint8)
    for before, after in zip(images, floors.shift(images), strict=True):
        rolled = [
            torch.roll(before, (down, right), dims=(1, 2))
            for down in range(-floors.SHIFT_PX, floors.SHIFT_PX + 1)
            for right in range(-floors.SHIFT_PX, floors.SHIFT_PX + 1)
        ]
        assert any(torch.equal(after, candidate) for candidate in rolled)


def test_spatial_softmax_finds_a_bright_pixel(floors):
    """Guards against: rows and columns exchanged, or positions not in [-1, 1]."""
    features = torch.zeros(1, 1, 5, 9)
    features[0, 0, 4, 2] = 100.0
    torch.testing.assert_close(floors.spatial_softmax(features), torch.tensor([[1.0, -0.5]]))
