"""Websocket connections that can't be held open cheaply: a cap on their number, a clock on each message."""

import asyncio
from typing import Any

from websockets.asyncio.server import ServerConnection
from websockets.frames import Frame


class ConnectionGuard:
    """Makes the server's connections, and knows how many are open.

    Args:
        max_open: TCP connections at once; the next is dropped before it says a word.
        message_timeout_s: from the first to the last fragment of a message [s].
    """

    def __init__(self, max_open: int, message_timeout_s: float) -> None:
        self.max_open, self.message_timeout_s = max_open, message_timeout_s
        self.open = 0

    def __call__(self, *args: Any, **kwargs: Any) -> "GuardedConnection":
        """One more connection, as the websocket library asks for it."""
        return GuardedConnection(self, *args, **kwargs)


class GuardedConnection(ServerConnection):
    """A connection that is dropped when there are too many, or when its message takes too long."""

    def __init__(self, guard: ConnectionGuard, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._guard = guard
        self._deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Count it, and drop it at once if there are too many."""
        super().connection_made(transport)
        self._guard.open += 1
        if self._guard.open > self._guard.max_open:
            self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """Count it out again."""
        self._guard.open -= 1
        self._stop_clock()
        super().connection_lost(exc)

    def process_event(self, event: Any) -> None:
        """Start the clock at a message's first fragment, stop it at the last."""
        if isinstance(event, Frame) and event.opcode.name in ("TEXT", "BINARY", "CONT"):
            if event.fin:
                self._stop_clock()
            elif self._deadline is None:
                self._deadline = self.loop.call_later(self._guard.message_timeout_s, self.transport.abort)
        super().process_event(event)

    def _stop_clock(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
