"""Closed-loop episodes on a device: physics, images, policy and bookkeeping for thousands of worlds.

It runs the same episodes as `rollout.run_episodes`: every seed to its own end, the next seed in the first free world. But
no step waits for the device: outcomes are kept there, and read every few steps.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from robopolicy.control.execution import ExecutionOptions, execution_from
from robopolicy.control.stream import noise_for
from robopolicy.model.inputs import checked_inputs
from robopolicy.model.policy import ChunkPolicy
from robopolicy.model.streaming import MemoryState
from robopolicy.rollout.actor import SteppedExecution
from robopolicy.rollout.episodes import Episode, Step, Timing, episodes_of
from robopolicy.sim.capture import Captured
from robopolicy.sim.env import RobotVectorEnv
from robopolicy.sim.episodes import turns
from robopolicy.types import Chunk, Prefix

LOOK_EVERY = 32
"""Steps between two synchronizations with a GPU."""
NOT_RECORDED = np.zeros(0)


@runtime_checkable
class DeviceActor(Protocol):
    """Computes the actions of all worlds at every control step, on the worlds' device."""

    def reset(self, done: Tensor, rows: Tensor, /) -> None:
        """Reset the worlds where `done` (N,) is True; the episode with seed number `rows` (N,) begins there."""
        ...

    def act(self, obs: Mapping[str, Tensor], instruction_id: Tensor, /) -> tuple[Tensor, Tensor]:
        """The label and the action to execute, each (N, 7) in [-1, 1]."""
        ...


class DevicePolicyActor:
    """A policy behind the executor that also runs on a robot, its tick captured as a CUDA graph where there is one.

    Args:
        policy: On the device of the worlds.
        env: The worlds.
        execution: Which action of which chunk is executed when; None: as the policy was trained.
    """

    def __init__(self, policy: ChunkPolicy, env: RobotVectorEnv, execution: ExecutionOptions | None = None) -> None:
        execution = execution or execution_from(policy.spec.execution)
        self.policy, self._sentences = policy, env.sentences.texts
        self._execution = SteppedExecution(policy.spec, env.control_dt, execution, env.num_envs)
        self._generator = noise_for(policy, execution)
        stride = policy.spec.frame_stride
        self._states = [policy.initial_state(env.num_envs) for _ in range(stride)]
        self._ticks = [Captured(self._one_tick) for _ in range(stride)]
        self._texts: Tensor | None = None
        self._tick = 0

    def reset(self, done: Bool[Tensor, " worlds"], rows: Int[Tensor, " worlds"]) -> None:
        """Reset the worlds where a new episode begins."""
        self._states = [state.reset(done) for state in self._states]
        self._execution.reset(done)

    def act(
        self, obs: Mapping[str, Tensor], instruction_id: Int[Tensor, " worlds"]
    ) -> tuple[Float[Tensor, "worlds 7"], Float[Tensor, "worlds 7"]]:
        """Feed each frame to the memory, and take the current action from the chunks."""
        turn = self._tick % len(self._states)
        self._tick += 1
        seen, text = checked_inputs(obs, self.policy.obs, self.policy.device), self._text(instruction_id)

        def infer(now_s: float, prefix: Prefix | None) -> tuple[Tensor, Tensor | None]:
            state = self._states[turn]
            if self._generator is not None or prefix is not None:  # neither can be an input of a captured graph
                encoding = self.policy.encode(seen, text if self.policy.text is not None else None)
                prediction, self._states[turn] = self.policy.step(encoding, state, self._generator, prefix)
                return torch.as_tensor(prediction.actions), prediction.gripper_logit
            arm, logit, age, *tensors = self._ticks[turn](*seen.values(), text, state.age, *state.tensors)
            self._states[turn] = MemoryState(state.history, age, tuple(tensors))
            return self.policy.action_normalizer.to_rows(Chunk(arm, logit)), logit

        with torch.no_grad():
            action = self._execution.action(infer)
        return action, action

    def _one_tick(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """One tick with plain tensors in and out."""
        count, history = len(self.policy.obs), self._states[0].history
        obs = dict(zip(self.policy.obs, tensors[:count], strict=True))
        text, age, *memory = tensors[count:]
        encoding = self.policy.encode(obs, text if self.policy.text is not None else None)
        chunk, after = self.policy.head.step(
            encoding.tokens, MemoryState(history, age, tuple(memory)), encoding.token_valid
        )
        return torch.as_tensor(chunk.arm), torch.as_tensor(chunk.gripper_logit), after.age, *after.tensors

    def _text(self, instruction_id: Tensor) -> Tensor:
        """The text model's input for each world's instruction; the sentences are copied to the device once."""
        if self.policy.text is None:
            return instruction_id
        texts = self._texts
        if texts is None or len(texts) < len(self._sentences):
            texts = self._texts = self.policy.text.prepare(self._sentences).to(instruction_id.device)
        return texts[instruction_id]


def run_episodes_on_device(
    env: RobotVectorEnv,
    actor: DeviceActor,
    seeds: Sequence[int],
    *,
    record: bool = False,
    timing: Timing | None = None,
    look_every: int | None = None,
) -> Iterator[Episode]:
    """Run one episode per seed, as many at once as `env` has worlds, and yield them once their end has been read.

    Args:
        env: Worlds on a device, autoreset disabled; no more of them than seeds.
        actor: Decides the actions.
        seeds: One episode each; an episode depends on its seed alone.
        record: Keep each episode's observations, states and actions as a `Demo`.
        timing: Where to add up the time of inference and physics.
        look_every: Steps between two reads from the device; None: 32 on a GPU, 1 on the CPU, where a read costs nothing.
    """
    steps = _steps(env, actor, seeds, record, timing or Timing(), look_every)
    return episodes_of(env, steps, len(seeds), record)


def _steps(
    env: RobotVectorEnv, actor: DeviceActor, seeds: Sequence[int], record: bool, timing: Timing, look_every: int | None
) -> Iterator[Step]:
    """Every control step of all worlds on the host, several at a time; observations and actions only if `record`."""
    device = env.physics.qpos.device
    look_every = look_every or (1 if device.type == "cpu" else LOOK_EVERY)
    ledger, watch, left = _Ledger(env, actor, seeds), Stopwatch(device), len(seeds)
    while left > 0:
        frames = [ledger.tick(record, watch) for _ in range(look_every)]
        seen = {key: torch.stack([frame[key] for frame in frames]).cpu().numpy() for key in frames[0]}
        texts = np.array(env.sentences.texts, dtype=object)
        for place in range(look_every):
            now = {key: values[place] for key, values in seen.items()}
            left -= int(now["ended"].sum())
            timing.env_steps += int(now["running"].sum())
            yield Step(
                obs={key.removeprefix("obs/"): values for key, values in now.items() if key.startswith("obs/")},
                states=now.get("states"),
                instructions=texts[now["instruction_id"]].tolist(),
                label=now.get("actions", NOT_RECORDED),
                action=now.get("executed_actions", NOT_RECORDED),
                reward=now["success"].astype(np.float32),
                terminated=now["ended"],
                truncated=np.zeros_like(now["ended"]),
                running=now["running"],
                next_obs={},
                info=now,
                seeds=np.asarray(seeds)[now["row"]],
                steps=now["steps"],
            )
    inference_s, physics_s = watch.totals_s()
    timing.inference_s += inference_s
    timing.physics_s += physics_s


class _Ledger:
    """The episode that each world runs, in tensors that are updated in place."""

    def __init__(self, env: RobotVectorEnv, actor: DeviceActor, seeds: Sequence[int]) -> None:
        self.env, self.actor, self.count = env, actor, len(seeds)
        self.episodes = env.draw(seeds)
        device = env.physics.qpos.device
        self.row = torch.arange(env.num_envs, device=device)
        self.running = torch.ones(env.num_envs, dtype=torch.bool, device=device)
        self.taken = torch.full((1,), env.num_envs, device=device)
        env.set_up(self.running, self.episodes, self.row)
        actor.reset(self.running, self.row)
        self.obs = env.observe()

    def tick(self, record: bool, watch: "Stopwatch") -> dict[str, Tensor]:
        """One control step of all worlds: the outcome of each, with its observation and actions if `record`."""
        env, obs, instruction_id = self.env, self.obs, self.env.instruction_id.clone()
        states = env.states() if record else None
        watch.lap()
        label, action = self.actor.act(obs, instruction_id)
        watch.lap()
        decided = env.act(action)
        ended = (decided | env.out_of_time) & self.running
        frame = {
            "row": self.row.clone(),
            "running": self.running.clone(),
            "ended": ended,
            "instruction_id": instruction_id,
            "success": env.succeeded.clone(),
            "steps": env.state.step.clone(),
            "solved": env.solved.clone(),
            "limited": env.limited.clone(),
            "fault": env.fault.clone(),
        }
        if states is not None:
            frame |= {f"obs/{key}": values for key, values in obs.items()}
            frame |= {"states": states, "actions": label, "executed_actions": action}
        self._go_on(ended)
        self.obs = env.observe()
        watch.lap()
        return frame

    def _go_on(self, ended: Bool[Tensor, " worlds"]) -> None:
        """Start the next episode in each world whose episode has ended; once all have begun, such a world idles."""
        turn = turns(ended, self.taken)
        begins = ended & (turn < self.count)
        self.taken += ended.sum()
        self.running &= ~ended | begins
        self.row.copy_(torch.where(begins, turn, self.row))
        self.env.set_up(begins, self.episodes, turn)
        self.actor.reset(begins, self.row)


class Stopwatch:
    """Time spent in inference and in physics, measured without synchronizing each step.

    Args:
        device: Where the work is done.
    """

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._laps: list[Any] = []

    def lap(self) -> None:
        """Called before the policy, after it, and at the step's end."""
        if self._on_gpu:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self._laps.append(event)
        else:
            self._laps.append(time.perf_counter())

    def totals_s(self) -> tuple[float, float]:
        """Times of inference and physics [s]; synchronizes with a GPU."""
        if self._on_gpu:
            torch.cuda.synchronize()
        between = [self._between(*pair) for pair in zip(self._laps, self._laps[1:], strict=False)]
        return sum(between[0::3]), sum(between[1::3])

    def _between(self, earlier: Any, later: Any) -> float:
        return earlier.elapsed_time(later) / 1000 if self._on_gpu else later - earlier
