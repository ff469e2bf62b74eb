"""Recurrent PPO (Schulman et al. 2017) from a policy that was trained on demos, on its own memory and action space.

Acting runs on the streaming state; training replays the same trajectories through `memory.unroll` from the states saved
when the rollout began, so that the replayed log-probabilities are those of the rollout, for a windowed memory as for a
carried one. What the policy predicts becomes the mean of a distribution:

    arm      Gaussian in normalized space around the head's arm output; a learned standard deviation per column that
             depends on no state
    gripper  Bernoulli with the head's logit

One decision is the first `decision_steps` actions of a chunk: 1, or several as one step of a semi-Markov decision process.
The critic is a copy of encoder, pooling and memory with a value on top, so its memory is its own.

Axes: T steps of a rollout, E worlds, k actions of a decision, A arm and G gripper columns.
"""

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float
from tensordict import TensorDict
from torch import Tensor, nn
from torch.nn import functional

from robopolicy.components import expect, require
from robopolicy.model.inputs import checked_inputs
from robopolicy.model.losses import cut_windows
from robopolicy.model.policy import ChunkPolicy
from robopolicy.model.streaming import MemoryState
from robopolicy.training.schedules import read_schedule
from robopolicy.training.sequences import RecurrentMiniBatch, SequenceStorage
from robopolicy.types import Chunk


@dataclass(frozen=True)
class PPOConfig:
    """Proximal policy optimization."""

    rollout_steps: int = 128
    """T, control steps of each world between two updates."""
    decision_steps: int = 1
    """k, actions of a chunk that are one decision; the policy is executed in the same way afterwards."""
    warmup_iterations: int = 3
    """Iterations in which only the critic learns."""
    epochs: int = 4
    """Passes over each rollout."""
    mini_batches: int = 4
    """Groups of worlds in each pass, an optimizer step each."""
    bptt_steps: int | None = None
    """Steps of truncated back-propagation through time; null: whole trajectories."""
    gamma: float = 0.99
    """Discount per control step."""
    gae_lambda: float = 0.95
    """Decay of generalized advantage estimation, per decision."""
    clip: float = 0.2
    """Largest change of a decision's probability ratio that is rewarded."""
    std: float = 0.1
    """Standard deviation of the arm at the start, in normalized action units: the demos span 2."""
    entropy: float = 0.0
    """Weight of the entropy bonus."""
    anchor: str = "0.01"
    """Weight of the KL divergence from the start policy, over iterations: a number, linear:FROM:TO, exponential:FROM:FACTOR,
    piecewise:0=A,50=B; 0 switches it off."""
    lr: float = 3e-5
    """Learning rate of the policy at the start."""
    critic_lr: float = 1e-3
    """Learning rate of the critic."""
    lr_schedule: Literal["adaptive", "fixed"] = "adaptive"
    """adaptive: lowered when an update's KL divergence exceeds twice `target_kl`, raised when it is below half of it."""
    target_kl: float = 0.02
    """Intended KL divergence per decision of one update; the policy's update ends early beyond 4 times as much."""
    clip_norm: float = 0.5
    """Largest gradient norm."""

    def __post_init__(self) -> None:
        counts = ("rollout_steps", "decision_steps", "epochs", "mini_batches", "bptt_steps")
        expect(self, "ppo", ">= 1", *counts)
        expect(self, "ppo", ">= 0", "warmup_iterations", "entropy")
        expect(self, "ppo", "> 0", "clip", "std", "lr", "critic_lr", "target_kl", "clip_norm")
        expect(self, "ppo", "0 .. 1", "gamma", "gae_lambda")
        read_schedule(self.anchor, "--ppo.anchor")


# -- distribution --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ActionDistribution:
    """Independent Gaussians for the arm and Bernoullis for the gripper, of k actions."""

    mean: Float[Tensor, "*batch k arm"]
    """In normalized units."""
    log_std: Float[Tensor, "arm"]
    """Of every action alike."""
    logit: Float[Tensor, "*batch k gripper"]
    """Closed where positive."""
    learned: Bool[Tensor, "arm"]
    """False for columns that never change, which do not count."""

    def sample(self, generator: torch.Generator | None = None) -> Float[Tensor, "*batch k action"]:
        """Arm targets, then gripper labels 0 or 1."""
        noise = torch.randn(self.mean.shape, generator=generator).to(self.mean)
        uniform = torch.rand(self.logit.shape, generator=generator).to(self.logit)
        return torch.cat([self.mean + self.log_std.exp() * noise, (uniform < self.logit.sigmoid()).float()], -1)

    def log_prob(self, action: Float[Tensor, "*batch k action"]) -> Float[Tensor, "*batch"]:
        """Log-density of the k actions together [nats]."""
        arm, gripper = action.split([self.mean.shape[-1], self.logit.shape[-1]], -1)
        density = -0.5 * ((arm - self.mean) / self.log_std.exp()).square() - self.log_std - 0.5 * math.log(2 * math.pi)
        mass = -functional.binary_cross_entropy_with_logits(self.logit, gripper, reduction="none")
        return (density * self.learned).sum((-1, -2)) + mass.sum((-1, -2))

    def entropy(self) -> Float[Tensor, "*batch"]:
        """Of the k actions together [nats]."""
        arm = ((self.log_std + 0.5 * math.log(2 * math.pi * math.e)) * self.learned).sum() * self.mean.shape[-2]
        gripper = functional.binary_cross_entropy_with_logits(self.logit, self.logit.sigmoid(), reduction="none")
        return arm + gripper.sum((-1, -2))

    def kl(self, other: "ActionDistribution") -> Float[Tensor, "*batch"]:
        """Kullback-Leibler divergence of `other` from this one, of the k actions together [nats]."""
        variance, others = (2 * self.log_std).exp(), (2 * other.log_std).exp()
        apart = (variance + (self.mean - other.mean).square()) / (2 * others)
        arm = ((other.log_std - self.log_std + apart - 0.5) * self.learned).sum((-1, -2))
        share = self.logit.sigmoid()
        cross = functional.binary_cross_entropy_with_logits(other.logit, share, reduction="none")
        own = functional.binary_cross_entropy_with_logits(self.logit, share, reduction="none")
        return arm + (cross - own).sum((-1, -2))


# -- advantages ----------------------------------------------------------------------------------------------------------


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

    A real end is worth nothing; a time limit, and the end of the rollout, are worth the value of the state reached. An episode
    that both terminates and is truncated has terminated.

    Args:
        reward: of each step.
        value: of the state before each step.
        final_value: of the state after each step; read where `truncated`, and at the last step.
        terminated: True where the episode came to a real end.
        truncated: True where it was cut off.
        decides: True where a decision was taken; its reward is the discounted sum up to the next.
        gamma: discount per step.
        gae_lambda: decay per decision.
    """
    result = torch.zeros_like(reward)
    following = torch.where(terminated[-1], 0.0, final_value[-1])  # worth of what comes after the step
    discount = torch.zeros_like(following)  # between the step's decision and the next one's advantage
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


# -- actor and critic ----------------------------------------------------------------------------------------------------


class Critic(nn.Module):
    """The value of a state, from a copy of the policy's encoder, pooling and memory.

    It predicts values scaled to mean 0 and standard deviation 1 over all targets so far.
    """

    mean: Tensor
    variance: Tensor
    count: Tensor

    def __init__(self, policy: ChunkPolicy) -> None:
        super().__init__()
        frozen = {id(parameter): parameter for parameter in policy.parameters() if not parameter.requires_grad}
        self.body = copy.deepcopy(policy, memo=dict(frozen))
        self.body.head.action_head = nn.Identity()
        self.value = nn.Linear(policy.head.memory.output_width, 1)
        nn.init.zeros_(self.value.weight)
        nn.init.zeros_(self.value.bias)
        for name, start in (("mean", 0.0), ("variance", 1.0), ("count", 0.0)):
            self.register_buffer(name, torch.tensor(start, dtype=torch.float64))

    def forward(self, hidden: Float[Tensor, "*batch hidden"]) -> Float[Tensor, "*batch"]:
        """Scaled values of the memory's hidden vectors."""
        return self.value(hidden)[..., 0]

    def unscaled(self, value: Tensor) -> Tensor:
        """Scaled values -> values in units of the reward."""
        return (value * self.variance.sqrt() + self.mean).float()

    def scaled(self, value: Tensor) -> Tensor:
        """The inverse of `unscaled`."""
        return ((value - self.mean) / self.variance.sqrt()).float()

    def count_targets(self, targets: Tensor) -> None:
        """Take value targets into mean and standard deviation (Chan et al. 1979), in place."""
        number, total = targets.numel(), self.count + targets.numel()
        mean, variance = targets.double().mean(), targets.double().var(correction=0)
        between = (mean - self.mean).square() * self.count * number / total
        known = torch.where(self.count > 0, self.variance * self.count, 0.0)
        self.variance.copy_(((known + variance * number + between) / total).clamp(min=1e-4))
        self.mean.lerp_(mean, number / total)
        self.count.copy_(total)


class Learner(nn.Module):
    """Policy, standard deviation, critic and start policy, with their optimizers: everything that a checkpoint holds.

    Args:
        policy: trained in place; in eval mode, so that dropout does not change the replay.
        config: of the algorithm.
    """

    def __init__(self, policy: ChunkPolicy, config: PPOConfig) -> None:
        super().__init__()
        require(
            config.decision_steps <= policy.chunk,
            f"--ppo.decision_steps must be <= the policy's chunk, got {config.decision_steps} > {policy.chunk}",
        )
        require(
            policy.spec.frame_stride == 1,
            f"the policy has --data.frame_stride {policy.spec.frame_stride}; improve needs 1, a frame per step",
        )
        self.config, self.policy = config, policy.eval()
        self.start = copy.deepcopy(policy).requires_grad_(False)
        self.critic = Critic(policy)
        normalizer = policy.action_normalizer
        scale = normalizer.coded_scale if normalizer.rotations.coded else normalizer.arm_scale
        self.learned = scale != 0
        self.log_std = nn.Parameter(torch.full_like(scale, math.log(config.std)))
        self.moved = [*(part for part in policy.parameters() if part.requires_grad), self.log_std]
        valued = [part for part in self.critic.parameters() if part.requires_grad]
        self.optimizer = torch.optim.Adam(self.moved, lr=config.lr, eps=1e-5)
        self.critic_optimizer = torch.optim.Adam(valued, lr=config.critic_lr, eps=1e-5)

    @property
    def lr(self) -> float:
        """The policy's present learning rate."""
        return float(self.optimizer.param_groups[0]["lr"])

    def distribution(self, hidden: Float[Tensor, "*batch hidden"], policy: ChunkPolicy) -> ActionDistribution:
        """What the action head of `policy` makes of hidden vectors."""
        chunk, k = policy.head.action_head.decode(hidden), self.config.decision_steps
        return ActionDistribution(chunk.arm[..., :k, :], self.log_std, chunk.gripper_logit[..., :k, :], self.learned)

    def replay(
        self, batch: RecurrentMiniBatch, policy: ChunkPolicy, before: MemoryState
    ) -> Float[Tensor, "t e hidden"]:
        """The hidden vectors of a group of worlds, each trajectory unrolled from the state saved at its first step.

        Args:
            batch: observations, and where episodes begin.
            policy: whose memory is unrolled.
            before: its state before the rollout's first step, of all worlds.
        """
        pooled = pool(policy, batch.steps)
        frames = batch.layout.split(pooled).transpose(0, 1)
        state = batch.layout.start_states(before[batch.environments])
        return batch.layout.join(self._unroll(policy, frames, state).transpose(0, 1))

    def _unroll(self, policy: ChunkPolicy, frames: Tensor, state: MemoryState) -> Float[Tensor, "j s hidden"]:
        """The hidden vectors of J trajectories of S pooled frames that continue from a state."""
        memory, hidden = policy.head.memory, []
        alone = max(memory.window - 1, 1) if memory.history == "window" else frames.shape[1]
        for part in frames[:, :alone].split(self.config.bptt_steps or frames.shape[1], dim=1):
            out, state = memory.unroll(part, state)
            hidden.append(out)
            state = state.detach()
        if alone < frames.shape[1]:
            # Later windows hold frames of the trajectory only: the same numbers in one pass instead of one step per frame.
            windows = cut_windows(frames, memory.window)[:, alone - memory.window + 1 :]
            hidden.append(memory(windows)[..., -1, :])
        return torch.cat(hidden, 1)

    def update(
        self,
        storage: SequenceStorage,
        before: tuple[MemoryState, MemoryState],
        anchor: float,
        generator: torch.Generator,
        *,
        critic_only: bool = False,
    ) -> dict[str, float]:
        """Learn from one rollout; returns means over its optimizer steps.

        Args:
            storage: the rollout, as `Explorer` and `advantages` filled it.
            before: states of the policy's and the critic's memory before its first step.
            anchor: weight of the divergence from the start policy.
            generator: shuffles the worlds.
            critic_only: leave the policy as it is.
        """
        config, rows = self.config, storage.steps
        decides = rows["decides"]
        gain = rows["advantage"][decides]
        scale = (gain.mean(), gain.std(correction=0) + 1e-8)
        self.critic.count_targets((rows["advantage"] + rows["value"])[decides])
        sums: dict[str, list[float]] = {}
        stopped = critic_only
        for _ in range(config.epochs):
            kls: list[float] = []
            for batch in storage.mini_batches(min(config.mini_batches, decides.shape[1]), generator):
                figures = self._critic_step(batch, before[1])
                if not stopped:
                    figures |= self._policy_step(batch, before[0], anchor, scale)
                    kls.append(float(figures["kl"]))
                    stopped = kls[-1] > 4 * config.target_kl
                for name, figure in figures.items():
                    sums.setdefault(name, []).append(float(figure))
            if kls and config.lr_schedule == "adaptive":
                self._adapt(sum(kls) / len(kls))
        return {name: sum(values) / len(values) for name, values in sums.items()}

    def _critic_step(self, batch: RecurrentMiniBatch, before: MemoryState) -> dict[str, Tensor]:
        """Regression on the value targets of the decisions, in the critic's scale."""
        at = batch.steps["decides"]
        value = self.critic(self.replay(batch, self.critic.body, before)[at])
        wanted = self.critic.scaled((batch.steps["advantage"] + batch.steps["value"])[at])
        loss = functional.mse_loss(value, wanted)
        self._step(self.critic_optimizer, loss, list(self.critic.parameters()))
        return {"value_error": (loss.detach() * self.critic.variance).sqrt()}

    def _policy_step(
        self, batch: RecurrentMiniBatch, before: MemoryState, anchor: float, scale: tuple[Tensor, Tensor]
    ) -> dict[str, Tensor]:
        """PPO's clipped surrogate, the entropy bonus, and the divergence from the start policy."""
        at, clip = batch.steps["decides"], self.config.clip
        steps = batch.steps[at]
        found = self.distribution(self.replay(batch, self.policy, before)[at], self.policy)
        old = self._recorded(steps, "mean", "logit", steps["log_std"][0])
        first = self._recorded(steps, "start_mean", "start_logit", self.log_std)
        ratio = (found.log_prob(steps["action"]) - steps["log_prob"]).exp()
        clipped = ratio.clamp(1 - clip, 1 + clip)
        gain = (steps["advantage"] - scale[0]) / scale[1]
        surrogate = torch.minimum(ratio * gain, clipped * gain).mean()
        away, entropy = found.kl(first).mean(), found.entropy().mean()
        self._step(self.optimizer, -surrogate + anchor * away - self.config.entropy * entropy, self.moved)
        figures = {"kl": old.kl(found).mean(), "anchor_kl": away, "entropy": entropy}
        figures |= {"clipped": (ratio != clipped).float().mean()}
        return {name: figure.detach() for name, figure in figures.items()}

    def _recorded(self, steps: TensorDict, mean: str, logit: str, log_std: Tensor) -> ActionDistribution:
        return ActionDistribution(steps[mean], log_std.detach(), steps[logit], self.learned)

    def _step(self, optimizer: torch.optim.Optimizer, loss: Tensor, parameters: Sequence[Tensor]) -> None:
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, self.config.clip_norm)
        optimizer.step()

    def _adapt(self, kl: float) -> None:
        """Move the learning rate towards the intended divergence."""
        if kl > 2 * self.config.target_kl:
            lr = max(self.lr / 1.5, 1e-6)
        elif kl < 0.5 * self.config.target_kl:
            lr = min(self.lr * 1.5, 10 * self.config.lr)
        else:
            return
        self.optimizer.param_groups[0]["lr"] = lr


def pool(policy: ChunkPolicy, frame: Mapping[str, Any] | TensorDict) -> Float[Tensor, "*batch pooled"]:
    """The pooled vectors of frames `obs` (*B, ...) and, for an instruction-conditioned policy, `text` (*B, ...)."""
    obs = {key: frame["obs"][key] for key in policy.obs}
    encoding = policy.encode(obs, frame["text"] if policy.text is not None else None)
    return policy.head.pool(encoding.tokens, encoding.token_valid)


# -- acting --------------------------------------------------------------------------------------------------------------


class Explorer:
    """Samples the actions of a rollout, as its `Actor`, and keeps of each step what `Learner.update` needs.

    Args:
        learner: acts and values.
        worlds: E.
        generator: source of noise.
    """

    def __init__(self, learner: Learner, worlds: int, generator: torch.Generator) -> None:
        self.learner, self.generator = learner, generator
        policies = (learner.policy, learner.critic.body, learner.start)
        self.states: list[MemoryState] = [policy.initial_state(worlds) for policy in policies]
        """Of the policy, the critic and the start policy."""
        self.before = (self.states[0], self.states[1])
        """The policy's and the critic's before the present step."""
        self.frame: dict[str, Any] = {}
        """Of the present step: observations, distribution, decision and value, as `TensorDict` takes them."""
        self._place = torch.zeros(worlds, dtype=torch.int64, device=learner.policy.device)
        self._plan: Tensor | None = None

    def reset(self, done: np.ndarray, seeds: Sequence[int]) -> None:
        """Clear memories and plans of the worlds where an episode begins."""
        mask = torch.as_tensor(np.asarray(done)).to(self._place.device)
        self.states = [state.reset(mask) for state in self.states]
        self._place = self._place.masked_fill(mask, 0)

    @torch.no_grad()
    def act(self, obs: Mapping[str, np.ndarray], instructions: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """The action to execute (E, width), twice; noise never leads the arm outside the demos' range."""
        learner, frame = self.learner, self._inputs(obs, instructions)
        self.before = (self.states[0], self.states[1])
        hidden = []
        for number, policy in enumerate((learner.policy, learner.critic.body, learner.start)):
            latest, self.states[number] = policy.head.memory.step(pool(policy, frame), self.states[number])
            hidden.append(latest)
        found, first = (learner.distribution(hidden[0], learner.policy), learner.distribution(hidden[2], learner.start))
        action, decides = found.sample(self.generator), self._place == 0
        plan = action if self._plan is None else torch.where(decides[:, None, None], action, self._plan)
        now = plan[torch.arange(len(plan)), self._place]
        self._plan, self._place = plan, (self._place + 1) % learner.config.decision_steps
        frame |= {"mean": found.mean, "logit": found.logit, "action": action, "log_prob": found.log_prob(action)}
        frame |= {"start_mean": first.mean, "start_logit": first.logit, "decides": decides}
        frame |= {"value": learner.critic.unscaled(learner.critic(hidden[1]))}
        frame |= {"log_std": learner.log_std.detach().expand(len(plan), -1)}
        self.frame = frame
        arms = found.mean.shape[-1]
        rows = Chunk(now[:, None, :arms].clamp(-1, 1), 2 * now[:, None, arms:] - 1)
        row = learner.policy.action_normalizer.to_rows(rows)[:, 0].cpu().numpy()
        return row, row

    @torch.no_grad()
    def value(self, obs: Mapping[str, np.ndarray], instructions: Sequence[str]) -> Float[Tensor, "worlds"]:
        """The value of the states that follow the present step; memories stay as they are."""
        critic = self.learner.critic
        hidden, _ = critic.body.head.memory.step(pool(critic.body, self._inputs(obs, instructions)), self.states[1])
        return critic.unscaled(critic(hidden))

    def _inputs(self, obs: Mapping[str, np.ndarray], instructions: Sequence[str]) -> dict[str, Any]:
        policy = self.learner.policy
        inputs: dict[str, Any] = {"obs": checked_inputs(obs, policy.obs, policy.device, finite=True)}
        text = policy.instruction_text(tuple(instructions), (len(instructions),))
        return inputs if text is None else inputs | {"text": text}
