"""A policy that acts in many worlds at once, through the stream and executor that also run on a robot."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from robopolicy.config import ExecutionConfig
from robopolicy.control.executor import ChunkExecutor
from robopolicy.control.stream import PolicyStream
from robopolicy.types import Observation


class PolicyActor:
    """A policy behind the stream and executor that also run on a robot.

    Args:
        policy: what `robopolicy.load_policy` returns, or an exported policy.
        num_envs: N, the worlds of the rollout.
        control_dt: time of one control step [s].
        execution: which action of which chunk is executed when.
    """

    def __init__(self, policy: Any, num_envs: int, control_dt: float, execution: ExecutionConfig) -> None:
        self.stream = PolicyStream(policy, batch=num_envs, frame_stride=_frame_stride(policy))
        self.executor = ChunkExecutor.from_config(execution, policy.action_spec, policy.chunk, control_dt, num_envs)
        self.control_dt = control_dt
        self.step = 0
        self._device = getattr(policy, "device", torch.device("cpu"))

    def reset(self, done: np.ndarray, seeds: Sequence[int]) -> None:
        """Clear the memory and the plan of the worlds where a new episode begins."""
        mask = torch.from_numpy(np.asarray(done)).to(self._device)
        self.stream.reset(mask)
        self.executor.reset(mask)

    def act(self, obs: Mapping[str, np.ndarray], instructions: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Feed every frame to the memory, and take the present action (N, width) from the chunks."""
        now_s = self.step * self.control_dt
        self.step += 1
        with torch.inference_mode():
            chunk = self.stream(Observation(obs, instruction=tuple(instructions), stamp_s=now_s))
            self.executor.add(torch.as_tensor(chunk), now_s, gripper_logit=self.stream.gripper_logit)
            action = self.executor.action(now_s).cpu().numpy()
        return action, action


def _frame_stride(policy: Any) -> int:
    """Control steps between two frames of the policy's memory, whether it is trained here or exported."""
    return policy.spec.frame_stride if hasattr(policy, "spec") else policy.config.data.frame_stride
