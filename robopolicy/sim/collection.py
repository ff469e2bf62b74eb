"""Demonstrations by the scripted expert, with noise on what is executed and the clean action as the label (DART)."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from robopolicy.sim.env import RobotVectorEnv
from robopolicy.sim.expert import expert_actions

from robopolicy.sim.rollout import Episode, run_episodes

NOISE_STREAM = 1
"""Second word of the noise generator's seed; keeps it apart from the scene's."""


@dataclass(frozen=True)
class ActionNoise:
    """Disturbance of the executed action, so that demos show how to come back (DART, Laskey et al. 2017)."""

    std: float = 0.3
    """Standard deviation of the noise on the arm's displacement, in the action's units of [-1, 1]; 0 is off."""
    rotation_std: float = 0.06
    """Likewise on its rotation; policies err less there."""
    share: float = 0.7
    """Share of the steps that are disturbed."""


class ExpertActor:
    """The scripted expert, disturbed; the disturbance of an episode depends on its seed alone."""

    def __init__(self, env: RobotVectorEnv, noise: ActionNoise) -> None:
        self.env = env
        self.noise = noise
        self.rngs = [np.random.default_rng() for _ in range(env.num_envs)]

    def reset(self, done: np.ndarray, seeds: Sequence[int]) -> None:
        """Start the disturbance anew; the expert itself sees the simulator's present state only."""
        for world in np.flatnonzero(done):
            self.rngs[world] = np.random.default_rng([seeds[world], NOISE_STREAM])

    def act(self, obs: Mapping[str, np.ndarray], instructions: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """The expert's action as label; with noise on the arm as the action executed."""
        label = expert_actions(self.env)
        if self.noise.std == 0.0:
            return label, label
        noise = np.stack([self._draw(rng) for rng in self.rngs])
        executed = label.copy()
        executed[:, :-1] += noise
        return label, np.clip(executed, -1.0, 1.0)

    def _draw(self, rng: np.random.Generator) -> np.ndarray:
        disturbed = rng.random() < self.noise.share
        stds = [self.noise.std] * 3 + [self.noise.rotation_std] * 3
        return disturbed * rng.normal(0.0, stds)


def collect(env: RobotVectorEnv, seeds: Sequence[int], noise: ActionNoise) -> Iterator[Episode]:
    """Recorded expert episodes, one per seed, as they end; failures too, for the caller to drop and count."""
    return run_episodes(env, ExpertActor(env, noise), seeds, record=True)
