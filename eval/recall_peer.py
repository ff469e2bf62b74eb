"""RecurrentPPO of Stable-Baselines3 on `recall` with success as the only reward, the peer of `robopolicy improve`.

    PEERS/bin/python eval/recall_peer.py --data recall.hdf5 --demos 42 --start 0.54 --train-seeds 0 --json peer.json

PEERS is an environment with robopolicy and sb3-contrib. The peer's LSTM is cloned on demos of the same file until it
succeeds in `--start` of the episodes within 5 points, then learns for as many steps of the same worlds as ours. It sees the
same keys, z-scored, and the named color as three more columns; its actions span -1 to 1 over the range of the demos, and
constant columns are held, as in ours. Rollout, discounts, noise, epochs and minibatches are those given to `improve`; the
learning rate is fixed, while `improve` adapts its own from 1e-4.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from sb3_contrib import RecurrentPPO
from sb3_contrib.common.recurrent.type_aliases import RNNStates
from stable_baselines3.common.vec_env import VecEnv

from robopolicy.demos.hdf5 import DemoFile
from robopolicy.sim.env import RobotVectorEnv

KEYS = ("to_cube_red", "to_cube_green", "to_cube_blue", "to_lid_1", "lamp")
COLORS = ("red", "green", "blue")
TRAIN_SEED, EPISODES, EVALUATION_SEED = 1_000_000_000, 200, 30_000
CLONE_STEPS, CLONE_EVERY, TOLERANCE = 2000, 25, 0.05


class Columns:
    """Observations and actions of the demos as the peer's columns."""

    def __init__(self, path: Path, count: int) -> None:
        reader = DemoFile(path)
        demos = [reader.read(name) for name in reader.names[:count]]
        obs = [np.concatenate([demo.obs[key] for key in KEYS], axis=-1) for demo in demos]
        self.colors = [self.color(demo.instruction or "") for demo in demos]
        self.actions = [demo.actions for demo in demos]
        every, rows = np.concatenate(self.actions), np.concatenate(obs)
        self.mean, self.std = rows.mean(0), np.maximum(rows.std(0), 1e-5)
        low, high = every.min(0), every.max(0)
        self.middle, self.learned = (low + high) / 2, np.flatnonzero(high - low > 1e-6)
        self.half = (high - low)[self.learned] / 2
        self.obs = [self.row(each, color[None]) for each, color in zip(obs, self.colors, strict=True)]
        self.labels = [(each[:, self.learned] - self.middle[self.learned]) / self.half for each in self.actions]

    @staticmethod
    def color(instruction: str) -> np.ndarray:
        """One column per color, 1 for the one that the instruction names."""
        return np.array([name in instruction for name in COLORS], np.float32)

    def row(self, joined: np.ndarray, colors: np.ndarray) -> np.ndarray:
        """Observations (N, 16)."""
        scaled = (joined - self.mean) / self.std
        return np.concatenate([scaled, np.broadcast_to(colors, (len(scaled), 3))], -1).astype(np.float32)

    def command(self, actions: np.ndarray) -> np.ndarray:
        """The peer's actions (N, A) as actions of the worlds (N, 7)."""
        full = np.broadcast_to(self.middle, (len(actions), len(self.middle))).copy()
        full[:, self.learned] += actions.clip(-1, 1) * self.half
        return full


class Worlds(VecEnv):
    """The worlds of `recall` as Stable-Baselines3 expects them; an episode that ended begins again at once."""

    def __init__(self, columns: Columns, count: int, first_seed: int, restart: bool = True) -> None:
        self.columns, self.env, self.restart, self.next_seed = (
            columns,
            RobotVectorEnv("recall", count),
            restart,
            first_seed,
        )
        width, actions = 3 + len(columns.mean), len(columns.learned)
        super().__init__(count, spaces.Box(-np.inf, np.inf, (width,)), spaces.Box(-1, 1, (actions,)))

    def reset(self) -> np.ndarray:
        """Begin new episodes in all worlds."""
        return self._rows(self.env.reset(seed=self._fresh_seeds())[0])

    def step_async(self, actions: np.ndarray) -> None:
        """Keep the actions for `step_wait`."""
        self._actions = actions

    def step_wait(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[dict[str, Any]]]:
        """One control step."""
        obs, reward, *ends, _ = self.env.step(self.columns.command(self._actions))
        terminated, truncated = (np.asarray(end) for end in ends)
        rows, ended = self._rows(obs), terminated | truncated
        infos: list[dict[str, Any]] = [{} for _ in ended]
        for world in np.flatnonzero(ended):
            infos[world] = {"terminal_observation": rows[world], "TimeLimit.truncated": bool(truncated[world])}
        if self.restart and ended.any():
            rows = self._rows(self.env.reset(seed=self._fresh_seeds(), options={"reset_mask": ended})[0])
        return rows, np.asarray(reward, np.float32), ended, infos

    def _fresh_seeds(self) -> list[int]:
        self.next_seed += self.num_envs
        return list(range(self.next_seed - self.num_envs, self.next_seed))

    def _rows(self, obs: Any) -> np.ndarray:
        colors = np.stack([self.columns.color(text) for text in self.env.instructions])
        return self.columns.row(np.concatenate([obs[key] for key in KEYS], -1), colors)

    def close(self) -> None:
        """Close the worlds."""
        self.env.close()

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        """The attribute of each world."""
        return [getattr(self.env, attr_name, None)] * self.num_envs

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        """Not needed."""
        raise AttributeError(attr_name)

    def env_method(self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any) -> list[Any]:
        """Not needed."""
        raise AttributeError(method_name)

    def env_is_wrapped(self, wrapper_class: type, indices: Any = None) -> list[bool]:
        """No world is wrapped."""
        return [False] * self.num_envs


def successes(model: RecurrentPPO, columns: Columns) -> int:
    """Successes without noise in the episodes of evaluation, one per world."""
    worlds = Worlds(columns, EPISODES, EVALUATION_SEED, restart=False)
    obs, state, start = worlds.reset(), None, np.ones(EPISODES, bool)
    running, won = np.ones(EPISODES, bool), np.zeros(EPISODES, bool)
    while running.any():
        actions, state = model.predict(obs, state=state, episode_start=start, deterministic=True)
        obs, reward, ended, _ = worlds.step(actions)
        won |= running & (reward > 0)
        running &= ~ended
        start = np.zeros(EPISODES, bool)
    worlds.close()
    return int(won.sum())


def clone(model: RecurrentPPO, columns: Columns, start: float) -> tuple[int, int]:
    """Clone the demos until the success is within `TOLERANCE` of `start`; returns the steps and the successes.

    Raises:
        SystemExit: it never is.
    """
    policy, longest = model.policy, max(map(len, columns.labels))
    padded = [np.zeros((len(columns.labels), longest, width), np.float32) for width in (16, len(columns.learned))]
    valid = torch.zeros(len(columns.labels), longest)
    for number, (obs, labels) in enumerate(zip(columns.obs, columns.labels, strict=True)):
        padded[0][number, : len(obs)], padded[1][number, : len(obs)] = obs, labels
        valid[number, : len(obs)] = 1
    obs, labels = map(torch.from_numpy, padded)
    policy.log_std.requires_grad_(False)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=2e-3, weight_decay=0.3)
    shape = (policy.lstm_actor.num_layers, len(obs), policy.lstm_actor.hidden_size)
    zeros = (torch.zeros(shape), torch.zeros(shape))
    for step in range(1, CLONE_STEPS + 1):
        noisy = (obs + 0.1 * torch.randn_like(obs)).flatten(0, 1)
        _, log_prob, _ = policy.evaluate_actions(
            noisy, labels.flatten(0, 1), RNNStates(zeros, zeros), torch.zeros(len(noisy))
        )
        loss = -(log_prob.unflatten(0, valid.shape) * valid).sum() / valid.sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % CLONE_EVERY == 0:
            won = successes(model, columns)
            print(f"cloned {step} steps  loss {float(loss):.3f}  success {won} / {EPISODES}", flush=True)
            if abs(won / EPISODES - start) <= TOLERANCE:
                policy.log_std.requires_grad_(True)
                return step, won
    raise SystemExit(f"never within {TOLERANCE:g} of {start:g}: not comparable")


def main() -> None:
    """Clone and improve with each seed, and write the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="demos of `robopolicy collect --task recall`")
    parser.add_argument("--demos", type=int, default=30)
    parser.add_argument("--start", type=float, nargs="+", required=True, help="success of our start, one per seed")
    parser.add_argument("--train-seeds", type=int, nargs="+", default=[0, 1, 2], help="one for each --start")
    parser.add_argument("--steps", type=int, default=819_200, help="environment steps")
    parser.add_argument("--lr", type=float, default=1e-4)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    columns, rows = Columns(options.data, options.demos), []
    for seed, start in zip(options.train_seeds, options.start, strict=True):
        model = RecurrentPPO(
            "MlpLstmPolicy",
            Worlds(columns, 64, TRAIN_SEED + 10_000_000 * seed),
            n_steps=128,
            batch_size=128 * 64 // 4,
            n_epochs=4,
            learning_rate=options.lr,
            gamma=0.99,
            gae_lambda=0.97,
            policy_kwargs={"lstm_hidden_size": 64, "net_arch": [64], "log_std_init": float(np.log(0.3))},
            seed=seed,
            device="cpu",
        )
        cloned, won = clone(model, columns, start)
        began = time.perf_counter()
        model.learn(options.steps)
        spent = time.perf_counter() - began
        row = {"training_seed": seed, "clone_steps": cloned, "start": won, "successes": successes(model, columns)}
        rows.append(
            row | {"episodes": EPISODES, "env_steps": options.steps, "steps_per_s": round(options.steps / spent)}
        )
        print(rows[-1], flush=True)
        if options.json:
            options.json.write_text(json.dumps({"lr": options.lr, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
