"""Recurrent PPO (Schulman et al. 2017): fine-tunes a policy trained on demos, with the policy's own memory and action space.

During a rollout the policy acts with its streaming state. The update replays the trajectories through `memory.unroll`, from
the states saved when the rollout began, so that the replayed log-probabilities equal those of the rollout for windowed and
for carried memories. `actor_critic` holds the trained modules.

Axes: T steps of a rollout, E worlds.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from tensordict import TensorDict
from torch import Tensor, nn
from torch.nn import functional

from robopolicy.components import Options, option
from robopolicy.model.policy import ChunkPolicy
from robopolicy.model.streaming import MemoryState
from robopolicy.training.actor_critic import ActionDistribution, ActorCritic
from robopolicy.training.schedules import read_schedule
from robopolicy.training.sequences import RecurrentMiniBatch, SequenceStorage


@dataclass(frozen=True)
class PPOConfig(Options):
    """Proximal policy optimization."""

    section: ClassVar[str] = "ppo"

    rollout_steps: int = option(32, ">= 1")
    """T, control steps of each world between two updates."""
    decision_steps: int | None = option(None, ">= 1")
    """k, number of actions of a chunk that form one decision; the new policy also replans every k steps; null: 4, or the
    chunk's length if that is less."""
    warmup_iterations: int = option(3, ">= 0")
    """Iterations in which only the critic learns."""
    epochs: int = option(4, ">= 1")
    """Passes over each rollout."""
    mini_batches: int = option(4, ">= 1")
    """Minibatches (groups of worlds) in each pass; each is one optimizer step."""
    bptt_steps: int | None = option(None, ">= 1")
    """Steps of truncated back-propagation through time; null: whole trajectories."""
    gamma: float = option(0.99, "0 .. 1")
    """Discount per control step."""
    gae_lambda: float = option(0.8, "0 .. 1")
    """Decay of generalized advantage estimation, per decision."""
    clip: float = option(0.2, "> 0")
    """Clipping range of a decision's probability ratio: 1 - clip .. 1 + clip."""
    std: float = option(0.15, "> 0")
    """Initial standard deviation of arm actions, in normalized units (the demos span -1 to 1)."""
    entropy: float = option(0.0, ">= 0")
    """Weight of the entropy bonus."""
    anchor: str = "0.01"
    """Weight of the KL divergence from the start policy, over iterations: a number, linear:FROM:TO, exponential:FROM:FACTOR,
    piecewise:0=A,50=B; 0 switches it off."""
    lr: float = option(1e-4, "> 0")
    """Initial learning rate of the policy."""
    critic_lr: float = option(1e-3, "> 0")
    """Learning rate of the critic."""
    lr_schedule: Literal["adaptive", "fixed"] = "adaptive"
    """adaptive: after each pass, lowered if the mean KL divergence exceeds twice `target_kl`, raised if below half of it."""
    target_kl: float = option(0.02, "> 0")
    """Target KL divergence of one update, per action. An optimizer step that leads beyond 4 times this value is undone and
    the learning rate lowered; with a fixed learning rate, the update of the policy ends."""
    average: int = option(20, ">= 1")
    """Number of iterations over which weights are averaged for evaluation and saving; 1: the latest weights."""
    clip_norm: float = option(0.5, "> 0")
    """Largest gradient norm."""

    def __post_init__(self) -> None:
        super().__post_init__()
        read_schedule(self.anchor, "--ppo.anchor")


def advantages(
    reward: Float[Tensor, "time worlds"],
    value: Float[Tensor, "time worlds"],
    final_value: Float[Tensor, "time worlds"],
    terminated: Bool[Tensor, "time worlds"],
    truncated: Bool[Tensor, "time worlds"],
    decides: Bool[Tensor, "time worlds"],
    gamma: float,
    gae_lambda: float,
) -> Float[Tensor, "time worlds"]:
    """Generalized advantage estimates (Schulman et al. 2016) of the decisions; meaningless at other steps.

    After a terminated step the value is 0; after a truncated step, and at the end of the rollout, it is the value of the state
    reached. A step that is both terminated and truncated counts as terminated.

    Args:
        reward: reward of each step.
        value: value of the state before each step.
        final_value: value of the state after each step; used where `truncated`, and at the last step.
        terminated: True where the episode terminated.
        truncated: True where the episode was truncated.
        decides: True where a decision was taken; its reward is the discounted sum of rewards up to the next decision.
        gamma: discount per step.
        gae_lambda: decay per decision.
    """
    result = torch.zeros_like(reward)
    following = torch.where(terminated[-1], 0.0, final_value[-1])  # value of what comes after the step
    discount = torch.zeros_like(following)  # from the step's decision to the next decision
    upcoming = torch.zeros_like(following)  # the next decision's advantage
    for t in reversed(range(len(reward))):
        if t < len(reward) - 1:
            following = torch.where(decides[t + 1], value[t + 1], following)
            discount = torch.where(decides[t + 1], 1.0, discount)
            upcoming = torch.where(decides[t + 1], result[t + 1], upcoming)
        following = torch.where(truncated[t], final_value[t], following)
        following = reward[t] + gamma * torch.where(terminated[t], 0.0, following)
        discount = gamma * torch.where(terminated[t] | truncated[t], 0.0, discount)
        result[t] = following - value[t] + gae_lambda * discount * upcoming
    return result


class Learner(ActorCritic):
    """An actor and a critic with their optimizers; every checkpoint holds their states.

    Args:
        policy: trained in place.
        config: options of the algorithm.
    """

    def __init__(self, policy: ChunkPolicy, config: PPOConfig) -> None:
        super().__init__(policy, config.decision_steps or min(4, policy.chunk), config.std, config.bptt_steps)
        self.config = config
        self.averaged = copy.deepcopy(policy).requires_grad_(False)
        """The moving average of the policy's weights, which averages out the noise of single updates."""
        self.updates = nn.Buffer(torch.zeros(()))
        self.moved = [*(part for part in policy.parameters() if part.requires_grad), self.log_std]
        valued = [part for part in self.critic.parameters() if part.requires_grad]
        self.optimizer = torch.optim.Adam(self.moved, lr=config.lr, eps=1e-5)
        self.critic_optimizer = torch.optim.Adam(valued, lr=config.critic_lr, eps=1e-5)

    @property
    def lr(self) -> float:
        """The policy's current learning rate."""
        return float(self.optimizer.param_groups[0]["lr"])

    def update(
        self,
        storage: SequenceStorage,
        before: tuple[MemoryState, MemoryState],
        anchor: float,
        generator: torch.Generator,
        *,
        critic_only: bool = False,
    ) -> dict[str, float]:
        """Update policy and critic from one rollout; returns means of the losses and statistics over the optimizer steps.

        Args:
            storage: the rollout, as `Explorer` and `advantages` filled it.
            before: memory states of the policy and the critic before the rollout's first step.
            anchor: weight of the KL divergence from the start policy.
            generator: shuffles the worlds.
            critic_only: do not update the policy.
        """
        config, rows = self.config, storage.steps
        decides = rows["decides"]
        gain = rows["advantage"][decides]
        scale = (gain.mean(), gain.std(correction=0) + 1e-8)
        self.critic.count_targets((rows["advantage"] + rows["value"])[decides])
        sums: dict[str, list[float]] = {}
        stopped, limit = critic_only, 4 * config.target_kl
        safe: list[Tensor] = []  # the weights before the latest step of the policy
        for _ in range(config.epochs):
            kls: list[float] = []
            for batch in storage.mini_batches(min(config.mini_batches, decides.shape[1]), generator):
                figures = self._critic_step(batch, before[1])
                if not stopped:
                    loss, found = self._policy_loss(batch, before[0], anchor, scale)
                    kls.append(float(found["kl"]))
                    if safe and kls[-1] > limit:
                        stopped = self._undo(safe)
                    else:
                        figures, safe = figures | found, [part.detach().clone() for part in self.moved]
                        self._step(self.optimizer, loss, self.moved)
                for name, figure in figures.items():
                    sums.setdefault(name, []).append(float(figure))
            if kls and config.lr_schedule == "adaptive":
                self._adapt(sum(kls) / len(kls))
        if not critic_only:
            self.updates += 1
            weight = 1 / min(float(self.updates), config.average)
            for kept, now in zip(self.averaged.parameters(), self.policy.parameters(), strict=True):
                kept.lerp_(now.detach(), weight)
        return {name: sum(values) / len(values) for name, values in sums.items()}

    def _critic_step(self, batch: RecurrentMiniBatch, before: MemoryState) -> dict[str, Tensor]:
        """One optimizer step of the critic: regression on the scaled value targets of the decisions."""
        at = batch.steps["decides"]
        value = self.critic(self.replay(batch, self.critic.body, before))
        expected = self.critic.scaled((batch.steps["advantage"] + batch.steps["value"])[at])
        loss = functional.mse_loss(value, expected)
        self._step(self.critic_optimizer, loss, list(self.critic.parameters()))
        return {"value_error": (loss.detach() * self.critic.variance).sqrt()}

    def _policy_loss(
        self, batch: RecurrentMiniBatch, before: MemoryState, anchor: float, scale: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """PPO's clipped surrogate loss, with the entropy bonus and the KL divergence from the start policy; and statistics."""
        at, clip = batch.steps["decides"], self.config.clip
        steps = batch.steps[at]
        found = self.distribution(self.replay(batch, self.policy, before), self.policy)
        old = self._recorded(steps, "mean", "logit", steps["log_std"][0])
        first = self._recorded(steps, "start_mean", "start_logit", self.log_std)
        ratio = (found.log_prob(steps["action"]) - steps["log_prob"]).exp()
        clipped = ratio.clamp(1 - clip, 1 + clip)
        gain = (steps["advantage"] - scale[0]) / scale[1]
        surrogate = torch.minimum(ratio * gain, clipped * gain).mean()
        away, entropy = found.kl(first).mean(), found.entropy().mean()
        loss = -surrogate + anchor * away - self.config.entropy * entropy
        figures = {"kl": old.kl(found).mean() / self.decision_steps, "anchor_kl": away, "entropy": entropy}
        figures |= {"clipped": (ratio != clipped).float().mean()}
        return loss, {name: figure.detach() for name, figure in figures.items()}

    def _undo(self, weights: list[Tensor]) -> bool:
        """Undo the policy's latest step and lower the learning rate; at a fixed rate, return True, which ends the update."""
        with torch.no_grad():
            for part, weight in zip(self.moved, weights, strict=True):
                part.copy_(weight)
        if self.config.lr_schedule == "fixed":
            return True
        self._scale_lr(1 / 1.5)
        return False

    def _recorded(self, steps: TensorDict, mean: str, logit: str, log_std: Tensor) -> ActionDistribution:
        return ActionDistribution(steps[mean], log_std.detach(), steps[logit], self.learned)

    def _step(self, optimizer: torch.optim.Optimizer, loss: Tensor, parameters: Sequence[Tensor]) -> None:
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, self.config.clip_norm)
        optimizer.step()

    def _adapt(self, kl: float) -> None:
        """Adapt the learning rate to bring the KL divergence closer to its target."""
        if kl > 2 * self.config.target_kl:
            self._scale_lr(1 / 1.5)
        elif kl < 0.5 * self.config.target_kl:
            self._scale_lr(1.5)

    def _scale_lr(self, factor: float) -> None:
        self.optimizer.param_groups[0]["lr"] = min(max(factor * self.lr, 1e-6), 10 * self.config.lr)
