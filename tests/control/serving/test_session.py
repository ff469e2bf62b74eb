"""A client's pace and its unknown keys."""

import logging
from collections.abc import Sequence
from dataclasses import replace

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


class Frames(str):
    """A memory that is the frames it has seen."""

    @staticmethod
    def concat(states: Sequence["Frames"]) -> "Frames":
        """Of one episode."""
        return states[0]

    def split(self, sizes: int) -> list["Frames"]:
        """Of one episode."""
        return [self]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(session_module, "time", clock)
    return clock


def new_session(frame_stride: int = 1) -> Session:
    spec = replace(SPEC, frame_stride=frame_stride)
    return Session(ObservationReader(spec, KeyMapping()), Metrics(), name="robot")


def send(session: Session, clock: Clock, times: int, period_s: float, **more) -> None:
    for _ in range(times):
        session.observation(pack(observation(**more)))
        clock.now_s += period_s


def test_unknown_keys_are_reported_once(clock, caplog):
    """Guards against: a misspelled key that nobody hears of, or one that fills the disk with a line per tick."""
    session = new_session()
    send(session, clock, 3, 0.05, wrist=1, force=2)
    assert [record.getMessage() for record in caplog.records] == [
        "robot sends 'force', 'wrist', which the policy does not read"
    ]


def test_a_client_slower_than_the_training_is_warned_of_once(clock, caplog):
    """Guards against: a memory that sees every 5th frame, without a warning, because its client executes 5 actions per call."""
    session = new_session()
    send(session, clock, 60, 0.25)
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "every 0.250 s" in caplog.text
    assert "--data.frame_stride" in caplog.text


def test_a_client_at_the_training_pace_is_not_warned_of(clock, caplog):
    """Guards against: a warning that is always there, and so read by no one; one late observation is not a rate."""
    session = new_session()
    send(session, clock, 10, 0.05)
    clock.now_s += 30
    send(session, clock, 40, 0.05, **{ACTIONS_PER_CALL_KEY: 1})
    assert not caplog.records


def test_a_client_that_says_how_many_actions_it_executes_is_checked_at_once(clock, caplog):
    """Guards against: a client that announces its stride and is still judged by the clock."""
    send(new_session(), clock, 2, 0.05, **{ACTIONS_PER_CALL_KEY: 5})
    assert caplog.text.count("executes 5 actions per call") == 1


@pytest.mark.parametrize(
    ("executed", "remembered"),
    [
        (1, ["0", "1", "2", "3", "04", "15", "26"]),
        (2, ["0", "1", "02", "13", "024", "135", "0246"]),
        (4, ["0", "01", "012", "0123", "01234", "012345", "0123456"]),
        (None, ["0", "01", "012", "0123", "01234", "012345", "0123456"]),
    ],
)
def test_a_client_that_asks_more_often_than_the_frame_stride_is_kept_as_many_memories(executed, remembered, clock):
    """Guards against: a memory trained on every 4th frame and fed with all: the world moves at a quarter of its speed."""
    session, extra = new_session(frame_stride=4), {} if executed is None else {ACTIONS_PER_CALL_KEY: executed}
    seen = []
    for frame in range(7):
        session.observation(pack(observation(**extra)))
        session.state = Frames(f"{session.state or ''}{frame}")
        seen.append(session.state)
    assert seen == remembered
    session.observation(pack(observation(reset=True)))
    assert session.state is None


def test_a_client_that_asks_at_every_control_step_of_a_frame_stride_is_not_warned_of(clock, caplog):
    """Guards against: a warning for a robot that does everything right, or none for one that falls behind."""
    send(new_session(frame_stride=4), clock, 60, 0.05, **{ACTIONS_PER_CALL_KEY: 1})
    assert not caplog.records
    send(session := new_session(frame_stride=4), clock, 60, 0.2)
    assert not caplog.records
    send(session, clock, 1, 0.2, **{ACTIONS_PER_CALL_KEY: 3})
    assert caplog.text.count("executes 3 actions per call") == 1


def test_the_number_of_memories_changes_at_an_episodes_beginning_only(clock):
    """Guards against: frames of one spacing shown to memories of another."""
    session = new_session(frame_stride=4)
    session.observation(pack(observation(**{ACTIONS_PER_CALL_KEY: 1})))
    session.state = Frames("0")
    with pytest.raises(ProtocolError, match="'actions_per_call' changes in mid-episode; send 'reset' with it"):
        session.observation(pack(observation(**{ACTIONS_PER_CALL_KEY: 2})))
    session.observation(pack(observation(**{ACTIONS_PER_CALL_KEY: 2}, reset=True)))
    for wrong in (0, -4, 2.0, "2", [2]):
        with pytest.raises(ProtocolError, match="'actions_per_call' must be an integer >= 1"):
            session.observation(pack(observation(**{ACTIONS_PER_CALL_KEY: wrong})))


def test_a_reset_forgets_the_state(clock):
    """Guards against: an episode that begins with the last one's memory."""
    session = new_session()
    session.state = Frames("0")
    session.observation(pack(observation(reset=False)))
    assert session.state is not None
    session.observation(pack(observation(reset=True)))
    assert session.state is None
    with pytest.raises(ProtocolError, match="'reset' is a str; expected true or false"):
        session.observation(pack(observation(reset="yes")))


def test_a_reset_alone_is_a_message_of_its_own(clock):
    """Guards against: clients, such as RoboMME's, that are refused because their reset holds no observation."""
    session = new_session()
    session.observation(pack(observation()))
    session.state = Frames("0")
    assert session.observation(pack({"reset": False})) is None
    assert session.state is not None
    assert session.observation(pack({"reset": True})) is None
    assert session.state is None


def test_new_names_in_every_message_fill_neither_memory_nor_log(clock, caplog):
    """Guards against: 125 MB and 31 MB of log in half a minute, from one client that makes up names."""
    reader = ObservationReader(SPEC, KeyMapping())
    for client in range(10):
        session = Session(reader, Metrics(), name="stranger")
        for message in range(100):
            session.observation(pack(observation(**{f"name_{client}_{message}_{number}": 1 for number in range(20)})))
    assert len(reader._reported) == 64
    assert len(caplog.text) < 5000
