"""Runs a policy in closed loop: one object holds its memory and plan and handles resets, for one robot or many worlds."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch

from robopolicy.components import require
from robopolicy.control.execution import ExecutionOptions, execution_from, require_supported
from robopolicy.control.executor import ChunkExecutor
from robopolicy.control.stream import PolicyStream, noise_for
from robopolicy.types import Array, Observation, Policy, PolicySpec, Prefix


class Runner:
    """A policy for a control loop that you write: one observation in, one action out, at every control step.

        runner = robopolicy.Runner(robopolicy.load_policy("runs/push"))
        while not done:
            action = runner.act({"state": obs})
        runner.reset()

    Args:
        policy: what `robopolicy.load_policy` returns, or an exported policy.
        batch: leading axes of the observations: () for one robot, or a number of environments.
        control_dt: duration of one control step [s]; each call of `act` counts as one step, however much time has passed.
        execution: how chunks become actions, such as `replan_every`; None: the options stored with the policy.

    Raises:
        ConfigError: the policy does not support these options.
    """

    def __init__(
        self,
        policy: Policy,
        *,
        batch: int | Sequence[int] = (),
        control_dt: float = 0.05,
        execution: ExecutionOptions | None = None,
    ) -> None:
        execution = execution or execution_from(policy.spec.execution)
        self.batch = (batch,) if isinstance(batch, int) else tuple(batch)
        stride, generator = policy.spec.frame_stride, noise_for(policy, execution)
        self.stream = PolicyStream(policy, batch=batch, frame_stride=stride, generator=generator)
        self.execution = SteppedExecution(policy.spec, control_dt, execution, batch)
        self._device = getattr(policy, "device", torch.device("cpu"))

    def act(self, obs: Mapping[str, Array], instruction: str | Sequence[str | None] | None = None) -> np.ndarray:
        """The action (*B, width) for this control step, in the demos' columns and units.

        Args:
            obs: key -> value (*B, ...) in the demos' units; keys that the policy does not read are ignored.
            instruction: one for the whole batch, or one for each entry.

        Raises:
            KeyError: a camera or key is missing.
            ValueError: a shape or type differs from that in training.
        """

        def infer(now_s: float, prefix: Prefix | None) -> tuple[torch.Tensor, torch.Tensor | None]:
            chunk = self.stream(Observation(obs, instruction=instruction, stamp_s=now_s), prefix)
            return torch.as_tensor(chunk), self.stream.gripper_logit

        with torch.inference_mode():
            return self.execution.action(infer).cpu().numpy()

    def reset(self, done: Array | None = None) -> None:
        """Clear the memory and the plan where `done` (*B) is True; None: everywhere. The next observation begins an episode."""
        if done is None:
            self.stream.reset()
            self.execution.reset()
            return
        mask = torch.as_tensor(np.asarray(done)).to(self._device)
        self.stream.reset(mask)
        self.execution.reset(mask)


class SteppedExecution:
    """A `ChunkExecutor` on a simulated clock: one control step per `action`; inference takes a fixed number of steps (>= 0).

    Args:
        spec: the policy's specification.
        control_dt: duration of one control step [s].
        execution: how chunks become actions.
        batch: leading axes of the chunks.

    Raises:
        ConfigError: the policy does not support these options, or the simulated latency is as long as a chunk.
    """

    def __init__(
        self, spec: PolicySpec, control_dt: float, execution: ExecutionOptions, batch: int | Sequence[int] = ()
    ) -> None:
        require_supported(spec, execution, control_dt)
        self.latency = execution.simulated_latency_steps
        require(
            self.latency < spec.chunk,
            f"--execution.simulated_latency_steps {self.latency}: the policy's chunks have {spec.chunk} actions; expected "
            f"0 .. {spec.chunk - 1}",
        )
        self.control_dt = control_dt
        self.executor = ChunkExecutor(spec.chunk, control_dt, execution, batch=batch, action_spec=spec.action)
        self.reset()

    def action(self, infer: Callable[[float, Prefix | None], tuple[torch.Tensor, torch.Tensor | None]]) -> torch.Tensor:
        """The action (*B, width) for the next control step.

        With a simulated latency the robot rests in the first steps of an episode, like a real robot waiting for its policy.

        Args:
            infer: function (time of this step [s], planned actions from that time) -> (chunk (*B, K, width), gripper logits).
        """
        step, now_s = self._step, self._step * self.control_dt
        self._step += 1
        self._deliver(step)  # before inference, so that the prefix contains the chunk that arrives now
        chunk, logit = infer(now_s, self.executor.prefix(now_s))
        self._pending.append((step, chunk, logit))
        self._deliver(step)  # again: without latency the new chunk is used at once
        if step < self.latency:  # no chunk has arrived yet; the executor rejects a chunk of NaN, so all episodes rest
            self.executor.add(torch.full_like(chunk, torch.nan), now_s, gripper_logit=logit)
        return self.executor.action(now_s)

    def reset(self, done: torch.Tensor | None = None) -> None:
        """Drop the plans and the pending chunks where `done` (*B) is True; None: everywhere."""
        self.executor.reset(done)
        if done is None:
            self._step = 0
            self._pending: list[tuple[int, torch.Tensor, torch.Tensor | None]] = []
            """(step of the observation, chunk, gripper logits) of each inference in progress.

            A chunk for an episode that has ended is set to NaN: the executor rejects it, and the batch stays complete.
            """
            return
        over = done[..., None, None]
        self._pending = [(step, chunk.masked_fill(over, torch.nan), logit) for step, chunk, logit in self._pending]

    def _deliver(self, step: int) -> None:
        """Pass the chunks whose inference has ended by control step `step` to the executor."""
        while self._pending and self._pending[0][0] + self.latency <= step:
            observed, chunk, logit = self._pending.pop(0)
            self.executor.add(chunk, observed * self.control_dt, now_s=step * self.control_dt, gripper_logit=logit)


class PolicyActor:
    """Adapts a policy to the actor interface of a rollout.

    Args:
        policy: what `robopolicy.load_policy` returns, or an exported policy.
        num_envs: N, the number of worlds in the rollout.
        control_dt: duration of one control step [s].
        execution: how chunks become actions; None: the options stored with the policy.
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
        """Update the memory with this frame; returns (label, action), here the same array (N, width) twice."""
        if self._reset_on_instruction and self._instructions and self._instructions != list(instructions):
            self.runner.reset(np.array([new != old for new, old in zip(instructions, self._instructions, strict=True)]))
        self._instructions = list(instructions)
        action = self.runner.act(obs, tuple(instructions))
        return action, action
