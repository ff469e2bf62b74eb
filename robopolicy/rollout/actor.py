"""A policy in closed loop: memory, chunk execution and resets in one object, for one robot or many worlds."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch

from robopolicy.components import require
from robopolicy.control.execution import ExecutionOptions, execution_from, require_supported
from robopolicy.control.executor import ChunkExecutor
from robopolicy.control.stream import PolicyStream, noise_for
from robopolicy.types import Array, Observation, Policy, PolicySpec, Prefix


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

    Raises:
        ConfigError: the policy can't be executed this way.
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
        """The action (*B, width) of this control step, in the demos' units and columns.

        Args:
            obs: per key the policy sees (*B, ...), in the demos' units; other keys are ignored.
            instruction: one for all, or one for each entry of the batch.

        Raises:
            KeyError: a camera or key is missing.
            ValueError: a shape or type is not what the policy was trained on.
        """

        def infer(now_s: float, prefix: Prefix | None) -> tuple[torch.Tensor, torch.Tensor | None]:
            chunk = self.stream(Observation(obs, instruction=instruction, stamp_s=now_s), prefix)
            return torch.as_tensor(chunk), self.stream.gripper_logit

        with torch.inference_mode():
            return self.execution.action(infer).cpu().numpy()

    def reset(self, done: Array | None = None) -> None:
        """Clear memory and plan of the episodes where `done` (*B) is True, or of all: the next observation begins one."""
        if done is None:
            self.stream.reset()
            self.execution.reset()
            return
        mask = torch.as_tensor(np.asarray(done)).to(self._device)
        self.stream.reset(mask)
        self.execution.reset(mask)


class SteppedExecution:
    """A `ChunkExecutor` driven step by step: every call is one control step, and inference takes no time or a simulated one.

    Args:
        spec: of the policy.
        control_dt: time of one control step [s].
        execution: which action of which chunk is executed when.
        batch: leading axes of the chunks.

    Raises:
        ConfigError: the policy can't be executed this way, or the simulated latency leaves no action of a chunk.
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
        """The action (*B, width) of the next control step.

        With a simulated latency the first actions of an episode are rest, as on a robot that waits for its policy.

        Args:
            infer: the time of this step [s], and the plan from it on -> chunk (*B, K, width) and gripper logits.
        """
        step, now_s = self._step, self._step * self.control_dt
        self._step += 1
        self._deliver(step)
        chunk, logit = infer(now_s, self.executor.prefix(now_s))
        self._pending.append((step, chunk, logit))
        self._deliver(step)
        if step < self.latency:  # nothing has arrived: a chunk that is refused, so that all episodes rest
            self.executor.add(torch.full_like(chunk, torch.nan), now_s, gripper_logit=logit)
        return self.executor.action(now_s)

    def reset(self, done: torch.Tensor | None = None) -> None:
        """Forget the plans of the episodes in `done` (*B) and the inferences under way for them, or all."""
        self.executor.reset(done)
        if done is None:
            self._step = 0
            self._pending: list[tuple[int, torch.Tensor, torch.Tensor | None]] = []
            """Step of the observation, chunk and gripper logits; chunks of NaN, which are refused, for a past episode."""
            return
        over = done[..., None, None]
        self._pending = [(step, chunk.masked_fill(over, torch.nan), logit) for step, chunk, logit in self._pending]

    def _deliver(self, step: int) -> None:
        """Offer the chunks whose inference has ended by control step `step`."""
        while self._pending and self._pending[0][0] + self.latency <= step:
            observed, chunk, logit = self._pending.pop(0)
            self.executor.add(chunk, observed * self.control_dt, now_s=step * self.control_dt, gripper_logit=logit)


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
