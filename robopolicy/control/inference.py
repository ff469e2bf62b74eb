"""Policy inference beside the control loop: one thread observes and predicts, the control thread collects the chunks."""

import queue
import threading
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float

from robopolicy.control.cameras import CameraWatch
from robopolicy.control.robot import Robot
from robopolicy.control.timing import request_realtime
from robopolicy.types import Array, Observation, Prefix

POLICY_PRIORITY = 10
"""Real-time priority of the policy's thread, if requested."""


@dataclass(frozen=True)
class TimedChunk:
    """An action chunk, with its observation and its latency."""

    observation: Observation
    actions: Float[torch.Tensor, "chunk width"]
    """Action rows in the demos' units and columns; action k belongs to the observation's time + k control steps."""
    latency_s: float
    """Time from the request to the chunk [s]."""
    gripper_logit: Float[torch.Tensor, "chunk gripper"] | None = None
    """None if the policy has no gripper logits."""

    def mistimed(self, now_s: float, ahead_s: float, old_s: float) -> str | None:
        """Describe a wrong time stamp: the observation is in the future, or was already old when it was taken; None if neither.

        Args:
            now_s: time on the loop's clock [s].
            ahead_s: largest lead over `now_s` [s].
            old_s: largest age when the observation was taken [s].
        """
        late_s = now_s - self.observation.stamp_s
        if not -late_s <= ahead_s:  # nan too
            return f"an observation is stamped {-late_s:.3g} s in the future; stamp observations with the loop's clock"
        if (before_s := late_s - self.latency_s) > old_s:
            return f"an observation was already {before_s:.3g} s old when it was taken: a sensor or its clock is wrong"
        return None


@runtime_checkable
class Inference(Protocol):
    """Source of a control loop's chunks; no call blocks."""

    @property
    def missed(self) -> int:
        """Requests dropped because an earlier one was still in progress."""
        ...

    def request(self, t_s: float, prefix: Prefix | None = None) -> None:
        """Observe now, for the control step at t_s [s], and predict a chunk that continues the plan `prefix`."""
        ...

    def finished(self) -> list[TimedChunk]:
        """Chunks finished since the last call, oldest first. Raises what the policy or the robot raised."""
        ...

    def reset(self) -> None:
        """Begin an episode with an empty memory; drop a chunk that is still in progress."""
        ...

    def close(self) -> None:
        """Stop inferring."""
        ...


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


class ThreadedInference:
    """Observes `robot` and runs `stream` in a separate thread.

    Each requested control step is one frame of the policy's memory. A request that arrives before the last one has
    finished is dropped and counted in `missed`; the memory then lacks that frame.

    Args:
        robot: source of the observations.
        stream: a `PolicyStream` without batch axes, or a `ServedStream`.
        instruction: replaces the instruction of the observations; None: keep theirs.
        cameras: keys of the images that are checked for a frozen camera; None: all of them.
        priority: request real-time priority, below the control loop's. A policy thread that is preempted while it holds
            the interpreter lock would delay the commands.
    """

    def __init__(
        self,
        robot: Robot,
        stream: "Stream",
        instruction: str | None = None,
        *,
        cameras: Collection[str] | None = None,
        priority: bool = False,
    ) -> None:
        self._observer = _Observer(robot, stream, instruction, cameras)
        self.robot, self.priority, self.missed = robot, priority, 0
        self._requests: queue.SimpleQueue[tuple[int, Prefix | None] | None] = queue.SimpleQueue()
        self._finished: queue.SimpleQueue[tuple[int, TimedChunk | Exception]] = queue.SimpleQueue()
        self._episode = 0
        self._busy = threading.Event()
        self._thread = threading.Thread(target=self._run, name="policy", daemon=True)
        self._thread.start()

    def request(self, t_s: float, prefix: Prefix | None = None) -> None:
        """Start an observation and a prediction, unless the last request is still in progress."""
        if self._busy.is_set():
            self.missed += 1
        else:
            self._busy.set()
            self._requests.put((self._episode, prefix))

    def finished(self) -> list[TimedChunk]:
        """Chunks finished since the last call, oldest first."""
        finished = []
        while not self._finished.empty():
            episode, result = self._finished.get()
            if episode != self._episode:
                continue
            if isinstance(result, Exception):
                raise result
            finished.append(result)
        return finished

    def reset(self) -> None:
        """Begin an episode at the next observation."""
        self._episode += 1

    def close(self) -> None:
        """End the thread; do not wait longer than a second for one that hangs."""
        self._requests.put(None)
        self._thread.join(timeout=1.0)

    def _run(self) -> None:
        episode = -1
        if self.priority:
            request_realtime(POLICY_PRIORITY)
        while (request := self._requests.get()) is not None:
            requested, prefix = request
            try:
                if requested != episode:
                    episode = requested
                    self._observer.reset()
                began_s = time.perf_counter()
                chunk = self._observer.infer(prefix)
                self._finished.put((episode, replace(chunk, latency_s=time.perf_counter() - began_s)))
            except Exception as error:
                self._finished.put((requested, error))
            self._busy.clear()


class SteppedInference:
    """Observes `robot` and runs `stream` in the caller's thread, within `request`.

    For a robot on a simulated clock, where inference takes no time: each chunk is there before the next command.

    Args:
        robot: source of the observations.
        stream: as for `ThreadedInference`.
        instruction: as for `ThreadedInference`.
        cameras: as for `ThreadedInference`.
    """

    def __init__(
        self,
        robot: Robot,
        stream: "Stream",
        instruction: str | None = None,
        *,
        cameras: Collection[str] | None = None,
    ) -> None:
        self._observer = _Observer(robot, stream, instruction, cameras)
        self.missed = 0
        self._finished: list[TimedChunk] = []

    def request(self, t_s: float, prefix: Prefix | None = None) -> None:
        """Observe, and predict the chunk."""
        self._finished.append(self._observer.infer(prefix))

    def finished(self) -> list[TimedChunk]:
        """Chunks finished since the last call, oldest first."""
        finished, self._finished = self._finished, []
        return finished

    def reset(self) -> None:
        """Begin an episode at the next observation."""
        self._finished = []
        self._observer.reset()

    def close(self) -> None:
        """Do nothing; there is no thread."""


class _Observer:
    """Takes observations and predicts their chunks."""

    def __init__(
        self, robot: Robot, stream: "Stream", instruction: str | None, cameras: Collection[str] | None
    ) -> None:
        self._robot, self._stream, self._instruction = robot, stream, instruction
        self._watch = CameraWatch(cameras)

    def reset(self) -> None:
        """Begin an episode at the next observation."""
        self._stream.reset()
        self._watch.reset()

    def infer(self, prefix: Prefix | None) -> TimedChunk:
        """The chunk for an observation taken now; its latency is 0 until the caller measures it."""
        observation = self._robot.observe()
        self._watch.check(observation, self._robot.qpos())
        if self._instruction is not None:
            observation = replace(observation, instruction=self._instruction)
        with torch.inference_mode():
            actions = _tensor(self._stream(observation, prefix))
        logit = self._stream.gripper_logit
        return TimedChunk(observation, actions, 0.0, None if logit is None else _tensor(logit))


class ServedStream:
    """A policy behind `robopolicy serve`, driven like a `PolicyStream`.

    Args:
        client: a `robopolicy.client.PolicyClient`; its timeout bounds how long a dead server goes unnoticed.
        instruction_key: the server's name for the instruction.
        keys: observation keys to send; None: all of them.
        constants: sent with every observation.
    """

    def __init__(
        self,
        client: "PolicyServer",
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


@runtime_checkable
class PolicyServer(Protocol):
    """The part of a client that `ServedStream` needs."""

    reconnects: int
    """Connections opened after the first; each begins with an empty memory."""

    def infer(self, obs: dict[str, Any]) -> dict[str, Array]:
        """Send one observation; returns a map with `actions`."""
        ...

    def reset(self) -> None:
        """Begin an episode."""
        ...


def _tensor(actions: Array) -> torch.Tensor:
    return actions.cpu() if isinstance(actions, torch.Tensor) else torch.from_numpy(np.array(actions))
