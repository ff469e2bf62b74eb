"""Demonstrations by the scripted expert, with noise on what is executed and the clean action as the label (DART)."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from robopolicy.rollout.episodes import Episode, Timing, run_episodes
from robopolicy.sim.device_rollout import run_episodes_on_device
from robopolicy.sim.env import RobotVectorEnv
from robopolicy.sim.expert import expert_actions, within_limits
from robopolicy.sim.worlds import ACTIONS
from robopolicy.types import ActionSpec

JOINT_NOISE_RAD = 0.01
"""Joint offset of a disturbance of 1, for actions that are joint positions [rad]."""
NOISE_STREAM = 1
"""Second word of the noise generator's seed, so that noise and scene are independent."""


@dataclass(frozen=True)
class ActionNoise:
    """Disturbance of the executed action, so that demos contain recoveries (DART, Laskey et al. 2017).

    Jitter alone shows how to stay on course. Pushes that last a few steps, and inversions of the gripper, show how to
    recover from a missed grasp, from fingers closed too early and from a hand off its path. A closed gripper is never
    opened: the place where a dropped object comes to rest can't be reproduced on a robot.
    """

    std: float = 0.25
    """Standard deviation of the jitter on the arm's displacement, in the action's units of [-1, 1]; 0 is off."""
    rotation_std: float = 0.02
    """Likewise on its rotation; policies err less there."""
    share: float = 0.7
    """Share of the steps with jitter."""
    push_std: float = 0.4
    """Standard deviation of a push, the same displacement added in each of its steps; 0 is off."""
    push_share: float = 0.04
    """Probability that a push begins at a step."""
    push_steps: int = 5
    """Steps that a push lasts."""
    flip_share: float = 0.3
    """Share of the pushes during which an open gripper closes."""

    def __post_init__(self) -> None:
        for name, size in vars(self).items():
            least, most = (1, math.inf) if name == "push_steps" else (0, 1 if name.endswith("share") else math.inf)
            if not least <= size <= most:
                expected = f"{least} or more" if most == math.inf else f"{least} .. {most}"
                raise ValueError(f"--disturbance.{name} is {size}; expected {expected}")

    @classmethod
    def off(cls) -> "ActionNoise":
        """No disturbance: the executed action is the label."""
        return cls(std=0.0, rotation_std=0.0, push_std=0.0, push_share=0.0)


class Disturbance:
    """The disturbance of one episode, drawn from its seed alone."""

    def __init__(self, noise: ActionNoise, seed: int, actions: ActionSpec = ACTIONS) -> None:
        self.noise, self._joints = noise, list(actions.joint_columns) if actions.kind == "absolute" else None
        self.rng = np.random.default_rng([seed, NOISE_STREAM])
        self.left = 0
        self.push = np.zeros(3)
        self.flipped = False

    def draw(self) -> tuple[np.ndarray, float]:
        """The noise on the displacement (6,) in the next step, and a factor for the gripper: -1 inverts it."""
        noise = self.noise
        added, factor = np.zeros(6), 1.0
        if self.left == 0 and self.rng.random() < noise.push_share:
            self.left = noise.push_steps
            self.push = self.rng.normal(0.0, noise.push_std, 3)
            self.flipped = self.rng.random() < noise.flip_share
        if self.rng.random() < noise.share:
            added[:3] += self.rng.normal(0.0, noise.std, 3)
            added[3:] += self.rng.normal(0.0, noise.rotation_std, 3)
        if self.left > 0:
            self.left -= 1
            added[:3] += self.push
            factor = -1.0 if self.flipped else 1.0
        return added, factor

    def __call__(self, label: np.ndarray) -> np.ndarray:
        """The action (width,) to execute for the expert's action `label` (width,)."""
        if self._joints is not None:
            return self._disturbed_joints(label)
        added, factor = self.draw()
        gripper = label[6] * factor if label[6] < 0 else label[6]
        return np.append(label[:6] + added, gripper).astype(label.dtype)

    def _disturbed_joints(self, label: np.ndarray) -> np.ndarray:
        """Joint targets with jitter and pushes of each arm's joints; gripper columns are unchanged."""
        noise, executed = self.noise, label.copy()
        assert self._joints is not None
        added = np.zeros(len(self._joints))
        if self.left == 0 and self.rng.random() < noise.push_share:
            self.left = noise.push_steps
            self.push = self.rng.normal(0.0, noise.push_std, len(added))
        if self.rng.random() < noise.share:
            added += self.rng.normal(0.0, noise.std, len(added))
        if self.left > 0:
            self.left -= 1
            added += self.push
        executed[self._joints] += (JOINT_NOISE_RAD * added).astype(label.dtype)
        return executed


class ExpertActor:
    """The scripted expert, disturbed."""

    def __init__(self, env: RobotVectorEnv, noise: ActionNoise) -> None:
        self.env = env
        self.noise = noise
        self.disturbances = [Disturbance(noise, seed=0, actions=env.actions) for _ in range(env.num_envs)]

    def reset(self, done: np.ndarray, seeds: Sequence[int]) -> None:
        """Draw new disturbances; the expert has no state of its own."""
        for world in np.flatnonzero(done).tolist():
            self.disturbances[world] = Disturbance(self.noise, seeds[world], self.env.actions)

    def act(self, obs: Mapping[str, np.ndarray], instructions: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """The expert's action as label; the disturbed one as the action executed."""
        label = expert_actions(self.env)
        executed = np.stack([disturb(row) for disturb, row in zip(self.disturbances, label, strict=True)])
        return label, within_limits(self.env, executed)


class DeviceExpertActor:
    """The scripted expert, disturbed in the same way, on the worlds' device; the noise is drawn in advance.

    Args:
        env: Worlds on a device.
        noise: The disturbance.
        seeds: Of the episodes that will be run.
    """

    def __init__(self, env: RobotVectorEnv, noise: ActionNoise, seeds: Sequence[int]) -> None:
        self.env, device = env, env.physics.qpos.device
        self._last = env.max_episode_steps - 1
        table = np.zeros((len(seeds), env.max_episode_steps, 7), np.float32)
        for row, seed in enumerate(seeds):
            disturb = Disturbance(noise, seed)
            for step in range(env.max_episode_steps):
                table[row, step, :6], table[row, step, 6] = disturb.draw()
        self._table = torch.from_numpy(table).to(device)
        self._rows = torch.zeros(env.num_envs, dtype=torch.int64, device=device)

    def reset(self, done: Bool[Tensor, " worlds"], rows: Int[Tensor, " worlds"]) -> None:
        """Select the disturbances of the new episodes; the expert has no state of its own."""
        self._rows = torch.where(done, rows, self._rows)

    def act(self, obs: Mapping[str, Tensor], instruction_id: Tensor) -> tuple[Tensor, Tensor]:
        """The expert's action as label; the disturbed one as the action executed."""
        label = torch.as_tensor(expert_actions(self.env))
        disturbed = self._table[self._rows, self.env.state.step.clamp(max=self._last)]
        gripper = torch.where(label[:, 6:] < 0, label[:, 6:] * disturbed[:, 6:], label[:, 6:])
        executed = torch.cat([label[:, :6] + disturbed[:, :6], gripper], -1)
        return label, within_limits(self.env, executed)


def collect(
    env: RobotVectorEnv,
    seeds: Sequence[int],
    noise: ActionNoise,
    *,
    record: bool = True,
    timing: Timing | None = None,
) -> Iterator[Episode]:
    """Expert episodes, one per seed, in the order in which they end; failures too, for the caller to drop and count."""
    if env.on_device:
        actor = DeviceExpertActor(env, noise, seeds)
        return run_episodes_on_device(env, actor, seeds, record=record, timing=timing)
    return run_episodes(env, ExpertActor(env, noise), seeds, record=record, timing=timing)
