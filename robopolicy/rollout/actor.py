"""A policy in closed loop: memory, chunk execution and resets in one object, for one robot or many worlds."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from robopolicy.control.execution import ExecutionOptions, execution_from
from robopolicy.control.executor import ChunkExecutor
from robopolicy.control.stream import PolicyStream
from robopolicy.types import Array, Observation, Policy


class Runner:
    """A policy in a loop of your own: one observation in, one action out, at every control step.

        runner = robopolicy.Runner(robopolicy.load_policy("runs/push"))
        while not done:
            action = runner.act({"state": obs})
        runner.reset()

    Args:
        policy: what `robopolicy.load_policy` returns, or an exported policy.
        batch: leading axes of the observations: () for one robot, or a number of environments.
        control_dt: time of one control step [s]; every call is one step, whatever time has passed.
        execution: which action of which chunk is executed when; None: as the policy was trained.
    """

    def __init__(
        self,
        policy: Policy,
        *,
        batch: int | Sequence[int] = (),
        control_dt: float = 0.05,
        execution: ExecutionOptions | None = None,
    ) -> None:
        execution = execution or own_execution(policy)
        self.batch = (batch,) if isinstance(batch, int) else tuple(batch)
        self.stream = PolicyStream(policy, batch=batch, frame_stride=policy.spec.frame_stride)
        self.executor = ChunkExecutor(
            policy.spec.chunk, control_dt, execution, batch=batch, action_spec=policy.spec.action
        )
        self.control_dt = control_dt
        self._step = 0
        self._device = getattr(policy, "device", torch.device("cpu"))

    def act(self, obs: Mapping[str, Array], instruction: str | Sequence[str | None] | None = None) -> np.ndarray:
        """The action (*B, width) of this control step, in the demos' units and columns.

        Args:
            obs: per key the policy sees (*B, ...), in the demos' units; other keys are ignored.
            instruction: one for all, or one for each entry of the batch.

        Raises:
            KeyError: a camera or key is missing.
            ValueError: a shape or type is not what the policy was trained on.
        """
        now_s = self._step * self.control_dt
        self._step += 1
        with torch.inference_mode():
            chunk = self.stream(Observation(obs, instruction=instruction, stamp_s=now_s))
            self.executor.add(torch.as_tensor(chunk), now_s, gripper_logit=self.stream.gripper_logit)
            return self.executor.action(now_s).cpu().numpy()

    def reset(self, done: Array | None = None) -> None:
        """Clear memory and plan of the episodes where `done` (*B) is True, or of all: the next observation begins one."""
        if done is None:
            self.stream.reset()
            self.executor.reset()
            self._step = 0
            return
        mask = torch.as_tensor(np.asarray(done)).to(self._device)
        self.stream.reset(mask)
        self.executor.reset(mask)


class PolicyActor:
    """A policy as the actor of a rollout.

    Args:
        policy: what `robopolicy.load_policy` returns, or an exported policy.
        num_envs: N, the worlds of the rollout.
        control_dt: time of one control step [s].
        execution: which action of which chunk is executed when; None: as the policy was trained.
        reset_on_instruction: clear a world's memory when its instruction changes within an episode.
    """

    def __init__(
        self,
        policy: Policy,
        num_envs: int,
        control_dt: float,
        execution: ExecutionOptions | None = None,
        *,
        reset_on_instruction: bool = False,
    ) -> None:
        self.runner = Runner(policy, batch=num_envs, control_dt=control_dt, execution=execution)
        self._reset_on_instruction = reset_on_instruction
        self._instructions: list[str] = []

    def reset(self, done: np.ndarray, seeds: Sequence[int]) -> None:
        """Clear the memory and the plan of the worlds where a new episode begins."""
        self.runner.reset(np.asarray(done))

    def act(self, obs: Mapping[str, np.ndarray], instructions: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Feed every frame to the memory, and take the present action (N, width) from the chunks."""
        if self._reset_on_instruction and self._instructions and self._instructions != list(instructions):
            self.runner.reset(np.array([new != old for new, old in zip(instructions, self._instructions, strict=True)]))
        self._instructions = list(instructions)
        action = self.runner.act(obs, tuple(instructions))
        return action, action


def own_execution(policy: Policy) -> ExecutionOptions:
    """The execution options that a policy was trained or exported with."""
    return execution_from(policy.spec.execution)
