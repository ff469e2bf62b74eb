"""Baselines for few demos: an MLP, an LSTM over windows of 10 and a convolutional network in plain PyTorch; robomimic's BC-RNN.

    python eval/floors.py mlp --data push.hdf5 --demos 10 --env metaworld:push-v3 --env-map eval/maps/metaworld.yaml
    python eval/floors.py robomimic --minutes 5 --data push.hdf5 ...

They read any file of the robomimic layout, train by steps and are evaluated on seeds that no demo has seen, in the environment
and through the map that `robopolicy eval` takes. The script runs in the simulator's own interpreter, which also needs torch,
h5py and pyyaml.
Every low-dimensional key is concatenated and z-scored; constant columns are dropped; actions are clipped to `--clip`, then
scaled to [-1, 1]. `conv` also reads every image key. Adam with weight decay 1e-4, learning rate 1e-3 on a cosine, MSE, one
action per frame.

`robomimic` is the algorithm of robomimic 0.3 with its defaults: LSTM of 2 x 400, 5 Gaussians, 100 windows of 10 a batch,
learning rate 1e-4. They name no number of steps for a few demos; it is trained for `--minutes` of wall time.
"""

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

Obs = Mapping[str, np.ndarray]

LOW_STD = 1e-5
"""Columns whose standard deviation is lower are constant."""
SHIFT_PX = 4
"""Largest random shift of an image [pixel]."""


@dataclass(frozen=True)
class Demo:
    """One episode of T frames."""

    low: np.ndarray
    """Low-dimensional keys in the order of their names, concatenated: (T, D)."""
    images: np.ndarray
    """Image keys in the order of their names, concatenated by channel: uint8 (T, 3 C, H, W); (T, 0, 1, 1) without any."""
    actions: np.ndarray
    """(T, A), in the file's units."""


@dataclass(frozen=True)
class Recipe:
    """How one floor is trained."""

    steps: int
    """Optimizer steps."""
    batch: int
    """Windows per step."""
    window: int = 1
    """Frames per window; each frame of a window is supervised."""
    learning_rate: float = 1e-3
    """Peak of the cosine schedule."""


RECIPES = {
    "mlp": Recipe(steps=6000, batch=256),
    "lstm": Recipe(steps=1200, batch=64, window=10),
    "conv": Recipe(steps=3000, batch=64),
}
ROBOMIMIC = Recipe(steps=0, batch=100, window=10, learning_rate=1e-4)


@dataclass(frozen=True)
class Scaling:
    """Z-scores of the observation's varying columns, and the range of each action column."""

    columns: np.ndarray
    mean: np.ndarray
    std: np.ndarray
    middle: np.ndarray
    half_range: np.ndarray

    def low(self, low: np.ndarray) -> Tensor:
        """Z-scored columns (..., d) of low-dimensional observations (..., D)."""
        return torch.as_tensor((low[..., self.columns] - self.mean) / self.std, dtype=torch.float32)


class Perceptron(nn.Module):
    """Two hidden layers of 256 on each frame by itself."""

    def __init__(self, width: int, actions: int) -> None:
        super().__init__()
        self.net = perceptron(width, actions)

    def forward(self, low: Tensor, images: Tensor) -> Tensor:
        """Actions (B, W, A) of frames (B, W, d)."""
        return self.net(low)


class Recurrent(nn.Module):
    """Two LSTM layers of 256 from a zero state."""

    def __init__(self, width: int, actions: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(width, 256, 2, batch_first=True)
        self.out = nn.Linear(256, actions)

    def forward(self, low: Tensor, images: Tensor) -> Tensor:
        """Actions (B, W, A) of frames (B, W, d)."""
        return self.out(self.lstm(low)[0])


class Convolutional(nn.Module):
    """Four convolutions, spatial softmax of 32 points, and the perceptron on points and low-dimensional keys."""

    def __init__(self, width: int, channels: int, actions: int) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(
            nn.Conv2d(channels, 32, 5, stride=2),
            nn.ReLU(),
            nn.Conv2d(32, 64, 3, stride=2),
            nn.ReLU(),
            nn.Conv2d(64, 64, 3),
            nn.ReLU(),
            nn.Conv2d(64, 32, 3),
        )
        self.net = perceptron(width + 64, actions)

    def forward(self, low: Tensor, images: Tensor) -> Tensor:
        """Actions (B, W, A) of frames (B, W, d) and images (B, W, C, H, W'), uint8."""
        features = self.convolutions(images.flatten(0, 1).float() / 255 - 0.5)
        return self.net(torch.cat([low, spatial_softmax(features).unflatten(0, low.shape[:2])], dim=-1))


def perceptron(width: int, actions: int) -> nn.Sequential:
    """Linear layers width - 256 - 256 - actions with ReLU between them."""
    return nn.Sequential(nn.Linear(width, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, actions))


def spatial_softmax(features: Tensor) -> Tensor:
    """Expected position of each channel of (N, C, H, W), in [-1, 1]: (N, 2 C)."""
    height, width = features.shape[-2:]
    weights = features.float().flatten(2).softmax(-1).unflatten(2, (height, width))
    rows, columns = torch.linspace(-1, 1, height), torch.linspace(-1, 1, width)
    return torch.cat([(weights.sum(3) * rows).sum(2), (weights.sum(2) * columns).sum(2)], dim=1)


def shift(images: Tensor) -> Tensor:
    """Each image of (N, C, H, W) rolled by up to `SHIFT_PX` pixels along both axes."""
    count, _, height, width = images.shape
    down, right = torch.randint(-SHIFT_PX, SHIFT_PX + 1, (2, count, 1))
    rows, columns = (torch.arange(height) + down) % height, (torch.arange(width) + right) % width
    return images[torch.arange(count)[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def read_demos(path: Path, count: int) -> list[Demo]:
    """The first `count` demos of a file's `train` mask, or of the file if it has no such mask.

    Raises:
        SystemExit: the file holds fewer.
    """
    with h5py.File(path) as file:
        names = [name.decode() for name in file["mask/train"][:]] if "mask/train" in file else list(file["data"])
        names.sort(key=lambda name: int(name[5:]))
        if len(names) < count:
            raise SystemExit(f"{path} has {len(names)} demos; --demos {count} asks for more")
        demos = []
        for name in names[:count]:
            group = file["data"][name]
            obs = {key: group["obs"][key][:] for key in group["obs"]}
            demos.append(Demo(*split_obs(obs), group["actions"][:].astype(np.float32)))
    return demos


def split_obs(obs: Obs) -> tuple[np.ndarray, np.ndarray]:
    """Low-dimensional values (T, D) and images (T, 3 C, H, W) of keys with a leading time axis."""
    low = [np.asarray(obs[key], dtype=np.float32) for key in sorted(obs) if np.ndim(obs[key]) < 4]
    images = [np.moveaxis(obs[key], -1, 1) for key in sorted(obs) if np.ndim(obs[key]) == 4]
    empty = np.zeros((len(next(iter(obs.values()))), 0, 1, 1), dtype=np.uint8)
    flat = np.concatenate([value.reshape(len(value), -1) for value in low], axis=1)
    return flat, np.concatenate(images or [empty], axis=1)


def fit_scaling(demos: Sequence[Demo]) -> Scaling:
    """Statistics of the training demos."""
    low, actions = np.concatenate([demo.low for demo in demos]), np.concatenate([demo.actions for demo in demos])
    columns = np.flatnonzero(low.std(0) > LOW_STD)
    smallest, largest = actions.min(0), actions.max(0)
    half_range = np.maximum((largest - smallest) / 2, LOW_STD)
    return Scaling(columns, low[:, columns].mean(0), low[:, columns].std(0), (smallest + largest) / 2, half_range)


def make_network(kind: str, demo: Demo, scaling: Scaling) -> nn.Module:
    """The untrained network of `mlp`, `lstm` or `conv` for a demo's shapes."""
    width, actions = len(scaling.columns), demo.actions.shape[1]
    if kind == "conv":
        return Convolutional(width, demo.images.shape[1], actions)
    return (Perceptron if kind == "mlp" else Recurrent)(width, actions)


def train(kind: str, demos: Sequence[Demo], recipe: Recipe, seed: int, bf16: bool = False) -> "FloorPolicy":
    """Train one floor; the same seed gives the same weights on the same machine.

    With `bf16`, convolutions and matrix products are computed in bfloat16, as `robopolicy train` does where the CPU has it.
    """
    torch.manual_seed(seed)
    scaling = fit_scaling(demos)
    network = make_network(kind, demos[0], scaling)
    low = torch.cat([scaling.low(demo.low) for demo in demos])
    images = torch.cat([torch.from_numpy(demo.images) for demo in demos])
    actions = np.concatenate([demo.actions for demo in demos])
    labels = torch.as_tensor((actions - scaling.middle) / scaling.half_range, dtype=torch.float32)
    starts = torch.from_numpy(window_starts([len(demo.actions) for demo in demos], recipe.window))
    optimizer = torch.optim.AdamW(network.parameters(), lr=recipe.learning_rate, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, recipe.steps)
    for _ in range(recipe.steps):
        first = starts[torch.randint(len(starts), (recipe.batch,))]
        frames = first[:, None] + torch.arange(recipe.window)
        seen = images[frames]
        if kind == "conv":
            seen = shift(seen.flatten(0, 1)).unflatten(0, frames.shape)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            predicted = network(low[frames], seen)
        loss = functional.mse_loss(predicted.float(), labels[frames])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return FloorPolicy(network.eval(), scaling, recipe.window)


def window_starts(lengths: Sequence[int], window: int) -> np.ndarray:
    """First frames, counted over all demos, of the windows that lie within one demo.

    Raises:
        SystemExit: no demo is as long as a window.
    """
    offsets = np.cumsum([0, *lengths[:-1]])
    starts = [offset + np.arange(length - window + 1) for offset, length in zip(offsets, lengths, strict=True)]
    if not sum(map(len, starts)):
        raise SystemExit(f"the longest demo has {max(lengths)} frames; a window needs {window}")
    return np.concatenate(starts)


class FloorPolicy:
    """A trained floor that acts frame by frame."""

    def __init__(self, network: nn.Module, scaling: Scaling, window: int) -> None:
        self._network, self._scaling, self._window = network, scaling, window
        self.reset()

    def reset(self) -> None:
        """Forget the episode's frames."""
        self._frames: list[tuple[Tensor, Tensor]] = []

    @torch.inference_mode()
    def act(self, obs: Obs) -> np.ndarray:
        """The action (A,) for the newest observation, in the file's units, with up to `window` frames of memory."""
        low, images = split_obs({key: np.asarray(value)[None] for key, value in obs.items()})
        self._frames = [*self._frames, (self._scaling.low(low), torch.from_numpy(images.copy()))][-self._window :]
        lows, stacks = (torch.stack(parts, dim=1) for parts in zip(*self._frames, strict=True))
        return self._network(lows, stacks)[0, -1].numpy() * self._scaling.half_range + self._scaling.middle


class RobomimicPolicy:
    """robomimic's BC-RNN with a mixture of Gaussians, trained for some minutes on low-dimensional keys."""

    def __init__(self, demos: Sequence[Demo], minutes: float, seed: int) -> None:
        from robomimic.algo import algo_factory
        from robomimic.config import config_factory
        from robomimic.utils.obs_utils import initialize_obs_utils_with_config

        config = config_factory("bc")
        with config.values_unlocked():
            config.algo.rnn.enabled = config.algo.gmm.enabled = True
            config.observation.modalities.obs.low_dim = ["low"]
        initialize_obs_utils_with_config(config)
        torch.manual_seed(seed)
        low = torch.from_numpy(np.concatenate([demo.low for demo in demos]))
        actions = torch.from_numpy(np.concatenate([demo.actions for demo in demos]))
        starts = torch.from_numpy(window_starts([len(demo.actions) for demo in demos], ROBOMIMIC.window))
        shapes = {"low": [low.shape[1]]}
        self._algo: Any = algo_factory("bc", config, shapes, actions.shape[1], torch.device("cpu"))
        self._algo.set_train()
        self.steps, end = 0, time.perf_counter() + 60 * minutes
        while time.perf_counter() < end:
            first = starts[torch.randint(len(starts), (ROBOMIMIC.batch,))]
            frames = first[:, None] + torch.arange(ROBOMIMIC.window)
            batch = {"obs": {"low": low[frames]}, "actions": actions[frames]}
            self._algo.train_on_batch(self._algo.process_batch_for_training(batch), epoch=1)
            self.steps += 1
        self._algo.set_eval()

    def reset(self) -> None:
        """Start an episode with a zero state."""
        self._algo.reset()

    @torch.inference_mode()
    def act(self, obs: Obs) -> np.ndarray:
        """The action (A,) for the newest observation; robomimic resets its state every 10 frames."""
        low, _ = split_obs({key: np.asarray(value)[None] for key, value in obs.items()})
        return self._algo.get_action({"low": torch.from_numpy(low)})[0].numpy()


def evaluate(policy: FloorPolicy | RobomimicPolicy, simulator: Any, seeds: Sequence[int]) -> list[bool]:
    """Whether the policy reaches the goal at any step, for each seed's episode."""
    outcomes = []
    for seed in seeds:
        policy.reset()
        obs, success = simulator.reset(seed), False
        for _ in range(simulator.max_episode_steps):
            obs, success = simulator.step(policy.act(obs))
            if success:
                break
        outcomes.append(success)
    return outcomes


def clipped(demos: Sequence[Demo], bound: float) -> list[Demo]:
    """The demos with their actions clipped to [-bound, bound]."""
    return [Demo(demo.low, demo.images, demo.actions.clip(-bound, bound)) for demo in demos]


def load_simulator(env: str, env_map: Path | None, data: Path) -> Any:
    """The environment and its map as a `Simulator` of `eval/maps/collect.py`, which shows the file's keys.

    What the file's `env_args` say of the environment is given to its maker, as by `robopolicy eval --env-kwargs FILE`.
    """
    sys.path.insert(0, str(Path(__file__).parent / "maps"))
    from collect import MappedTask

    with h5py.File(data) as file:
        kwargs = json.loads(file["data"].attrs["env_args"])["env_kwargs"]
        keys = set(file["data"][next(iter(file["data"]))]["obs"])
    if env.startswith("robosuite:"):  # an environment's name is part of robosuite's arguments, and the map gives it
        kwargs.pop("env_name", None)
    return MappedTask(env, env_map, kwargs, keys)


def main() -> None:
    """Train one baseline with each seed and print its success."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=(*RECIPES, "robomimic"))
    parser.add_argument("--data", type=Path, required=True, help="robomimic HDF5 file")
    parser.add_argument("--demos", type=int, default=10, help="demos to train on, the first of the file")
    parser.add_argument("--env", required=True, help="MODULE:ID, as for `robopolicy eval`")
    parser.add_argument("--env-map", type=Path, help="YAML file, as for `robopolicy eval`")
    parser.add_argument("--clip", type=float, default=1.0, help="bound of the actions that the simulator executes")
    parser.add_argument("--minutes", type=float, default=5.0, help="wall time of each training of robomimic")
    parser.add_argument("--bf16", action="store_true", help="train in bfloat16, evaluate in float32")
    parser.add_argument("--train-seeds", type=int, nargs="+", default=[0, 1, 2], help="one training each")
    parser.add_argument("--episodes", type=int, default=50, help="episodes of each training")
    parser.add_argument("--seed", type=int, default=10000, help="seed of the first episode")
    parser.add_argument("--json", type=Path, help="write the result here")
    options = parser.parse_args()
    torch.set_num_threads(1)
    demos = clipped(read_demos(options.data, options.demos), options.clip)
    simulator = load_simulator(options.env, options.env_map, options.data)
    rows = []
    for seed in options.train_seeds:
        started = time.perf_counter()
        if options.kind == "robomimic":
            policy = RobomimicPolicy(demos, options.minutes, seed)
            steps = policy.steps
        else:
            steps = RECIPES[options.kind].steps
            policy = train(options.kind, demos, RECIPES[options.kind], seed, options.bf16)
        seconds = time.perf_counter() - started
        outcomes = evaluate(policy, simulator, range(options.seed, options.seed + options.episodes))
        rows.append({"train_seed": seed, "steps": steps, "train_s": round(seconds, 1), "outcomes": outcomes})
        print(f"seed {seed}  success {sum(outcomes)} / {len(outcomes)}  trained in {seconds:.0f} s", flush=True)
    if options.json is not None:
        result = {"kind": options.kind, "task": options.env, "demos": options.demos, "bf16": options.bf16, "rows": rows}
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
