"""A policy as a stream: one observation in per control tick, one chunk of actions out."""

from collections.abc import Mapping, Sequence
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


class ActionColumnsStream:
    """A stream that reads `qpos` in its action's columns, as ALOHA records it, on a robot that has joints and grippers apart.

    Args:
        stream: the stream.
        spec: its action columns: absolute joint positions.
        profile: the robot's.
    """

    def __init__(self, stream: Stream, spec: ActionSpec, profile: RobotProfile) -> None:
        self._stream, self._spec, self._profile = stream, spec, profile

    @property
    def gripper_logit(self) -> Array | None:
        """As of the stream."""
        return self._stream.gripper_logit

    def __call__(self, observation: Observation, prefix: Prefix | None = None) -> Array:
        """Actions (K, width) for one observation of the robot."""
        opening_m = np.asarray(observation.obs.get("gripper", ()), np.float64)
        qpos = action_at(self._profile, self._spec, np.asarray(observation.obs["qpos"], np.float64), opening_m)
        obs = {**observation.obs, "qpos": qpos.astype(np.float32)}
        return self._stream(replace(observation, obs=obs), prefix)

    def reset(self) -> None:
        """An episode begins."""
        self._stream.reset()


class ResizedStream:
    """A stream whose policy was trained on images of another size than the robot's: they keep their aspect, padded with black.

    Args:
        stream: the stream.
        sizes: height and width of the policy's images, by key.
    """

    def __init__(self, stream: Stream, sizes: Mapping[str, tuple[int, int]]) -> None:
        self._stream, self._sizes = stream, dict(sizes)

    @property
    def gripper_logit(self) -> Array | None:
        """As of the stream."""
        return self._stream.gripper_logit

    def __call__(self, observation: Observation, prefix: Prefix | None = None) -> Array:
        """Actions (K, width) for one observation of the robot."""
        obs = dict(observation.obs)
        for key, (height, width) in self._sizes.items():
            obs[key] = place_image(np.asarray(obs[key]), height, width, KeySource((key,)))
        return self._stream(replace(observation, obs=obs), prefix)

    def reset(self) -> None:
        """An episode begins."""
        self._stream.reset()


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
        """Forget the past of the episodes in `done` (bool, *B), or of all."""
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
