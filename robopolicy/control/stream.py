"""A policy as a stream: one observation in per control tick, one chunk of actions out."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from robopolicy.control.execution import ExecutionOptions
from robopolicy.control.inference import Stream
from robopolicy.control.limits import action_at
from robopolicy.control.profile import RobotProfile
from robopolicy.control.runtime import ExportedPolicy
from robopolicy.control.serving.mapping import KeySource, place_image
from robopolicy.types import ActionSpec, Array, Observation, Policy, Prefix


class AdaptedStream:
    """A stream whose policy reads other observations than the robot's.

    Args:
        stream: the policy's stream.
        adapt: the robot's observation -> the policy's.
    """

    def __init__(self, stream: Stream, adapt: Callable[[Observation], Observation]) -> None:
        self._stream, self._adapt = stream, adapt

    @property
    def gripper_logit(self) -> Array | None:
        """That of the policy's stream."""
        return self._stream.gripper_logit

    def __call__(self, observation: Observation, prefix: Prefix | None = None) -> Array:
        """Actions (K, width) for one observation of the robot."""
        return self._stream(self._adapt(observation), prefix)

    def reset(self) -> None:
        """Begin an episode."""
        self._stream.reset()


def qpos_in_action_columns(observation: Observation, spec: ActionSpec, profile: RobotProfile) -> Observation:
    """The observation with `qpos` in the columns of absolute joint actions, grippers included, as ALOHA records it."""
    opening_m = np.asarray(observation.obs.get("gripper", ()), np.float64)
    qpos = action_at(profile, spec, np.asarray(observation.obs["qpos"], np.float64), opening_m)
    return replace(observation, obs={**observation.obs, "qpos": qpos.astype(np.float32)})


def with_image_resized(observation: Observation, key: str, height: int, width: int) -> Observation:
    """The observation with one image in another size; its aspect ratio is kept, the rest is padded with black."""
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
        generator: source of noise, for a policy that draws its chunks; None: its most likely chunk.
    """

    def __init__(
        self, policy: Policy, batch: int | Sequence[int] = (), frame_stride: int = 1, generator: Any = None
    ) -> None:
        self.policy, self.batch, self.frame_stride, self.generator = policy, batch, frame_stride, generator
        self.gripper_logit: Array | None = None
        """(*B, K, G) of the last prediction, label 1 where positive; None where the policy gives none."""
        self.reset()

    def __call__(self, observation: Observation | Mapping[str, Any], prefix: Prefix | None = None) -> Array:
        """Actions (*B, K, width) from this frame on; action 0 belongs to the frame's own time.

        Args:
            observation: the newest frame.
            prefix: the plan from the frame's own time on, for a policy that continues it.
        """
        turn = self._ticks % self.frame_stride
        self._ticks += 1
        with torch.no_grad():
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
    """The generator of a `PolicyStream`: of the policy's own kind, or None where chunks are not drawn."""
    if not execution.sample:
        return None
    if isinstance(policy, ExportedPolicy):
        return np.random.default_rng(seed)
    return torch.Generator(getattr(policy, "device", torch.device("cpu"))).manual_seed(seed)
