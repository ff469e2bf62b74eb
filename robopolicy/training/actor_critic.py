"""A stochastic policy and its critic, which any reinforcement-learning algorithm can train.

The action head's output becomes the mean of a distribution:

    arm      Gaussian in normalized space around the head's arm output; a learned standard deviation per column that
             does not depend on the state
    gripper  Bernoulli with the head's logit

A decision is the first `decision_steps` actions of a chunk, sampled together; if there are several, a decision is one step of
a semi-Markov decision process.
The critic is a copy of encoder, pooling and memory with a value head; it has its own memory state.

Axes: T steps of a rollout, E worlds, k actions of a decision, A arm and G gripper columns.
"""

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from tensordict import TensorDict
from torch import Tensor, nn
from torch.distributions import Bernoulli, Normal, kl_divergence
from torch.nn import functional

from robopolicy.components import require
from robopolicy.model.inputs import checked_inputs
from robopolicy.model.losses import cut_windows
from robopolicy.model.policy import ChunkPolicy
from robopolicy.model.streaming import MemoryState
from robopolicy.training.module import copy_sharing_frozen
from robopolicy.training.sequences import RecurrentMiniBatch
from robopolicy.types import Chunk


@dataclass(frozen=True)
class ActionDistribution:
    """Independent Gaussians for the arm columns and Bernoullis for the gripper columns of k actions."""

    mean: Float[Tensor, "*batch k arm"]
    """Means of the Gaussians, in normalized units."""
    log_std: Float[Tensor, "arm"]
    """Logarithms of the Gaussians' standard deviations, the same for all k actions."""
    logit: Float[Tensor, "*batch k gripper"]
    """Logits of gripper label 1."""
    learned: Bool[Tensor, "arm"]
    """False for arm columns that are constant in the demos; they are excluded from densities, entropy and KL divergence."""

    def sample(self, generator: torch.Generator | None = None) -> Float[Tensor, "*batch k action"]:
        """Samples of the k actions: normalized arm columns, then gripper labels 0 or 1."""
        noise = torch.randn(self.mean.shape, generator=generator).to(self.mean)
        uniform = torch.rand(self.logit.shape, generator=generator).to(self.logit)
        return torch.cat([self.mean + self.log_std.exp() * noise, (uniform < self.logit.sigmoid()).float()], -1)

    def log_prob(self, action: Float[Tensor, "*batch k action"]) -> Float[Tensor, "*batch"]:
        """Joint log-density of the k actions [nats]."""
        arm, gripper = action.split([self.mean.shape[-1], self.logit.shape[-1]], -1)
        return self._total(*(part.log_prob(taken) for part, taken in zip(self._parts, (arm, gripper), strict=True)))

    def entropy(self) -> Float[Tensor, "*batch"]:
        """Joint entropy of the k actions [nats]."""
        return self._total(*(part.entropy() for part in self._parts))

    def kl(self, other: "ActionDistribution") -> Float[Tensor, "*batch"]:
        """Kullback-Leibler divergence KL(self || other) of the k actions together [nats]."""
        (arm, _), (other_arm, _) = self._parts, other._parts
        # Computed from the Bernoullis' logits: torch's kl_divergence is infinite where a probability rounds to 1 in float32.
        gripper = self.logit.sigmoid() * (self.logit - other.logit)
        gripper = gripper + functional.softplus(other.logit) - functional.softplus(self.logit)
        return self._total(kl_divergence(arm, other_arm), gripper)

    @property
    def _parts(self) -> tuple[Normal, Bernoulli]:
        # Without torch's argument checks, which would synchronize with the GPU.
        arm = Normal(self.mean, self.log_std.exp(), validate_args=False)
        return arm, Bernoulli(logits=self.logit, validate_args=False)

    def _total(self, arm: Tensor, gripper: Tensor) -> Tensor:
        return (arm * self.learned).sum((-1, -2)) + gripper.sum((-1, -2))


class Critic(nn.Module):
    """Predicts the value of a state, with a copy of the policy's encoder, pooling and memory.

    Values are predicted in a scale in which all value targets so far have mean 0 and standard deviation 1.
    """

    def __init__(self, policy: ChunkPolicy) -> None:
        super().__init__()
        self.body = copy_sharing_frozen(policy)
        self.body.head.action_head = nn.Identity()
        self.value = nn.Linear(policy.head.memory.output_width, 1)
        nn.init.zeros_(self.value.weight)
        nn.init.zeros_(self.value.bias)
        self.mean, self.variance, self.count = (nn.Buffer(torch.tensor(start).double()) for start in (0.0, 1.0, 0.0))

    def forward(self, hidden: Float[Tensor, "*batch hidden"]) -> Float[Tensor, "*batch"]:
        """Scaled values predicted from the memory's hidden vectors."""
        return self.value(hidden)[..., 0]

    def unscaled(self, value: Tensor) -> Tensor:
        """Scaled values -> values in units of the reward."""
        return (value * self.variance.sqrt() + self.mean).float()

    def scaled(self, value: Tensor) -> Tensor:
        """The inverse of `unscaled`."""
        return ((value - self.mean) / self.variance.sqrt()).float()

    def count_targets(self, targets: Tensor) -> None:
        """Update mean and variance in place with these value targets (Chan et al. 1979)."""
        number, total = targets.numel(), self.count + targets.numel()
        mean, variance = targets.double().mean(), targets.double().var(correction=0)
        between = (mean - self.mean).square() * self.count * number / total
        known = torch.where(self.count > 0, self.variance * self.count, 0.0)
        self.variance.copy_(((known + variance * number + between) / total).clamp(min=1e-4))
        self.mean.lerp_(mean, number / total)
        self.count.copy_(total)


class ActorCritic(nn.Module):
    """The trained policy, the standard deviations of its actions, its critic, and a frozen copy of the start policy.

    Args:
        policy: trained in place; kept in eval mode, since with dropout the replay would differ from the rollout.
        decision_steps: k, number of actions of a chunk that form one decision.
        std: initial standard deviation of arm actions, in normalized units.
        bptt_steps: steps of truncated back-propagation through time; None: whole trajectories.

    Raises:
        ConfigError: a decision is longer than a chunk, or the policy skips frames.
    """

    def __init__(self, policy: ChunkPolicy, decision_steps: int, std: float, bptt_steps: int | None = None) -> None:
        super().__init__()
        require(
            decision_steps <= policy.chunk,
            f"--ppo.decision_steps must be <= the policy's chunk, got {decision_steps} > {policy.chunk}",
        )
        require(
            policy.spec.frame_stride == 1,
            f"the policy has --data.frame_stride {policy.spec.frame_stride}; improve needs 1, a frame per step",
        )
        self.decision_steps, self.bptt_steps = decision_steps, bptt_steps
        self.policy = policy.eval()
        self.memoryless = policy.head.memory.history == "none"
        self.start = copy.deepcopy(policy).requires_grad_(False)
        self.critic = Critic(policy)
        normalizer = policy.action_normalizer
        scale = normalizer.coded_scale if normalizer.rotations.coded else normalizer.arm_scale
        self.learned = scale != 0
        self.log_std = nn.Parameter(torch.full_like(scale, math.log(std)))

    def distribution(self, hidden: Float[Tensor, "*batch hidden"], policy: ChunkPolicy) -> ActionDistribution:
        """The distribution that the action head of `policy` predicts from hidden vectors."""
        chunk, k = policy.head.action_head.decode(hidden), self.decision_steps
        return ActionDistribution(chunk.arm[..., :k, :], self.log_std, chunk.gripper_logit[..., :k, :], self.learned)

    def replay(
        self, batch: RecurrentMiniBatch, policy: ChunkPolicy, before: MemoryState
    ) -> Float[Tensor, "decisions hidden"]:
        """The hidden vectors at a minibatch's decisions; each trajectory is unrolled from the state at its first step.

        Args:
            batch: observations, decisions, and where episodes begin.
            policy: the policy whose memory is unrolled.
            before: memory states of all worlds before the rollout's first step.
        """
        decides = batch.steps["decides"]
        if self.memoryless:  # the frames between two decisions change nothing
            return policy.head.memory(pool(policy, batch.steps[decides])[:, None])[:, 0]
        pooled = pool(policy, batch.steps)
        frames = batch.layout.split(pooled).transpose(0, 1)
        state = batch.layout.start_states(before[batch.environments])
        return batch.layout.join(self._unroll(policy, frames, state).transpose(0, 1))[decides]

    def _unroll(self, policy: ChunkPolicy, frames: Tensor, state: MemoryState) -> Float[Tensor, "j s hidden"]:
        """The hidden vectors of J trajectories of S pooled frames, unrolled from a state."""
        memory, hidden = policy.head.memory, []
        alone = max(memory.window - 1, 1) if memory.history == "window" else frames.shape[1]
        for part in frames[:, :alone].split(self.bptt_steps or frames.shape[1], dim=1):
            out, state = memory.unroll(part, state)
            hidden.append(out)
            state = state.detach()
        if alone < frames.shape[1]:
            # Later windows hold no frames from before the trajectory: one pass over them gives the same as a step per frame.
            windows = cut_windows(frames, memory.window)[:, alone - memory.window + 1 :]
            hidden.append(memory(windows)[..., -1, :])
        return torch.cat(hidden, 1)


def pool(policy: ChunkPolicy, frame: Mapping[str, Any] | TensorDict) -> Float[Tensor, "*batch pooled"]:
    """The pooled vectors of frames, given as `obs` (*B, ...) and, for an instruction-conditioned policy, `text` (*B, ...)."""
    obs = {key: frame["obs"][key] for key in policy.obs}
    encoding = policy.encode(obs, frame["text"] if policy.text is not None else None)
    return policy.head.pool(encoding.tokens, encoding.token_valid)


class Explorer:
    """The `Actor` of a rollout: samples the actions, and holds the data of the current step that `Learner.update` needs.

    Args:
        model: the policy and the critic.
        worlds: E, number of worlds.
        generator: random generator of the exploration noise.
    """

    def __init__(self, model: ActorCritic, worlds: int, generator: torch.Generator) -> None:
        self.model, self.generator = model, generator
        policies = (model.policy, model.critic.body, model.start)
        self.states: list[MemoryState] = [policy.initial_state(worlds) for policy in policies]
        """Memory states of the policy, the critic and the start policy."""
        self.before = (self.states[0], self.states[1])
        """Memory states of the policy and the critic before the current step."""
        self.frame: dict[str, Any] = {}
        """The current step's row for the storage: observations, and the latest decision with its distribution and value."""
        self._place = torch.zeros(worlds, dtype=torch.int64, device=model.policy.device)
        self._decisions: dict[str, Tensor] = {}

    def reset(self, done: np.ndarray, seeds: Sequence[int]) -> None:
        """Clear the memory states and the current decisions of the worlds where an episode begins."""
        mask = torch.as_tensor(np.asarray(done)).to(self._place.device)
        self.states = [state.reset(mask) for state in self.states]
        self._place = self._place.masked_fill(mask, 0)

    @torch.no_grad()
    def act(self, obs: Mapping[str, np.ndarray], instructions: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """(label, action), here the same array (E, width) twice; arm actions are clipped to the range of the demos."""
        model, frame, decides = self.model, self._inputs(obs, instructions), self._place == 0
        self.before = (self.states[0], self.states[1])
        if not model.memoryless or decides.any():
            self._decide(frame, decides)
        plan = self._decisions["action"]
        now = plan[torch.arange(len(plan)), self._place]
        self._place = (self._place + 1) % model.decision_steps
        log_std = model.log_std.detach().expand(len(plan), -1)
        self.frame = {**frame, **self._decisions, "decides": decides, "log_std": log_std}
        arms = model.log_std.shape[0]
        rows = Chunk(now[:, None, :arms].clamp(-1, 1), 2 * now[:, None, arms:] - 1)
        row = model.policy.action_normalizer.to_rows(rows)[:, 0].cpu().numpy()
        return row, row

    def _decide(self, frame: Mapping[str, Any], decides: Tensor) -> None:
        """Update the memory states, and sample decisions for the worlds that take one at this step."""
        model, hidden = self.model, []
        seen = TensorDict(dict(frame), decides.shape)
        for number, policy in enumerate((model.policy, model.critic.body, model.start)):
            if model.memoryless:  # frames between two decisions change nothing
                hidden.append(policy.head.memory(pool(policy, seen[decides])[:, None])[:, 0])
            else:
                latest, self.states[number] = policy.head.memory.step(pool(policy, seen), self.states[number])
                hidden.append(latest[decides])
        found, first = model.distribution(hidden[0], model.policy), model.distribution(hidden[2], model.start)
        action, value = found.sample(self.generator), model.critic.unscaled(model.critic(hidden[1]))
        drawn = {"mean": found.mean, "logit": found.logit, "action": action, "log_prob": found.log_prob(action)}
        drawn |= {"start_mean": first.mean, "start_logit": first.logit, "value": value}
        for name, rows in drawn.items():
            kept = self._decisions.setdefault(name, rows.new_zeros(len(decides), *rows.shape[1:]))
            kept[decides] = rows

    @torch.no_grad()
    def value(self, obs: Mapping[str, np.ndarray], instructions: Sequence[str]) -> Float[Tensor, "worlds"]:
        """The value of the states after the current step, observed as `obs`; the memory states are not changed."""
        critic = self.model.critic
        hidden, _ = critic.body.head.memory.step(pool(critic.body, self._inputs(obs, instructions)), self.states[1])
        return critic.unscaled(critic(hidden))

    def _inputs(self, obs: Mapping[str, np.ndarray], instructions: Sequence[str]) -> dict[str, Any]:
        policy = self.model.policy
        inputs: dict[str, Any] = {"obs": checked_inputs(obs, policy.obs, policy.device, finite=True)}
        text = policy.instruction_text(tuple(instructions), (len(instructions),))
        return inputs if text is None else inputs | {"text": text}
