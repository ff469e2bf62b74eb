"""One inference thread for many clients: whoever waits when a forward pass begins goes into it together.

Nobody waits for others to come: with one client a batch is one observation, and under load the batch grows by itself.
"""

import asyncio
import logging
import queue
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np

from robopolicy.client import ProtocolError, pack
from robopolicy.control.serving.metrics import Metrics
from robopolicy.control.serving.session import BatchState, Session
from robopolicy.control.spec import PolicySpec

logger = logging.getLogger("robopolicy.serve")


@runtime_checkable
class ServedPolicy(Protocol):
    """What can be served: what `robopolicy.load_policy` or `robopolicy.control.runtime.load` gives."""

    def initial_state(self, batch: int) -> BatchState:
        """A fresh memory for `batch` episodes."""
        ...

    def act(self, observation: Mapping[str, Any], state: Any) -> tuple[Any, Any]:
        """Actions (*B, K, width) in the demos' units, and the state after them."""
        ...


@dataclass
class Request:
    """One observation on its way through the inference thread."""

    session: Session
    data: bytes
    answer: Future[bytes] = field(default_factory=Future)
    """The reply, packed; or a ProtocolError with what the client is told instead."""
    received_s: float = field(default_factory=time.monotonic)
    observation: dict[str, Any] = field(default_factory=dict)


class InferenceThread:
    """Reads observations, runs the policy and packs replies for all sessions, in a thread of its own."""

    def __init__(self, policy: ServedPolicy, spec: PolicySpec, metrics: Metrics, max_batch: int = 64) -> None:
        self.policy, self.spec, self.metrics, self.max_batch = policy, spec, metrics, max_batch
        self._requests: queue.SimpleQueue[Request | None] = queue.SimpleQueue()
        self._warm: Future[None] = Future()
        self._thread = threading.Thread(target=self._run, name="inference", daemon=True)

    def start(self) -> None:
        """Warm the policy up with batches of one and of many, then take requests; raises what the policy raises."""
        self._thread.start()
        self._warm.result()

    def stop(self, timeout_s: float = 5.0) -> None:
        """End the thread after the requests already handed in; one that hangs longer than `timeout_s` is left behind."""
        self._requests.put(None)
        self._thread.join(timeout_s)

    async def answer(self, session: Session, data: bytes) -> bytes:
        """The reply to a client's message.

        Raises:
            ProtocolError: what the client is told instead.
        """
        request = Request(session, data)
        self._requests.put(request)
        return await asyncio.wrap_future(request.answer)

    def _run(self) -> None:
        try:
            for batch in (1, 1, 2, self.max_batch):
                self._forward([_blank(self.spec)] * batch, self.policy.initial_state(batch))
            self._warm.set_result(None)
        except Exception as error:
            self._warm.set_exception(error)
            return
        while (first := self._requests.get()) is not None:
            batch, last = [first], False
            while len(batch) < self.max_batch and not self._requests.empty() and not last:
                request = self._requests.get()
                last = request is None
                batch += [request] if request else []
            self._answer([request for request in batch if self._read(request)])
            if last:
                return

    def _read(self, request: Request) -> bool:
        if not request.answer.set_running_or_notify_cancel():
            return False
        try:
            request.observation = request.session.observation(request.data)
        except ProtocolError as error:
            request.answer.set_exception(error)
            return False
        except Exception:
            self._fail(request, "reading an observation")
            return False
        return True

    def _answer(self, requests: Sequence[Request]) -> None:
        if not requests:
            return
        states = [request.session.state or self.policy.initial_state(1) for request in requests]
        began_s = time.monotonic()
        try:
            state = type(states[0]).concat(states) if len(states) > 1 else states[0]
            actions, state = self._forward([request.observation for request in requests], state)
            after_each = state.split(1)
        except Exception:
            if len(requests) == 1:
                self._fail(requests[0], "the policy")
                return
            for request in requests:  # one client's observation must not spoil the others'
                self._answer([request])
            return
        infer_s = time.monotonic() - began_s
        for request, rows, after in zip(requests, actions, after_each, strict=True):
            request.session.state = after
            self._reply(request, rows, infer_s)
        self.metrics.observe("batch_size", len(requests))
        self.metrics.observe("infer_seconds", infer_s)

    def _forward(self, observations: Sequence[Mapping[str, Any]], state: Any) -> tuple[np.ndarray, Any]:
        batch: dict[str, Any] = {key: _stacked([seen[key] for seen in observations]) for key in self.spec.observation}
        if self.spec.instruction:
            batch["instruction"] = [observation["instruction"] for observation in observations]
        actions, state = self.policy.act(batch, state)
        if hasattr(actions, "detach"):
            actions = actions.detach().cpu().numpy()
        return np.asarray(actions, np.float32), state

    def _reply(self, request: Request, actions: np.ndarray, infer_s: float) -> None:
        if not np.isfinite(actions).all():
            request.answer.set_exception(ProtocolError("the policy's actions for this observation are not finite"))
            return
        timing = {"infer_ms": (time.monotonic() - request.received_s) * 1e3}
        if request.session.prev_total_ms is not None:
            timing["prev_total_ms"] = request.session.prev_total_ms
        reply = {"actions": actions, "policy_timing": {"infer_ms": infer_s * 1e3}, "server_timing": timing}
        request.answer.set_result(pack(reply))

    def _fail(self, request: Request, where: str) -> None:
        logger.exception("%s: %s failed", request.session.name, where)
        self.metrics.count("internal_errors_total")
        request.answer.set_exception(ProtocolError("internal error; the server's log tells more"))


def _stacked(arrays: Sequence[np.ndarray]) -> np.ndarray:
    return np.stack(arrays) if len(arrays) > 1 else arrays[0][None]  # the one picture of a lone client isn't copied


def _blank(spec: PolicySpec) -> dict[str, Any]:
    blank: dict[str, Any] = {key: np.zeros(wanted.shape, wanted.dtype) for key, wanted in spec.observation.items()}
    return blank | ({"instruction": ""} if spec.instruction else {})
