"""One client's connection: its memory, what it sends, and whether its pace is the one the policy was trained for."""

import logging
import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from robopolicy.client import ACTIONS_PER_CALL_KEY, RESET_KEY, ProtocolError, unpack
from robopolicy.control.serving.metrics import Metrics
from robopolicy.control.serving.protocol import ObservationReader

logger = logging.getLogger("robopolicy.serve")

INTERVALS = 20
"""Times between observations that are looked at before a client's pace is judged."""


@runtime_checkable
class BatchState(Protocol):
    """The memory of several episodes: `robopolicy.model.streaming.MemoryState`, or an exported policy's."""

    @staticmethod
    def concat(states: Sequence[Any]) -> Any:
        """One state out of several, end to end along the batch's first axis."""
        ...

    def split(self, sizes: int) -> Sequence[Any]:
        """Parts along the batch's first axis."""
        ...


class Session:
    """One client's connection: its memory, and what is known of how it behaves."""

    def __init__(self, reader: ObservationReader, metrics: Metrics, name: str = "client") -> None:
        self.reader, self.metrics, self.name = reader, metrics, name
        self.state: BatchState | None = None
        self.prev_total_ms: float | None = None
        self._intervals_s: list[float] = []
        self._last_s: float | None = None
        self._keys: set[str] = set()
        self._reported: set[str] = set()

    def observation(self, data: bytes) -> dict[str, Any]:
        """The policy's observation in a client's message; forgets the memory where the client asks for it.

        Raises:
            ProtocolError: the message can't be read or doesn't fit the policy.
        """
        message = unpack(data)
        observation = self.reader.read(message)
        if _truth(message, RESET_KEY):
            self.state, self._last_s = None, None
        self._watch_pace(message)
        self._report_unused(message)
        return observation

    def _report_unused(self, message: Mapping[str, Any]) -> None:
        if message.keys() == self._keys:
            return
        self._keys = set(message)
        if unused := [key for key in self.reader.unused(message) if key not in self._reported]:
            self._reported.update(unused)
            self.metrics.count("unused_keys_total", len(unused))
            logger.warning("%s sends '%s', which the policy doesn't look at", self.name, "', '".join(unused))

    def _watch_pace(self, message: Mapping[str, Any]) -> None:
        spec = self.reader.spec
        executed = message.get(ACTIONS_PER_CALL_KEY)
        if isinstance(executed, int) and executed != spec.frame_stride:
            self._warn_of_stride(f"executes {executed} actions per call")
        now_s, last_s = time.monotonic(), self._last_s
        self._last_s = now_s
        if last_s is None or spec.control_dt is None or len(self._intervals_s) >= INTERVALS:
            return
        self._intervals_s.append(now_s - last_s)
        usual_s, trained_s = statistics.median(self._intervals_s), spec.control_dt * spec.frame_stride
        if len(self._intervals_s) == INTERVALS and usual_s > 1.5 * trained_s:
            self._warn_of_stride(f"sends an observation every {usual_s:.3f} s")

    def _warn_of_stride(self, found: str) -> None:
        spec = self.reader.spec
        if "frame stride" in self._reported:
            return
        self._reported.add("frame stride")
        self.metrics.count("frame_stride_warnings_total")
        pace = f" ({spec.control_dt * spec.frame_stride:.3f} s)" if spec.control_dt else ""
        logger.warning(
            "%s %s; the policy's memory was trained on every %d. control step%s: send one as often, or train with "
            "--data.frame_stride",
            self.name,
            found,
            spec.frame_stride,
            pace,
        )


def _truth(message: Mapping[str, Any], key: str) -> bool:
    value = message.get(key, False)
    if isinstance(value, (bool, int)) or (hasattr(value, "dtype") and value.shape == ()):
        return bool(value)
    raise ProtocolError(f"'{key}' is a {type(value).__name__}; expected true or false")
