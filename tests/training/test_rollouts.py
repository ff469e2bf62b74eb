"""Rewards of rollouts: progress pays at every step, but never as much as success; worlds without it are refused."""

from typing import Any

import numpy as np
import pytest
import torch

from robopolicy.components import ConfigError
from robopolicy.experiment import DemoFacts, ExperimentConfig, build_policy
from robopolicy.training.reinforce import Learner, PPOConfig
from robopolicy.training.rollouts import Collector, Reward
from robopolicy.types import ActionSpec, ArraySpec
from tests.small_runs import SMALL

WORLDS, GAMMA = 3, 0.9


class Walk:
    """Each world walks its own length: world 0 succeeds, 1 fails, 2 is cut off; progress is a tenth a step."""

    num_envs, control_dt = WORLDS, 0.1
    episode_figures: tuple[str, ...] = ()
    lengths = np.array([4, 6, 5])

    def __init__(self, tells: bool = True) -> None:
        self.tells, self.place = tells, np.zeros(WORLDS, int)

    def reset(self, *, seed: Any, options: Any = None) -> tuple[dict, dict]:
        """The walk begins."""
        self.place[(options or {}).get("reset_mask", np.ones(WORLDS, bool))] = 0
        return self.frame(), self.info(np.zeros(WORLDS, bool))

    def step(self, actions: np.ndarray) -> tuple[dict, np.ndarray, np.ndarray, np.ndarray, dict]:
        """One place on."""
        self.place += 1
        ends = self.place == self.lengths
        success = ends & (np.arange(WORLDS) == 0)
        return self.frame(), np.zeros(WORLDS), ends & (np.arange(WORLDS) < 2), ends, self.info(success)

    def frame(self) -> dict[str, np.ndarray]:
        """Where each world is."""
        return {"state": self.place[:, None].astype(np.float32)}

    def info(self, success: np.ndarray) -> dict[str, Any]:
        """Success and progress."""
        told = {"progress": self.place / 10} if self.tells else {}
        return {"instruction": [""] * WORLDS, "success": success, **told}

    def states(self) -> None:
        """None."""

    def faults(self, info: object, world: int) -> tuple[str, ...]:
        """None."""
        return ()


def practised(reward: Reward, tells: bool = True) -> torch.Tensor:
    """The rewards (12, N) of a rollout."""
    config = ExperimentConfig().change(SMALL)
    policy = build_policy(config, DemoFacts(ActionSpec(arm=2, gripper=0), {"state": ArraySpec((1,))}))
    collector = Collector(Learner(policy, PPOConfig()), Walk(tells), 12, reward, GAMMA, 0)
    collector.collect()
    assert collector.episodes == 3 + 2 + 2
    assert collector.rewarded
    return collector.storage.steps["reward"]


def test_success_is_rewarded_once() -> None:
    """Guards against: a reward for every step after a success, or one for a failure."""
    reward = practised("success")
    assert reward.nonzero().tolist() == [[3, 0], [7, 0], [11, 0]]


def test_the_return_is_the_discounted_mean_of_progress() -> None:
    """Guards against: waiting near the goal that pays more than success, and waiting far from it that pays as much."""
    reward = practised("progress")
    for world, length in enumerate(Walk.lengths):
        expected = (1 - GAMMA) * torch.arange(1, length + 1) / 10
        if world == 0:
            expected[-1] = 1.0  # progress 1 for ever: (1 - gamma) * (1 + gamma + gamma^2 + ...)
        torch.testing.assert_close(reward[:length, world], expected)
        torch.testing.assert_close(reward[length : 2 * length, world], expected)


def test_progress_is_rewarded_where_the_worlds_give_it() -> None:
    """Guards against: a default that ignores what the task measures, or that refuses worlds which measure nothing."""
    assert torch.equal(practised("auto"), practised("progress"))
    assert torch.equal(practised("auto", tells=False), practised("success"))


def test_worlds_without_progress_are_refused() -> None:
    """Guards against: training on a reward that is silently another one."""
    with pytest.raises(ConfigError, match="--reward progress: these worlds don't report their progress"):
        practised("progress", tells=False)
