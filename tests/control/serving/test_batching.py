"""The inference thread: one forward pass for all who wait, and nobody's memory mixed up."""

import asyncio

import numpy as np
import pytest

from robopolicy.client import ProtocolError, pack, unpack
from robopolicy.control.serving.batching import InferenceThread
from robopolicy.control.serving.mapping import KeyMapping
from robopolicy.control.serving.metrics import Metrics
from robopolicy.control.serving.protocol import ObservationReader
from robopolicy.control.serving.session import Session
from robopolicy.types import Prediction
from tests.serving import SPEC, FakePolicy, observation


def make(policy: FakePolicy, sessions: int, **options) -> tuple[InferenceThread, list[Session]]:
    metrics = Metrics()
    reader = ObservationReader(SPEC, KeyMapping())
    return InferenceThread(policy, SPEC, metrics, **options), [Session(reader, metrics) for _ in range(sessions)]


def ask_all(inference: InferenceThread, asked: list[tuple[Session, dict]], policy: FakePolicy) -> list:
    """All at once: the policy is held until every request waits."""

    async def run() -> list:
        policy.hold.clear()
        tasks = [asyncio.ensure_future(inference.answer(session, pack(message))) for session, message in asked]
        await asyncio.sleep(0.05)
        policy.hold.set()
        return await asyncio.gather(*tasks, return_exceptions=True)

    return asyncio.run(run())


def test_waiting_clients_share_a_forward_pass_and_keep_their_own_memory():
    """Guards against: 64 clients at 20 Hz that need 64 passes, or a mixed-up memory that moves the wrong robot."""
    policy = FakePolicy()
    inference, sessions = make(policy, 8)
    inference.start()
    policy.batches.clear()
    for _ in range(2):
        asked = [(session, observation(number)) for number, session in enumerate(sessions)]
        replies = ask_all(inference, asked, policy)
    inference.stop()
    rows = np.stack([unpack(reply)["actions"][0] for reply in replies])
    assert rows[:, 0].tolist() == [2] * 8
    assert rows[:, 1].tolist() == [2 * 3 * number for number in range(8)]
    assert sum(policy.batches) == 16
    assert len(policy.batches) <= 4  # each round: those who came before the pass began, and all others


def test_a_bad_observation_fails_alone():
    """Guards against: one client's mistake that closes the others' connections."""
    policy = FakePolicy()
    inference, sessions = make(policy, 4)
    inference.start()
    messages = [observation(), observation(qpos=np.full(3, np.nan)), observation(666.0), observation()]
    replies = ask_all(inference, list(zip(sessions, messages, strict=True)), policy)
    inference.stop()
    assert [isinstance(reply, ProtocolError) for reply in replies] == [False, True, True, False]
    assert "NaN" in str(replies[1])
    assert "secret" not in str(replies[2])


def test_a_bad_observation_is_refused_while_the_policy_is_still_busy_with_another():
    """Guards against: messages that wait for the current forward pass because they are read in the policy's thread."""
    policy = FakePolicy()
    inference, (good, bad) = make(policy, 2)
    inference.start()

    async def run() -> bytes:
        policy.hold.clear()
        under_way = asyncio.ensure_future(inference.answer(good, pack(observation())))
        await asyncio.sleep(0.05)
        with pytest.raises(ProtocolError, match="lacks 'qpos'"):
            await asyncio.wait_for(inference.answer(bad, pack({"prompt": "lift"})), 1.0)
        policy.hold.set()
        return await under_way

    assert unpack(asyncio.run(run()))["actions"][0, 0] == 1
    inference.stop()


def test_an_answer_that_nobody_waits_for_any_more_does_no_harm():
    """Guards against: a client that hangs up in the middle of its request, or a server that closes while the policy hangs."""
    policy = FakePolicy()
    inference, (gone, other) = make(policy, 2)
    inference.start()

    async def hang_up() -> None:
        policy.hold.clear()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(inference.answer(gone, pack(observation())), 0.05)

    asyncio.run(hang_up())
    policy.hold.set()
    (reply,) = ask_all(inference, [(other, observation())], policy)
    inference.stop()
    assert unpack(reply)["actions"][0, 0] == 1
    assert not inference._thread.is_alive()


def test_a_batch_is_never_larger_than_allowed():
    """Guards against: a forward pass whose memory grows with the number of clients."""
    policy = FakePolicy()
    inference, sessions = make(policy, 7, max_batch=3)
    inference.start()
    ask_all(inference, [(session, observation()) for session in sessions], policy)
    inference.stop()
    assert max(policy.batches) == 3


def test_a_policy_that_fails_while_warming_up_fails_the_start():
    """Guards against: a server that listens with a broken policy, and looks healthy until a robot moves."""

    class Broken(FakePolicy):
        def predict(self, observation, state):
            raise ValueError("weights are missing")

    inference, _ = make(Broken(), 0)
    with pytest.raises(ValueError, match="weights are missing"):
        inference.start()


def test_actions_that_are_not_finite_are_not_sent():
    """Guards against: a clamp on the robot's side, which would let NaN through."""

    class Diverged(FakePolicy):
        def predict(self, observation, state):
            prediction, state = super().predict(observation, state)
            return Prediction(prediction.actions * np.nan), state

    policy = Diverged()
    inference, (session,) = make(policy, 1)
    inference.start()
    (reply,) = ask_all(inference, [(session, observation())], policy)
    inference.stop()
    assert "not finite" in str(reply)
