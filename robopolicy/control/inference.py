"""The policy beside the control loop: one thread observes and thinks, the other collects what came of it."""

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
from robopolicy.types import Array, Observation

POLICY_PRIORITY = 10
"""Real-time priority of the policy's thread, where asked for."""


@dataclass(frozen=True)
class Thought:
    """A chunk, and what it came from."""

    observation: Observation
    actions: Float[torch.Tensor, "chunk width"]
    """In the demos' units and columns; action k belongs to the observation's time + k control steps."""
    latency_s: float
    """From the request to the chunk [s]."""
    gripper_logit: Float[torch.Tensor, "chunk gripper"] | None = None
    """Where the policy tells it."""

    def mistimed(self, now_s: float, ahead_s: float, old_s: float) -> str | None:
        """What is wrong with the observation's stamp: it is later than now, or was old before anything was thought [s]."""
        late_s = now_s - self.observation.stamp_s
        if not -late_s <= ahead_s:  # nan too
            return f"an observation is stamped {-late_s:.3g} s in the future; use the loop's clock"
        if (before_s := late_s - self.latency_s) > old_s:
            return (
                f"an observation was {before_s:.3g} s old as it was taken: a sensor stands still, or has another clock"
            )
        return None


@runtime_checkable
class Inference(Protocol):
    """Where a control loop's chunks come from; no call waits."""

    missed: int
    """Requests that came while an earlier one was still being worked on, and were dropped."""

    def request(self, t_s: float) -> None:
        """Observe now, for the control step at t_s [s], and think."""
        ...

    def thoughts(self) -> list[Thought]:
        """What has been finished since the last call, oldest first. Raises what the policy or the robot raised."""
        ...

    def reset(self) -> None:
        """Forget the past: an episode begins. What is still being thought is dropped."""
        ...

    def close(self) -> None:
        """End."""
        ...


@runtime_checkable
class Stream(Protocol):
    """A `PolicyStream` without batch axes, or a `ServedStream`."""

    gripper_logit: Array | None

    def __call__(self, observation: Observation) -> Array:
        """Actions (K, width) for one observation."""
        ...

    def reset(self) -> None:
        """An episode begins."""
        ...


class ThreadedInference:
    """Observes `robot` and asks `stream` in a thread of its own.

    Each requested control step is one frame of the policy's memory. A request that comes before the last one is
    finished is dropped and counted: the memory then misses that frame.

    Args:
        robot: what is observed.
        stream: a `PolicyStream` without batch axes, or a `ServedStream`.
        instruction: what the robot is told to do, where its observation doesn't say.
        cameras: keys of the pictures that must not freeze; None: all of them.
        priority: ask for real-time priority, below the control loop's: a thread that is put aside while it holds the
            interpreter holds up the commands.
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
        self._thinker = _Thinker(robot, stream, instruction, cameras)
        self.robot, self.priority, self.missed = robot, priority, 0
        self._requests: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        self._finished: queue.SimpleQueue[tuple[int, Thought | Exception]] = queue.SimpleQueue()
        self._episode = 0
        self._busy = threading.Event()
        self._thread = threading.Thread(target=self._think, name="policy", daemon=True)
        self._thread.start()

    def request(self, t_s: float) -> None:
        """Observe and think, unless the thread is still at the last request."""
        if self._busy.is_set():
            self.missed += 1
        else:
            self._busy.set()
            self._requests.put(self._episode)

    def thoughts(self) -> list[Thought]:
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
        """The next observation begins an episode."""
        self._episode += 1

    def close(self) -> None:
        """End the thread; one that hangs is left behind."""
        self._requests.put(None)
        self._thread.join(timeout=1.0)

    def _think(self) -> None:
        episode = -1
        if self.priority:
            request_realtime(POLICY_PRIORITY)
        while (requested := self._requests.get()) is not None:
            try:
                if requested != episode:
                    episode = requested
                    self._thinker.reset()
                began_s = time.perf_counter()
                thought = self._thinker.think()
                self._finished.put((episode, replace(thought, latency_s=time.perf_counter() - began_s)))
            except Exception as error:
                self._finished.put((requested, error))
            self._busy.clear()


class SteppedInference:
    """Observes `robot` and asks `stream` in the caller's thread, within the request.

    For a robot on a simulated clock, on which inference takes no time: every request is answered before the next command.

    Args:
        robot: what is observed.
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
        self._thinker = _Thinker(robot, stream, instruction, cameras)
        self.missed = 0
        self._finished: list[Thought] = []

    def request(self, t_s: float) -> None:
        """Observe and infer."""
        self._finished.append(self._thinker.think())

    def thoughts(self) -> list[Thought]:
        """Chunks finished since the last call, oldest first."""
        finished, self._finished = self._finished, []
        return finished

    def reset(self) -> None:
        """The next observation begins an episode."""
        self._finished = []
        self._thinker.reset()

    def close(self) -> None:
        """Nothing is left to end."""


class _Thinker:
    """One observation and the chunk inferred from it."""

    def __init__(
        self, robot: Robot, stream: "Stream", instruction: str | None, cameras: Collection[str] | None
    ) -> None:
        self._robot, self._stream, self._instruction = robot, stream, instruction
        self._watch = CameraWatch(cameras)

    def reset(self) -> None:
        """The next observation begins an episode."""
        self._stream.reset()
        self._watch.reset()

    def think(self) -> Thought:
        """The chunk of an observation taken now; its latency is left at 0."""
        observation = self._robot.observe()
        self._watch.check(observation, self._robot.qpos())
        if self._instruction is not None:
            observation = replace(observation, instruction=self._instruction)
        with torch.inference_mode():
            actions = _tensor(self._stream(observation))
        logit = self._stream.gripper_logit
        return Thought(observation, actions, 0.0, None if logit is None else _tensor(logit))


class ServedStream:
    """A policy behind `robopolicy serve`, driven like a `PolicyStream`.

    Args:
        client: a `robopolicy.client.PolicyClient`; its timeout bounds how long a dead server goes unnoticed.
        instruction_key: the server's name of the instruction.
        keys: what the policy looks at; None sends all that the robot shows.
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
        """(K, G) of the last answer, where the server tells it."""
        self._connections: int | None = None

    def __call__(self, observation: Observation) -> Array:
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
            raise ConnectionError("the connection to the policy was lost in mid-episode, and its memory with it")
        self._connections = self.client.reconnects
        self.gripper_logit = reply.get("gripper_logit")
        return reply["actions"]

    def reset(self) -> None:
        """An episode begins."""
        self.client.reset()
        self._connections = None


@runtime_checkable
class PolicyServer(Protocol):
    """What `ServedStream` needs of a client."""

    reconnects: int
    """Connections opened after the first; each begins with an empty memory."""

    def infer(self, obs: dict[str, Any]) -> dict[str, Array]:
        """One observation in, a map with `actions` out."""
        ...

    def reset(self) -> None:
        """An episode begins."""
        ...


def _tensor(actions: Array) -> torch.Tensor:
    return actions.cpu() if isinstance(actions, torch.Tensor) else torch.from_numpy(np.array(actions))
