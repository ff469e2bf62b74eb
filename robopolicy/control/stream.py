"""A policy as a stream: one observation in per control tick, one chunk of actions out."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import torch

from robopolicy.types import ActionSpec, Array, Chunk, Observation


@runtime_checkable
class Policy(Protocol):
    """What the stream drives: a `ChunkPolicy`, or an exported one replayed by onnxruntime."""

    action_spec: ActionSpec
    chunk: int
    """K, actions predicted per frame."""

    def initial_state(self, batch: int | Sequence[int]) -> Any:
        """The state before the first frame; it has `reset(done) -> state`."""
        ...

    def act(self, observation: Observation | Mapping[str, Any], state: Any) -> tuple[Array, Any]:
        """One frame joins the state: actions (*B, K, width) in the demos' units and columns, and the new state."""
        ...


@runtime_checkable
class LogitPolicy(Policy, Protocol):
    """A policy that also tells how sure it is of its gripper."""

    action_normalizer: Any
    """Its `to_rows(chunk)` gives what `act` gives."""

    def predict(self, observation: Observation | Mapping[str, Any], state: Any) -> tuple[Chunk, Any]:
        """As `act`, but the decoded chunk with the gripper's logits."""
        ...


@torch.no_grad()
def answer(policy: Policy, observation: Observation | Mapping[str, Any], state: Any) -> tuple[Array, Array | None, Any]:
    """Actions (*B, K, width) as `act` gives them, the gripper's logits (*B, K, G) where the policy tells, the new state."""
    if isinstance(policy, LogitPolicy):
        chunk, state = policy.predict(observation, state)
        return policy.action_normalizer.to_rows(chunk), chunk.gripper_logit, state
    actions, state = policy.act(observation, state)
    return actions, None, state


class PolicyStream:
    """Owns the streaming state of a policy: the memory of each episode of the batch.

    A policy trained on every s-th frame (`frame_stride`) is still asked at every tick: s states take turns, so that
    each answer remembers the frames s, 2s, ... ticks before it, as in training.

    Args:
        policy: any `Policy`.
        batch: leading axes of the observations: () for one robot, or a number of worlds.
        frame_stride: ticks between two frames of the memory.
    """

    def __init__(self, policy: Policy, batch: int | Sequence[int] = (), frame_stride: int = 1) -> None:
        self.policy, self.batch, self.frame_stride = policy, batch, frame_stride
        self.gripper_logit: Array | None = None
        """(*B, K, G) of the last answer, positive for label 1; None where the policy doesn't tell."""
        self.reset()

    def __call__(self, observation: Observation | Mapping[str, Any]) -> Array:
        """Actions (*B, K, width) from this frame on; action 0 belongs to the frame's own time."""
        turn = self._ticks % self.frame_stride
        self._ticks += 1
        actions, self.gripper_logit, self._states[turn] = answer(self.policy, observation, self._states[turn])
        return actions

    def reset(self, done: Array | None = None) -> None:
        """Forget the past of the episodes in `done` (bool, *B), or of all."""
        if done is None:
            self._states = [self.policy.initial_state(self.batch) for _ in range(self.frame_stride)]
            self._ticks = 0
        else:
            self._states = [state.reset(done) for state in self._states]
