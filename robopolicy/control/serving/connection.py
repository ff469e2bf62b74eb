"""Protection against idle connections: a cap on those without a handshake, and a time limit for each message."""

import asyncio
from collections import Counter
from typing import Any

from websockets.asyncio.server import ServerConnection
from websockets.frames import Frame

PENDING = 64
"""Most TCP connections at once that have not finished their handshake."""
PENDING_PER_ADDRESS = 16
"""The same, from one address."""


class ConnectionGuard:
    """Creates the server's connections, and drops those that stay open without a handshake.

    A connection is pending until its websocket handshake, key included, is done. Pending ones don't count as clients: if
    there are too many, the oldest of the busiest address is dropped, so that a client with a key, whose handshake takes
    milliseconds, can always connect, and so can requests to /healthz.

    Args:
        message_timeout_s: from the first to the last fragment of a message [s].
    """

    def __init__(self, message_timeout_s: float) -> None:
        self.message_timeout_s = message_timeout_s
        self.pending: dict["GuardedConnection", str] = {}
        """Connection -> address, oldest first."""

    def __call__(self, *args: Any, **kwargs: Any) -> "GuardedConnection":
        """A new connection; the websocket library calls this."""
        return GuardedConnection(self, *args, **kwargs)

    def add(self, connection: "GuardedConnection", address: str) -> None:
        """Count a new connection, and drop another one if there are too many."""
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
        """The connection is no longer pending: its handshake is done, or it is closed."""
        self.pending.pop(connection, None)


class GuardedConnection(ServerConnection):
    """A connection that is dropped when too many are pending, or when its message takes too long."""

    def __init__(self, guard: ConnectionGuard, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._guard = guard
        self._deadline: asyncio.TimerHandle | None = None

    async def handshake(self, *args: Any, **kwargs: Any) -> None:
        """The library's handshake; a refused client stays pending until it has left."""
        await super().handshake(*args, **kwargs)
        if self.protocol.handshake_exc is None:
            self._guard.admit(self)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Count it among the pending ones."""
        super().connection_made(transport)
        address = transport.get_extra_info("peername")
        self._guard.add(self, address[0] if address else "")

    def data_received(self, data: bytes) -> None:
        """Process received bytes; discard those that arrive after the connection was dropped."""
        if not self.transport.is_closing():
            super().data_received(data)

    def connection_lost(self, exc: Exception | None) -> None:
        """Remove it from the pending ones."""
        self._guard.admit(self)
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
