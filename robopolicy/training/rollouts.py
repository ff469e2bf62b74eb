"""Collects the rollouts for `reinforce`: a policy acts with exploration noise in worlds that stay open."""

from collections.abc import Iterator
from typing import Literal, TypeAlias

import numpy as np
import torch
from tensordict import TensorDict
from torch import Tensor

from robopolicy.components import require
from robopolicy.model.streaming import MemoryState
from robopolicy.rollout.episodes import EpisodeWorlds, Step, finished_episode, run_steps
from robopolicy.training.actor_critic import ActorCritic, Explorer
from robopolicy.training.sequences import EpisodeStatistics, SequenceStorage

Reward: TypeAlias = Literal["auto", "success", "progress", "env"]
PROGRESS = "progress"
"""Key in the worlds' `info` that holds the progress towards the goal, (N,), 0 .. 1."""


class Collector:
    """Worlds in which the policy acts with noise, and the steps of its last rollout.

    Args:
        model: the policy and the critic.
        worlds: the worlds, whose episodes continue from one rollout to the next.
        steps: T, control steps of each world in a rollout.
        reward: `success`: 1 at the step that makes the episode a success; `progress`: rewards whose return is the discounted
            mean of the worlds' `progress`; `auto`: progress if the worlds report it, else success; `env`: the worlds' reward.
        gamma: discount per step.
        first_seed: seed of the first episode; later episodes have consecutive seeds.
    """

    def __init__(
        self, model: ActorCritic, worlds: EpisodeWorlds, steps: int, reward: Reward, gamma: float, first_seed: int
    ) -> None:
        self.model, self.worlds, self.steps = model, worlds, steps
        self.reward, self.gamma = reward, gamma
        self.first_seed = self.next_seed = first_seed
        self.env_steps, self.episodes, self.rewarded = 0, 0, False
        self.generator = torch.Generator()
        """Generator of all noise; the caller seeds it to make rollouts reproducible."""
        self.storage = SequenceStorage(steps, worlds.num_envs, model.policy.device)
        self.restart()

    def restart(self) -> None:
        """Begin new episodes in all worlds, with fresh memories."""
        worlds = self.worlds.num_envs
        self._explorer = Explorer(self.model, worlds, self.generator)
        self._statistics = EpisodeStatistics(worlds, self.model.policy.device)
        self._succeeded = np.zeros(worlds, dtype=bool)
        self._loop = run_steps(self.worlds, self._explorer, self._seeds())

    def collect(self) -> tuple[tuple[MemoryState, MemoryState], dict[str, float]]:
        """Fill the storage.

        Returns:
            The memory states of policy and critic before the rollout's first step, and the number of episodes that ended,
            with the means of their return, length and success.

        Raises:
            ConfigError: the reward is `progress` and the worlds don't report it.
        """
        self.storage.clear()
        device = self.model.policy.device
        ended: dict[str, list[Tensor]] = {"return": [], "length": [], "success": []}
        before = None
        for step in self._loop:
            before = before or self._explorer.before
            last = len(self.storage) == self.steps - 1
            row = {name: torch.as_tensor(getattr(step, name), device=device) for name in ("terminated", "truncated")}
            row["reward"] = torch.as_tensor(self._rewards(step), dtype=torch.float32, device=device)
            row["final_value"] = torch.zeros_like(row["reward"])
            if last or step.truncated.any():
                row["final_value"] = self._explorer.value(step.next_obs, list(step.info["instruction"]))
            self.storage.append(TensorDict({**self._explorer.frame, **row}, [self.worlds.num_envs]))
            success = [
                bool(step.ended[world]) and finished_episode(self.worlds, step, world).success
                for world in range(self.worlds.num_envs)
            ]
            self.rewarded = self.rewarded or any(success) or (self.reward != "success" and bool(row["reward"].any()))
            done = row["terminated"] | row["truncated"]
            for name, values in self._statistics.add(row["reward"], done, torch.tensor(success, device=device)).items():
                ended[name].append(values.float())
            self.env_steps += self.worlds.num_envs
            if last:
                break
        assert before is not None
        means = {name: torch.cat(values).mean().item() for name, values in ended.items() if torch.cat(values).numel()}
        count = torch.cat(ended["success"]).numel()
        self.episodes += count
        return before, {"episodes": float(count), **means}

    def _rewards(self, step: Step) -> np.ndarray:
        """(N,) rewards of a step, as `self.reward` selects."""
        if self.reward == "env":
            return np.asarray(step.reward)
        now = np.asarray(step.info["success"], dtype=bool)
        reward = (now & ~self._succeeded).astype(np.float64)
        solved = self._succeeded | now
        self._succeeded = solved & ~step.ended
        require(
            self.reward != "progress" or PROGRESS in step.info,
            "--reward progress: these worlds don't report their progress; use --reward success",
        )
        if self.reward != "success" and PROGRESS in step.info:
            # The return is then the discounted mean of progress, which counts as 1 from the success on.
            reward = np.where(solved, reward, (1 - self.gamma) * step.info[PROGRESS])
        return reward

    def _seeds(self) -> Iterator[int]:
        while True:
            self.next_seed += 1
            yield self.next_seed - 1
