"""The connection of the robot `rosbridge` to its server: the newest message of each topic."""

import math
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from robopolicy.control.robot import RobotError

DRIFT = 1e-4
"""Seconds by which two computers' clocks may drift apart in one second."""


class Bridge:
    """A connection to a rosbridge server that keeps the newest message of each topic.

    Args:
        host: name or IP address of the server.
        port: its port.
        tls: whether the connection is encrypted.
        connect_s: how long connecting may take [s].

    Raises:
        RobotError: no server answers.
    """

    def __init__(self, host: str, port: int, tls: bool, connect_s: float) -> None:
        try:
            import roslibpy
        except ImportError:
            raise ImportError("a robot behind rosbridge needs roslibpy; pip install 'robopolicy[robot]'") from None
        self.ros = roslibpy.Ros(host=host, port=port, is_secure=tls)
        """The connection, for clients of actions."""
        self.ros1 = False
        """Whether the messages are those of ROS 1, whose times have other field names."""
        self.lost: str | None = None
        """The first message that could not be decoded; None: all could be."""
        self._newest: dict[str, tuple[float, Any]] = {}
        self._changed = threading.Condition()
        try:
            self.ros.run(timeout=int(connect_s) or 1)
        except Exception as error:  # roslibpy raises its own
            raise RobotError(f"no rosbridge at {host}:{port}: {error}") from None

    def publisher(self, name: str, kind: str) -> Any:
        """A topic to publish on, which is advertised now, so that its receivers are connected before the first message."""
        topic = self._topic(name, kind)
        topic.advertise()
        return topic

    def listen(self, topic: str, kind: str, decode: Callable[[Mapping[str, Any]], Any]) -> None:
        """Keep the newest decoded message of a topic, with its time on the loop's clock; one decoded to None is skipped."""
        clock = StampClock()

        def receive(message: Mapping[str, Any]) -> None:
            arrived_s = time.monotonic()
            try:
                value = decode(message)
            except (KeyError, ValueError, TypeError, ImportError) as error:
                reason = f"lacks {error}" if isinstance(error, KeyError) else str(error)
                self.lost, value = f"{topic}: {reason}", None
            with self._changed:
                if value is not None:
                    self.ros1 = self.ros1 or "secs" in _stamp(message)
                    self._newest[topic] = (clock.of(message, arrived_s), value)
                self._changed.notify_all()

        self._topic(topic, kind).subscribe(receive)

    def newest(self, topic: str, after_s: float, timeout_s: float) -> tuple[float, Any]:
        """The time and the value of a topic's newest message, once its time is at least `after_s`.

        Raises:
            RobotError: none arrives within `timeout_s`, or a message of any topic could not be decoded.
        """
        if not self.wait_for(lambda: self._newest.get(topic, (-1.0, None))[0] >= after_s, timeout_s):
            raise RobotError(f"no message on topic {topic} for {timeout_s:g} s")
        return self._newest[topic]

    def wait_for(self, ready: Callable[[], bool], timeout_s: float) -> bool:
        """Wait for messages until `ready()` is True; returns whether that happened within `timeout_s`.

        Raises:
            RobotError: a message could not be decoded.
        """
        with self._changed:
            is_ready = self._changed.wait_for(lambda: self.lost is not None or ready(), timeout_s)
        if self.lost is not None:
            raise RobotError(self.lost)
        return is_ready

    @property
    def connected(self) -> bool:
        """Whether the server is still there."""
        return bool(self.ros.is_connected)

    def close(self) -> None:
        """Disconnect."""
        self.ros.close()

    def _topic(self, name: str, kind: str) -> Any:
        import roslibpy

        return roslibpy.Topic(self.ros, name, kind)


class StampClock:
    """Converts header stamps from the sender's clock to the loop's clock.

    The offset is the smallest difference seen between a message's arrival and its stamp, so that it includes only the
    shortest delay; it may grow at the rate at which clocks drift.
    """

    def __init__(self) -> None:
        self._offset_s, self._arrived_s = math.inf, 0.0

    def of(self, message: Mapping[str, Any], arrived_s: float) -> float:
        """Time of a message's stamp on the loop's clock [s], at most its arrival; the arrival if it has no stamp."""
        stamp = _stamp(message)
        stamped_s = stamp.get("sec", stamp.get("secs", 0)) + 1e-9 * stamp.get("nanosec", stamp.get("nsecs", 0))
        if not stamped_s:
            return arrived_s
        drifted_s = self._offset_s + DRIFT * (arrived_s - self._arrived_s)
        self._offset_s, self._arrived_s = min(drifted_s, arrived_s - stamped_s), arrived_s
        return stamped_s + self._offset_s


def _stamp(message: Mapping[str, Any]) -> Mapping[str, int]:
    """The time in a message's header, `sec` and `nanosec` in ROS 2, `secs` and `nsecs` in ROS 1; empty if it has none."""
    return (message.get("header") or {}).get("stamp") or {}
