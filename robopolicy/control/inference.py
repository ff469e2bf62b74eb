"""Policy inference in parallel with the control loop: one thread observes and predicts, the control thread takes the chunks."""

import queue
import threading
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np

from robopolicy.arrays import Float, torch_mode
from robopolicy.control.robot import Robot, RobotError, driven
from robopolicy.control.stream import Stream
from robopolicy.control.timing import request_realtime
from robopolicy.types import Array, Observation, Prefix

POLICY_PRIORITY = 10
"""Real-time priority of the policy's thread, if requested."""


STILL_S = 0.5
"""Time without a new image after which a camera may be frozen [s]; cameras may be slower than the control loop."""
MOVED_RAD = 0.2
"""An unchanged image is an error if a joint moved more than this [rad]; rendered images don't change while the robot rests."""


class _Seen(NamedTuple):
    pixels: np.ndarray
    stamp_s: float
    qpos: np.ndarray


class CameraWatch:
    """Detects frozen cameras: compares each image with the last one, bit by bit.

    Args:
        cameras: keys of the images that are compared; None: all of them.
    """

    def __init__(self, cameras: Collection[str] | None = None) -> None:
        self.cameras = cameras
        self.reset()

    def reset(self) -> None:
        """Begin an episode."""
        self._first: dict[str, _Seen] = {}

    def check(self, observation: Observation, qpos: Float[np.ndarray, " joints"]) -> None:
        """Compare the images of an observation, taken with the joints at `qpos` [rad].

        Raises:
            RobotError: an image stayed the same although the arm moved.
        """
        for key, value in observation.obs.items():
            image = np.asarray(value)
            if image.ndim != 3 or (self.cameras is not None and key not in self.cameras):
                continue
            first = self._first.get(key)
            if first is None or not np.array_equal(image, first.pixels):
                self._first[key] = _Seen(image, observation.stamp_s, np.array(qpos))
                continue
            same_s, moved_rad = observation.stamp_s - first.stamp_s, float(np.abs(qpos - first.qpos).max())
            if same_s > STILL_S and moved_rad > MOVED_RAD:
                raise RobotError(
                    f"camera {key!r} is frozen: the same image for {same_s:.2f} s, while a joint moved {moved_rad:.2f} rad"
                )


@dataclass(frozen=True)
class TimedChunk:
    """An action chunk, with its observation and its latency."""

    observation: Observation
    actions: Float[np.ndarray, "chunk width"]
    """Action rows in the demos' units and columns; action k belongs to the observation's time + k control steps."""
    latency_s: float
    """Time from the start of the observation to the chunk [s]; 0 with a simulated clock."""
    gripper_logit: Float[np.ndarray, "chunk gripper"] | None = None
    """None if the policy has no gripper logits."""

    def mistimed(self, now_s: float, ahead_s: float, old_s: float) -> str | None:
        """Describe a wrong time stamp: in the future, or already old when the observation was taken; None if it is valid.

        Args:
            now_s: time on the loop's clock [s].
            ahead_s: largest lead over `now_s` [s].
            old_s: largest age of the observation at the time it was taken [s].
        """
        late_s = now_s - self.observation.stamp_s
        if not -late_s <= ahead_s:  # also true for NaN
            return f"an observation is stamped {-late_s:.3g} s in the future; stamp observations with the loop's clock"
        if (before_s := late_s - self.latency_s) > old_s:
            return f"an observation was already {before_s:.3g} s old when it was taken: a sensor or its clock is wrong"
        return None


@runtime_checkable
class Inference(Protocol):
    """Source of a control loop's chunks; in a real-time loop, no call may block."""

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


class SteppedInference:
    """Observes `robot` and runs `stream` within `request`, in the caller's thread.

    For a robot on a simulated clock, where inference takes no time: each chunk is ready before the next command.

    Args:
        robot: source of the observations.
        stream: a `PolicyStream` without batch axes, or a `ServedStream`.
        instruction: replaces the instruction of the observations; None: keep theirs.
        cameras: keys of the images that are checked for a frozen camera; None: all of them.
        every: control steps from one observation to the next, >= 1; the steps in between execute earlier chunks.
        adapt: functions that turn the robot's observation into the policy's, one after another.
    """

    def __init__(
        self,
        robot: Robot,
        stream: Stream,
        instruction: str | None = None,
        *,
        cameras: Collection[str] | None = None,
        every: int = 1,
        adapt: Sequence[Callable[[Observation], Observation]] = (),
    ) -> None:
        self.robot, self.stream, self.every, self.missed = robot, stream, every, 0
        self._instruction, self._adapt, self._watch = instruction, adapt, CameraWatch(cameras)
        self._steps = 0
        self._chunks: list[TimedChunk] = []

    def request(self, t_s: float, prefix: Prefix | None = None) -> None:
        """Infer at the first control step of an episode, then once every `every` steps."""
        if self._steps % self.every == 0:
            self._start(prefix)
        self._steps += 1

    def finished(self) -> list[TimedChunk]:
        """Chunks finished since the last call, oldest first."""
        chunks, self._chunks = self._chunks, []
        return chunks

    def reset(self) -> None:
        """Begin an episode at the next request."""
        self._steps, self._chunks = 0, []
        self._forget()

    def close(self) -> None:
        """Do nothing; there is no thread."""

    def _start(self, prefix: Prefix | None) -> None:
        self._chunks.append(replace(self._infer(prefix), latency_s=0.0))  # inference takes no time on a simulated clock

    def _forget(self) -> None:
        """Clear the memory of the policy and of the frozen-camera check."""
        self.stream.reset()
        self._watch.reset()

    def _infer(self, prefix: Prefix | None) -> TimedChunk:
        """The chunk for an observation taken now."""
        began_s = time.perf_counter()
        observation = driven(self.robot, "observe")
        self._watch.check(observation, driven(self.robot, "qpos"))
        if self._instruction is not None:
            observation = replace(observation, instruction=self._instruction)
        shown = observation
        for adapt in self._adapt:
            shown = adapt(shown)
        with torch_mode("inference_mode"):
            actions = _array(self.stream(shown, prefix))
        logit = self.stream.gripper_logit
        latency_s = time.perf_counter() - began_s
        return TimedChunk(observation, actions, latency_s, None if logit is None else _array(logit))


class ThreadedInference(SteppedInference):
    """Observes `robot` and runs `stream` in a separate thread.

    Each inference adds one frame to the policy's memory. A request made before the last inference has finished is dropped
    and counted in `missed`; the memory then lacks that frame.

    Args:
        robot: source of the observations.
        stream: as for `SteppedInference`.
        instruction: as for `SteppedInference`.
        priority: request real-time priority, below the control loop's. Without it, other processes may preempt the policy's
            thread while it holds the interpreter lock, which delays the commands.
        options: `cameras`, `every` and `adapt`, as for `SteppedInference`.
    """

    def __init__(
        self, robot: Robot, stream: Stream, instruction: str | None = None, *, priority: bool = False, **options: Any
    ) -> None:
        super().__init__(robot, stream, instruction, **options)
        self.priority = priority
        self._requests: queue.SimpleQueue[tuple[int, Prefix | None] | None] = queue.SimpleQueue()
        self._results: queue.SimpleQueue[tuple[int, TimedChunk | Exception]] = queue.SimpleQueue()
        self._episode = 0
        self._busy = threading.Event()
        self._thread = threading.Thread(target=self._run, name="policy", daemon=True)
        self._thread.start()

    def finished(self) -> list[TimedChunk]:
        """Chunks finished since the last call, oldest first."""
        chunks = []
        while not self._results.empty():
            episode, result = self._results.get()
            if episode != self._episode:
                continue
            if isinstance(result, Exception):
                raise result
            chunks.append(result)
        return chunks

    def reset(self) -> None:
        """Begin an episode at the next request; a chunk that is still in progress is dropped."""
        self._steps = 0
        self._episode += 1

    def close(self) -> None:
        """End the thread; wait for it at most one second, since it may hang."""
        self._requests.put(None)
        self._thread.join(timeout=1.0)

    def _start(self, prefix: Prefix | None) -> None:
        if self._busy.is_set():
            self.missed += 1
        else:
            self._busy.set()
            self._requests.put((self._episode, prefix))

    def _run(self) -> None:
        episode = -1
        if self.priority:
            request_realtime(POLICY_PRIORITY)
        while (request := self._requests.get()) is not None:
            requested, prefix = request
            try:
                if requested != episode:
                    episode = requested
                    self._forget()
                self._results.put((episode, self._infer(prefix)))
            except Exception as error:
                self._results.put((requested, error))
            self._busy.clear()


def _array(actions: Array) -> np.ndarray:
    """The tensor as a NumPy array; a NumPy array is copied."""
    return actions.cpu().numpy() if hasattr(actions, "cpu") else np.array(actions)
