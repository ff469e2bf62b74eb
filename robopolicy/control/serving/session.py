"""One client's connection: its memory and messages, and a check that its rate is the one used in training."""

import logging
import statistics
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from robopolicy.client import ACTIONS_PER_CALL_KEY, RESET_KEY, ProtocolError, unpack
from robopolicy.control.serving.metrics import Metrics
from robopolicy.control.serving.protocol import ObservationReader

logger = logging.getLogger("robopolicy.serve")

INTERVALS = 20
"""Intervals between observations that are measured before a client's rate is judged."""


class Session:
    """One client's connection: its memory and its rate.

    A policy that was trained on every s-th frame expects one call per s control steps. A client may call it every k steps
    instead, if k divides s and it sends `actions_per_call` k: then s / k memories take turns, as in `PolicyStream`, and each
    sees every s-th frame.
    """

    def __init__(self, reader: ObservationReader, metrics: Metrics, name: str = "client") -> None:
        self.reader, self.metrics, self.name = reader, metrics, name
        self.prev_total_ms: float | None = None
        self._memories: dict[int, Any] = {}
        self._turns, self._turn = 1, 0
        self._intervals_s: list[float] = []
        self._last_s: float | None = None
        self._keys: set[str] = set()
        self._warned_of_stride = False

    @property
    def state(self) -> Any:
        """The memory that takes the newest observation, with one batch axis; None before its first one."""
        return self._memories.get(self._turn)

    @state.setter
    def state(self, state: Any) -> None:
        self._memories[self._turn] = state

    def observation(self, data: bytes) -> dict[str, Any] | None:
        """The policy's observation in a client's message; None if it only resets, as RoboMME's client sends it.

        Raises:
            ProtocolError: the message can't be read or doesn't fit the policy.
        """
        message = unpack(data)
        if isinstance(message, dict) and set(message) == {RESET_KEY}:
            if _truth(message, RESET_KEY):
                self._memories, self._turn, self._last_s = {}, 0, None
            return None
        observation = self.reader.read(message)
        reset, executed = _truth(message, RESET_KEY), _count(message, ACTIONS_PER_CALL_KEY)
        self._take_turn(self._turns if executed is None else self._turns_for(executed), reset)
        self._watch_pace(reset)
        self._report_unused(message)
        return observation

    def _turns_for(self, executed: int) -> int:
        """Number of memories for a client that executes this many actions per call; warns unless the stride is a multiple."""
        stride = self.reader.spec.frame_stride
        if stride % executed == 0:
            return stride // executed
        self._warn_of_stride(f"executes {executed} actions per call")
        return 1

    def _take_turn(self, turns: int, reset: bool) -> None:
        if reset or not self._memories:
            self._memories, self._turns, self._turn = {}, turns, 0
        elif turns != self._turns:
            raise ProtocolError(f"'{ACTIONS_PER_CALL_KEY}' changes in mid-episode; send '{RESET_KEY}' with it")
        else:
            self._turn = (self._turn + 1) % turns

    def _report_unused(self, message: Mapping[str, Any]) -> None:
        if message.keys() == self._keys:
            return
        self._keys = set(message)
        if unused := self.reader.unused(message):
            self.metrics.count("unused_keys_total", len(unused))
            logger.warning("%s sends '%s', which the policy does not read", self.name, "', '".join(unused))

    def _watch_pace(self, reset: bool) -> None:
        spec = self.reader.spec
        now_s, last_s = time.monotonic(), None if reset else self._last_s
        self._last_s = now_s
        if last_s is None or spec.control_dt is None or len(self._intervals_s) >= INTERVALS:
            return
        self._intervals_s.append(now_s - last_s)
        usual_s, trained_s = statistics.median(self._intervals_s), spec.control_dt * spec.frame_stride
        if len(self._intervals_s) == INTERVALS and usual_s > 1.5 * trained_s / self._turns:
            self._warn_of_stride(f"sends an observation every {usual_s:.3f} s")

    def _warn_of_stride(self, found: str) -> None:
        spec = self.reader.spec
        if self._warned_of_stride:
            return
        self._warned_of_stride = True
        self.metrics.count("frame_stride_warnings_total")
        pace = f" ({spec.control_dt * spec.frame_stride:.3f} s)" if spec.control_dt else ""
        logger.warning(
            "%s %s; the policy's memory was trained on one observation per %d control steps%s: send them at this rate, or "
            "train with another --data.frame_stride",
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


def _count(message: Mapping[str, Any], key: str) -> int | None:
    value = message.get(key)
    if value is not None and (not isinstance(value, (int, np.integer)) or value < 1):
        raise ProtocolError(f"'{key}' must be an integer >= 1, got {value!r:.40}")
    return None if value is None else int(value)
