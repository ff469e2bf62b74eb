"""Protection against idle connections: a limit on connections without a handshake, and a time limit for each message."""

import asyncio
from collections import Counter
from typing import Any

from websockets.asyncio.server import ServerConnection
from websockets.frames import Frame

PENDING = 64
"""Largest number of open TCP connections that have not finished their websocket handshake."""
PENDING_PER_ADDRESS = 16
"""Largest number of such connections from one address."""


class ConnectionGuard:
    """Creates the server's connections, and drops pending ones when there are too many.

    A connection is pending until its websocket handshake, including the check of the API key, is done. Pending connections
    don't count towards the server's limit on clients. If there are too many, the oldest one from the address with the most
    is dropped. A client with a key, whose handshake takes milliseconds, can therefore always connect, and requests to
    /healthz are always answered.

    Args:
        message_timeout_s: time limit from the first to the last fragment of a message [s].
    """

    def __init__(self, message_timeout_s: float) -> None:
        self.message_timeout_s = message_timeout_s
        self.pending: dict["GuardedConnection", str] = {}
        """Connection -> address, oldest first."""

    def __call__(self, *args: Any, **kwargs: Any) -> "GuardedConnection":
        """Create a connection; the websockets library calls this for each client."""
        return GuardedConnection(self, *args, **kwargs)

    def add(self, connection: "GuardedConnection", address: str) -> None:
        """Add a connection to the pending ones, and drop the oldest one of the busiest address if there are too many."""
        self.pending[connection] = address
        counts = Counter(self.pending.values())
        if counts[address] > PENDING_PER_ADDRESS:
            busiest = address
        elif len(self.pending) > PENDING:
            busiest = counts.most_common(1)[0][0]
        else:
            return
        oldest = next(pending for pending, where in self.pending.items() if where == busiest)
        del self.pending[oldest]
        oldest.transport.abort()

    def admit(self, connection: "GuardedConnection") -> None:
        """Remove a connection from the pending ones: its handshake is done, or it is closed."""
        self.pending.pop(connection, None)


class GuardedConnection(ServerConnection):
    """A connection that reports to a `ConnectionGuard`, and that is dropped when a message takes too long."""

    def __init__(self, guard: ConnectionGuard, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._guard = guard
        self._deadline: asyncio.TimerHandle | None = None

    async def handshake(self, *args: Any, **kwargs: Any) -> None:
        """Perform the library's handshake; a refused client stays pending until it disconnects."""
        await super().handshake(*args, **kwargs)
        if self.protocol.handshake_exc is None:
            self._guard.admit(self)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Add this connection to the pending ones."""
        super().connection_made(transport)
        address = transport.get_extra_info("peername")
        self._guard.add(self, address[0] if address else "")

    def data_received(self, data: bytes) -> None:
        """Process received bytes; discard those that arrive after the connection was dropped."""
        if not self.transport.is_closing():
            super().data_received(data)

    def connection_lost(self, exc: Exception | None) -> None:
        """Remove this connection from the pending ones."""
        self._guard.admit(self)
        self._stop_clock()
        super().connection_lost(exc)

    def process_event(self, event: Any) -> None:
        """Start the timer at the first fragment of a message, and stop it at the last."""
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
