"""A policy as a stream: one observation in per control tick, one chunk of actions out."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from robopolicy.types import ActionSpec, Array, Observation


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
        self.policy = policy
        self.batch = batch
        self.frame_stride = frame_stride
        self.reset()

    def __call__(self, observation: Observation | Mapping[str, Any]) -> Array:
        """Actions (*B, K, width) from this frame on; action 0 belongs to the frame's own time, `stamp_s`."""
        turn = self._ticks % self.frame_stride
        actions, self._states[turn] = self.policy.act(observation, self._states[turn])
        self._ticks += 1
        self.stamp_s = observation.stamp_s if isinstance(observation, Observation) else None
        return actions

    def reset(self, done: Array | None = None) -> None:
        """Forget the past of the episodes in `done` (bool, *B), or of all."""
        if done is None:
            self._states = [self.policy.initial_state(self.batch) for _ in range(self.frame_stride)]
            self._ticks = 0
            self.stamp_s: float | None = None
        else:
            self._states = [state.reset(done) for state in self._states]
