"""One inference thread for many clients: all requests that wait when a forward pass begins are batched.

A request never waits for others: with one client a batch is one observation; under load batches grow.
"""

import asyncio
import logging
import queue
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

from robopolicy.client import RESET_KEY, ProtocolError, pack
from robopolicy.control.serving.metrics import Metrics
from robopolicy.control.serving.session import Session
from robopolicy.types import Policy, PolicySpec

logger = logging.getLogger("robopolicy.serve")

INLINE_BYTES = 256 * 2**10
"""Messages up to this size [bytes] are decoded on the event loop."""
READERS = 2
"""Threads that decode larger messages."""
RESET_REPLY = pack({RESET_KEY: True})
"""Reply to a message with a reset and no observation."""


@dataclass
class Request:
    """One observation in the inference queue."""

    session: Session
    observation: dict[str, Any]
    answer: asyncio.Future[bytes]
    """The reply, packed; or a ProtocolError with the message for the client."""
    received_s: float


class InferenceThread:
    """Runs the policy and packs replies for all sessions in one thread.

    Small messages are decoded on the event loop while the policy computes; large ones in other threads.
    """

    def __init__(self, policy: Policy, spec: PolicySpec, metrics: Metrics, max_batch: int = 64) -> None:
        self.policy, self.spec, self.metrics, self.max_batch = policy, spec, metrics, max_batch
        self._given: dict[str, Any] = {}
        if spec.samples and spec.execution.get("sample"):
            # Imported here: they import torch, which an exported policy that draws nothing does not need.
            from robopolicy.control.execution import execution_from
            from robopolicy.control.stream import noise_for

            self._given["generator"] = noise_for(policy, execution_from(spec.execution))
        self._requests: queue.SimpleQueue[Request | None] = queue.SimpleQueue()
        self._warm: Future[None] = Future()
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="reader")
        self._thread = threading.Thread(target=self._run, name="inference", daemon=True)

    def start(self) -> None:
        """Warm up the policy with batches of one and of many, then accept requests; raises what the policy raises."""
        self._thread.start()
        self._warm.result()

    def stop(self, timeout_s: float = 5.0) -> None:
        """End the thread after the queued requests; do not wait longer than `timeout_s` [s]."""
        self._requests.put(None)
        self._thread.join(timeout_s)
        self._readers.shutdown(wait=False, cancel_futures=True)

    async def answer(self, session: Session, data: bytes) -> bytes:
        """The reply to a client's message.

        Raises:
            ProtocolError: the message for the client.
        """
        received_s = time.monotonic()
        loop = asyncio.get_running_loop()
        try:
            if len(data) > INLINE_BYTES:  # resizing a large image takes milliseconds and would block the event loop
                observation = await loop.run_in_executor(self._readers, session.observation, data)
            else:
                observation = session.observation(data)
        except ProtocolError:
            raise
        except Exception:
            raise self._failed(session, "reading an observation") from None
        if observation is None:
            return RESET_REPLY
        request = Request(session, observation, loop.create_future(), received_s)
        self._requests.put(request)
        return await request.answer

    def _run(self) -> None:
        try:
            for batch in (1, 1, 2, self.max_batch):
                self._forward([_blank(self.spec)] * batch, self.policy.initial_state(batch))
            self._warm.set_result(None)
        except Exception as error:
            self._warm.set_exception(error)
            return
        while requests := self._waiting():
            alike: dict[tuple[str, ...], list[Request]] = {}  # clients may send images, or tokens instead
            for request in requests:
                alike.setdefault(tuple(request.observation), []).append(request)
            for batch in alike.values():
                replies = self._replies(batch)
                with suppress(RuntimeError):  # the event loop is closed: no one waits for the reply
                    batch[0].answer.get_loop().call_soon_threadsafe(_deliver, batch, replies)

    def _waiting(self) -> list[Request]:
        """The waiting requests, up to a batch, or the next one to arrive; empty at the end."""
        waiting: list[Request] = []
        while not waiting or (len(waiting) < self.max_batch and not self._requests.empty()):
            request = self._requests.get()
            if request is None:
                self._requests.put(None)  # kept for the next batch, after the earlier requests
                return waiting
            waiting.append(request)
        return waiting

    def _replies(self, requests: Sequence[Request]) -> list[bytes | ProtocolError]:
        """The reply to each of several requests with the same keys."""
        states = [request.session.state or self.policy.initial_state(1) for request in requests]
        began_s = time.monotonic()
        try:
            state = type(states[0]).concat(states) if len(states) > 1 else states[0]
            rows, state = self._forward([request.observation for request in requests], state)
            after_each = state.split(1)
        except Exception:
            if len(requests) == 1:
                return [self._failed(requests[0].session, "the policy")]
            return [self._replies([request])[0] for request in requests]  # a faulty one must not fail the others
        infer_s = time.monotonic() - began_s
        self.metrics.observe("batch_size", len(requests))
        self.metrics.observe("infer_seconds", infer_s)
        for request, after in zip(requests, after_each, strict=True):
            request.session.state = after
        return [_packed(request, reply, infer_s) for request, reply in zip(requests, rows, strict=True)]

    def _forward(self, observations: Sequence[Mapping[str, Any]], state: Any) -> tuple[list[dict[str, Any]], Any]:
        """For each observation `actions` and, if the policy has it, `gripper_logit`; and the state."""
        batch: dict[str, Any] = {}
        for key in observations[0]:
            values = [observation[key] for observation in observations]
            batch[key] = values if key == "instruction" else _stacked(values)
        prediction, state = self.policy.predict(batch, state, **self._given)
        found = {"actions": prediction.actions, "gripper_logit": prediction.gripper_logit}
        rows = {name: _array(values) for name, values in found.items() if values is not None and values.shape[-1]}
        return [{name: values[place] for name, values in rows.items()} for place in range(len(observations))], state

    def _failed(self, session: Session, where: str) -> ProtocolError:
        """Log the current exception; returns the message for the client."""
        logger.exception("%s: %s failed", session.name, where)
        self.metrics.count("internal_errors_total")
        return ProtocolError("internal error; see the server's log")


def _packed(request: Request, reply: dict[str, Any], infer_s: float) -> bytes | ProtocolError:
    if not np.isfinite(reply["actions"]).all():
        return ProtocolError("the policy's actions for this observation are not finite")
    timing = {"infer_ms": (time.monotonic() - request.received_s) * 1e3}
    if request.session.prev_total_ms is not None:
        timing["prev_total_ms"] = request.session.prev_total_ms
    return pack({**reply, "policy_timing": {"infer_ms": infer_s * 1e3}, "server_timing": timing})


def _deliver(requests: Sequence[Request], replies: Sequence[bytes | ProtocolError]) -> None:
    """Deliver the replies, on the event loop, once for the whole batch."""
    for request, reply in zip(requests, replies, strict=True):
        if request.answer.done():  # cancelled: the client is gone
            continue
        if isinstance(reply, ProtocolError):
            request.answer.set_exception(reply)
        else:
            request.answer.set_result(reply)


def _array(values: Any) -> np.ndarray:
    return np.asarray(values.cpu() if hasattr(values, "cpu") else values, np.float32)


def _stacked(arrays: Sequence[np.ndarray]) -> np.ndarray:
    return np.stack(arrays) if len(arrays) > 1 else arrays[0][None]  # a single observation is not copied


def _blank(spec: PolicySpec) -> dict[str, Any]:
    blank: dict[str, Any] = {
        key: np.zeros(expected.shape, expected.dtype) for key, expected in spec.observation.items()
    }
    return blank | ({"instruction": ""} if spec.instruction else {})
