"""A policy as a stream: one observation in per control tick, one chunk of actions out; in this process or on a server."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol, runtime_checkable

import numpy as np

from robopolicy.arrays import torch_mode
from robopolicy.components import require
from robopolicy.control.execution import ExecutionOptions
from robopolicy.control.profile import RobotProfile
from robopolicy.control.runtime import ExportedPolicy
from robopolicy.control.targets import action_at
from robopolicy.types import ActionSpec, Array, Observation, Policy, Prefix


@runtime_checkable
class Stream(Protocol):
    """A `PolicyStream` without batch axes, or a `ServedStream`."""

    gripper_logit: Array | None

    def __call__(self, observation: Observation, prefix: Prefix | None = None) -> Array:
        """Actions (K, width) for one observation."""
        ...

    def reset(self) -> None:
        """Begin an episode."""
        ...


def qpos_in_action_columns(observation: Observation, spec: ActionSpec, profile: RobotProfile) -> Observation:
    """The observation with `qpos` in the columns of absolute joint actions, grippers included, as ALOHA records it."""
    opening_m = np.asarray(observation.obs.get("gripper", ()), np.float64)
    qpos = action_at(profile, spec, np.asarray(observation.obs["qpos"], np.float64), opening_m)
    return replace(observation, obs={**observation.obs, "qpos": qpos.astype(np.float32)})


def with_image_resized(observation: Observation, key: str, height: int, width: int) -> Observation:
    """The observation with one image in another size; its aspect ratio is kept, the rest is padded with black."""
    from robopolicy.control.serving.mapping import KeySource, place_image

    image = place_image(np.asarray(observation.obs[key]), height, width, KeySource((key,)))
    return replace(observation, obs={**observation.obs, key: image})


class PolicyStream:
    """Owns the streaming state of a policy: the memory of each episode of the batch.

    A policy trained on every s-th frame (`frame_stride`) still predicts at every tick: s states take turns, so that each
    prediction remembers the frames s, 2s, ... ticks before it, as in training.

    Args:
        policy: any `Policy`.
        batch: leading axes of the observations: () for one robot, or a number of worlds.
        frame_stride: ticks between two frames of the memory.
        generator: source of noise, for a policy that samples its chunks; None: use the most likely chunk.
    """

    def __init__(
        self, policy: Policy, batch: int | Sequence[int] = (), frame_stride: int = 1, generator: Any = None
    ) -> None:
        self.policy, self.batch, self.frame_stride, self.generator = policy, batch, frame_stride, generator
        self.gripper_logit: Array | None = None
        """(*B, K, G) of the last prediction, label 1 where positive; None if the policy outputs no gripper logits."""
        self.reset()

    def __call__(self, observation: Observation | Mapping[str, Any], prefix: Prefix | None = None) -> Array:
        """Actions (*B, K, width) from this frame on; action 0 belongs to the frame's own time.

        Args:
            observation: the newest frame.
            prefix: the plan from the frame's own time on, for a policy that continues it.
        """
        turn = self._ticks % self.frame_stride
        self._ticks += 1
        with torch_mode("no_grad"):
            options = {"generator": self.generator, "prefix": prefix}
            given = {name: value for name, value in options.items() if value is not None}
            prediction, self._states[turn] = self.policy.predict(observation, self._states[turn], **given)
        self.gripper_logit = prediction.gripper_logit
        return prediction.actions

    def reset(self, done: Array | None = None) -> None:
        """Clear the memory of the episodes in `done` (bool, *B), or of all."""
        if done is None:
            self._states = [self.policy.initial_state(self.batch) for _ in range(self.frame_stride)]
            self._ticks = 0
        else:
            self._states = [state.reset(done) for state in self._states]


def noise_for(policy: Policy, execution: ExecutionOptions, seed: int = 0) -> Any:
    """The noise generator of a `PolicyStream` (NumPy for an exported policy, else torch); None if chunks are not sampled.

    Raises:
        ConfigError: an exported policy would have to choose one of several chunks.
    """
    if not execution.sample:
        return None
    if isinstance(policy, ExportedPolicy):
        require(
            execution.best_of == 1,
            f"--execution.best_of {execution.best_of}: an exported policy draws one chunk at a time; use the run folder",
        )
        return np.random.default_rng(seed)
    import torch

    return torch.Generator(getattr(policy, "device", torch.device("cpu"))).manual_seed(seed)


class ServedStream:
    """A policy behind `robopolicy serve`, called like a `PolicyStream`.

    Args:
        client: a `robopolicy.client.PolicyClient`; its timeout bounds how long a dead server goes unnoticed.
        instruction_key: the server's name for the instruction.
        keys: observation keys to send; None: all of them.
        constants: sent with every observation.
    """

    def __init__(
        self,
        client: Any,
        instruction_key: str = "prompt",
        keys: Collection[str] | None = None,
        constants: Mapping[str, Any] | None = None,
    ) -> None:
        self.client, self.instruction_key, self.keys = client, instruction_key, keys
        self.constants = dict(constants or {})
        self.gripper_logit: Array | None = None
        """(K, G) of the last reply; None if the server sends none."""
        self._connections: int | None = None

    def __call__(self, observation: Observation, prefix: Prefix | None = None) -> Array:
        """Actions (K, width) for one observation.

        Raises:
            ConnectionError: the connection was lost in the middle of an episode, and with it the policy's memory.
        """
        shown = {key: value for key, value in observation.obs.items() if self.keys is None or key in self.keys}
        message = shown | self.constants
        if observation.instruction is not None:
            message[self.instruction_key] = observation.instruction
        reply = self.client.infer(message)
        if self._connections is not None and self.client.reconnects != self._connections:
            raise ConnectionError(
                "the connection to the policy server was lost during the episode, and the policy's memory with it"
            )
        self._connections = self.client.reconnects
        self.gripper_logit = reply.get("gripper_logit")
        return reply["actions"]

    def reset(self) -> None:
        """Begin an episode."""
        self.client.reset()
        self._connections = None
