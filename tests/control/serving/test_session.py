"""A client's pace and its unknown keys."""

import logging

import pytest

from robopolicy.client import ACTIONS_PER_CALL_KEY, ProtocolError, pack
from robopolicy.control.serving import session as session_module
from robopolicy.control.serving.mapping import KeyMapping
from robopolicy.control.serving.metrics import Metrics
from robopolicy.control.serving.protocol import ObservationReader
from robopolicy.control.serving.session import Session
from tests.serving import SPEC, observation


class Clock:
    """`time` with a monotonic clock that the test sets."""

    now_s = 0.0

    def monotonic(self) -> float:
        """Seconds."""
        return self.now_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(session_module, "time", clock)
    return clock


def new_session() -> Session:
    return Session(ObservationReader(SPEC, KeyMapping()), Metrics(), name="robot")


def send(session: Session, clock: Clock, times: int, period_s: float, **more) -> None:
    for _ in range(times):
        session.observation(pack(observation(**more)))
        clock.now_s += period_s


def test_unknown_keys_are_reported_once(clock, caplog):
    """An unknown key is often a misspelt one; said at every tick it would fill the disk."""
    session = new_session()
    send(session, clock, 3, 0.05, wrist=1, force=2)
    assert [record.getMessage() for record in caplog.records] == [
        "robot sends 'force', 'wrist', which the policy doesn't look at"
    ]


def test_a_client_slower_than_the_training_is_warned_of_once(clock, caplog):
    """A client that executes 5 actions per call shows the memory every 5th frame, which it was not trained on."""
    session = new_session()
    send(session, clock, 60, 0.25)
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "every 0.250 s" in caplog.text
    assert "--data.frame_stride" in caplog.text


def test_a_client_at_the_training_pace_is_not_warned_of(clock, caplog):
    """A warning that is always there is read by no one; one late observation is no pace."""
    session = new_session()
    send(session, clock, 10, 0.05)
    clock.now_s += 30
    send(session, clock, 40, 0.05, **{ACTIONS_PER_CALL_KEY: 1})
    assert not caplog.records


def test_a_client_that_says_how_many_actions_it_executes_is_checked_at_once(clock, caplog):
    """Our own broker tells; no need to wait for the clock."""
    send(new_session(), clock, 2, 0.05, **{ACTIONS_PER_CALL_KEY: 5})
    assert caplog.text.count("executes 5 actions per call") == 1


def test_a_reset_forgets_the_state(clock):
    """An episode must not begin with the last one's memory."""
    session = new_session()
    session.state = object()  # type: ignore[assignment]
    session.observation(pack(observation(reset=False)))
    assert session.state is not None
    session.observation(pack(observation(reset=True)))
    assert session.state is None
    with pytest.raises(ProtocolError, match="'reset' is a str; expected true or false"):
        session.observation(pack(observation(reset="yes")))
