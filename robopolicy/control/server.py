"""A policy behind openpi's websocket protocol, for robots and simulators on this machine or others.

The server first sends its metadata; then every binary message is an observation and is answered with actions. Each
connection has its own memory. A message that can't be used is answered with a short text frame, and its connection is
closed: no traceback, no path, bounded memory, and no effect on other clients. See `client.unpack` for what a message may
hold.
"""

import asyncio
import contextlib
import http
import logging
import signal
import ssl
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

try:
    import msgpack  # noqa: F401
    from websockets.asyncio.server import ServerConnection
    from websockets.asyncio.server import serve as serve_websockets
    from websockets.exceptions import ConnectionClosed
    from websockets.frames import CloseCode
    from websockets.http11 import Request, Response
except ImportError as error:
    missing = (error.name or "a package").partition(".")[0]
    raise ImportError(f"serving needs {missing}, which isn't installed; pip install 'robopolicy[serve]'") from error

from robopolicy.client import ProtocolError, pack
from robopolicy.control.serving.access import is_loopback, key_fits
from robopolicy.control.serving.batching import InferenceThread
from robopolicy.control.serving.connection import ConnectionGuard
from robopolicy.control.serving.mapping import KeyMapping
from robopolicy.control.serving.metrics import Metrics
from robopolicy.control.serving.protocol import ObservationReader
from robopolicy.control.serving.session import Session
from robopolicy.heap import keep_freed_memory
from robopolicy.types import Policy

logger = logging.getLogger("robopolicy.serve")

OTHER_BYTES = 2**20
"""Bytes that one message may have in addition to its images and to 8 bytes per number that the policy reads."""
KEPT_BYTES = 64 * 2**20
"""Freed memory that the process keeps for the images of the next messages."""
LOG_LINES, LOG_S = 60, 60.0
"""Log lines about clients' mistakes, at most, per period [s]; further mistakes are only counted in the metrics."""


@dataclass(frozen=True)
class ServerLimits:
    """Limits on what clients may use."""

    max_connections: int = 128
    """Clients at once; further ones get status 503."""
    max_batch: int = 64
    """Observations in one forward pass."""
    max_message_bytes: int | None = None
    """Size of one message; None: 1 MiB plus the largest accepted image of each camera."""
    handshake_timeout_s: float = 3.0
    """Longest time from the TCP connection to the end of the websocket's handshake [s]."""
    message_timeout_s: float = 10.0
    """Longest time from the first to the last fragment of a message [s]."""
    keepalive_s: float = 20.0
    """Time between two pings, and time limit of the reply [s]; a client that hangs within a frame can't reply."""
    drain_timeout_s: float = 5.0
    """Time for pending replies when the server stops [s]."""


def serve(
    policy: Policy,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    api_key: str | None = None,
    tls: ssl.SSLContext | None = None,
    mapping: str | Path = "native",
    limits: ServerLimits | None = None,
    on_ready: Callable[[str, int], None] | None = None,
) -> None:
    """Serve a policy until SIGTERM or Ctrl-C, then send pending replies and close.

    Args:
        policy: what `load_policy` or `runtime.load` returns.
        host: address to listen on; one that other machines can reach needs a key.
        port: 0 takes a free one.
        api_key: clients must send `Authorization: Api-Key <key>`.
        tls: serves wss with this certificate; `tls_context` reads one.
        mapping: preset or YAML file that maps the clients' names to the policy's.
        limits: limits on what clients may use.
        on_ready: called with address and port once the policy is warm and the server listens.

    Raises:
        ValueError: a public address without a key, or an unknown mapping.
    """
    reader = ObservationReader(policy.spec, KeyMapping.read(mapping), getattr(policy, "token_spec", None))
    server = PolicyServer(policy, reader, host=host, port=port, api_key=api_key, tls=tls, limits=limits)
    if tls is None and not is_loopback(host):
        logger.warning("without --tls-cert, anyone on the network can read the key, the images and the actions")
    keep_freed_memory(at_most=KEPT_BYTES)
    asyncio.run(server.run(on_ready))


class PolicyServer:
    """The server itself; `serve` runs it."""

    def __init__(
        self,
        policy: Policy,
        reader: ObservationReader,
        *,
        host: str = "127.0.0.1",
        port: int = 8000,
        api_key: str | None = None,
        tls: ssl.SSLContext | None = None,
        limits: ServerLimits | None = None,
    ) -> None:
        if api_key is None and not is_loopback(host):
            raise ValueError(f"--host {host} is open to the network; give --api-key-file, or listen on 127.0.0.1")
        if not 0 <= port <= 65535:
            raise ValueError(f"--port is {port}; expected 0 to 65535")
        self.host, self.port, self.limits = host, port, limits or ServerLimits()
        self.metrics = Metrics()
        self._reader, self._tls, self._api_key = reader, tls, api_key
        self._inference = InferenceThread(policy, reader.spec, self.metrics, self.limits.max_batch)
        self._metadata = pack(reader.metadata())
        self._busy: set[ServerConnection] = set()
        self._draining = False
        self._log_began_s, self._logged = 0.0, 0

    async def run(self, on_ready: Callable[[str, int], None] | None = None) -> None:
        """Warm up, listen, and serve until `stop` or a signal."""
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        await self._loop.run_in_executor(None, self._inference.start)
        if threading.current_thread() is threading.main_thread():
            for name in (signal.SIGTERM, signal.SIGINT):
                self._loop.add_signal_handler(name, self._stop.set)
        limits = self.limits
        guard = ConnectionGuard(limits.message_timeout_s)
        library = logging.getLogger("robopolicy.serve.websockets")
        library.setLevel(logging.CRITICAL)  # anyone who connects can trigger its messages
        try:
            async with serve_websockets(
                self._converse,
                self.host,
                self.port,
                ssl=self._tls,
                origins=[None],  # browsers send their page's origin; web pages must not reach a server on loopback
                compression=None,
                process_request=self._admit,
                server_header=None,
                open_timeout=limits.handshake_timeout_s,
                ping_interval=limits.keepalive_s,
                ping_timeout=limits.keepalive_s,
                close_timeout=2.0,
                max_size=limits.max_message_bytes or OTHER_BYTES + self._reader.largest_message_bytes(),
                max_queue=1,
                logger=library,
                create_connection=cast(type[ServerConnection], guard),
            ) as websockets:
                self.port = websockets.sockets[0].getsockname()[1]
                logger.info("serving on %s:%d", self.host, self.port)
                if on_ready is not None:
                    on_ready(self.host, self.port)
                await self._stop.wait()
                await self._drain(websockets)
        finally:
            self._inference.stop()

    def stop(self) -> None:
        """Send pending replies, close, and end `run`; callable from any thread, and after the end."""
        with contextlib.suppress(RuntimeError):  # the loop is closed: it has ended
            self._loop.call_soon_threadsafe(self._stop.set)

    async def _converse(self, connection: ServerConnection) -> None:
        address = connection.remote_address
        session = Session(self._reader, self.metrics, name=f"{address[0]}:{address[1]}" if address else "client")
        self.metrics.count("connections_total")
        self.metrics.count("connections")
        try:
            await connection.send(self._metadata)
            while not self._draining:
                data = await connection.recv()
                received_s = time.monotonic()
                self._busy.add(connection)
                self.metrics.count("requests_total")
                if isinstance(data, str):
                    raise ProtocolError(
                        "received a text message; expected a binary one, a msgpack map of the observation"
                    )
                await connection.send(await self._inference.answer(session, data))
                self._busy.discard(connection)
                session.prev_total_ms = (time.monotonic() - received_s) * 1e3
                self.metrics.observe("request_seconds", session.prev_total_ms / 1e3)
            await connection.close(CloseCode.GOING_AWAY, "the server stops")
        except ConnectionClosed:
            pass
        except ProtocolError as error:
            self.metrics.count("errors_total")
            if self._may_log():
                logger.warning("%s: %s", session.name, str(error))  # text: the log must not hold the message
            with contextlib.suppress(ConnectionClosed):
                await connection.send(str(error)[:500])
                await connection.close(CloseCode.INTERNAL_ERROR, "see the text message before")
        finally:
            self._busy.discard(connection)
            self.metrics.count("connections", -1)

    def _may_log(self) -> bool:
        """Whether the log's quota of clients' mistakes has room for one more line."""
        now_s = time.monotonic()
        if now_s - self._log_began_s > LOG_S:
            self._log_began_s, self._logged = now_s, 0
        self._logged += 1
        if self._logged == LOG_LINES + 1:
            logger.warning("clients make more than %d mistakes in %g s; the rest is not logged", LOG_LINES, LOG_S)
        return self._logged <= LOG_LINES

    def _admit(self, connection: ServerConnection, request: Request) -> Response | None:
        path = request.path.partition("?")[0]
        if path == "/healthz":
            return connection.respond(http.HTTPStatus.OK, "OK\n")
        if not key_fits(request.headers.get_all("Authorization"), self._api_key):
            self.metrics.count("unauthorized_total")
            return connection.respond(
                http.HTTPStatus.UNAUTHORIZED, "Authorization: Api-Key <key> is missing or wrong\n"
            )
        if path == "/metrics":
            return connection.respond(http.HTTPStatus.OK, self.metrics.text())
        if self._draining or self.metrics.value("connections") >= self.limits.max_connections:
            self.metrics.count("turned_away_total")
            return connection.respond(http.HTTPStatus.SERVICE_UNAVAILABLE, "no room for another client\n")
        return None

    async def _drain(self, websockets: Any) -> None:
        self._draining = True
        idle = [connection for connection in websockets.connections if connection not in self._busy]
        await asyncio.gather(*(connection.close(CloseCode.GOING_AWAY, "the server stops") for connection in idle))
        deadline_s = time.monotonic() + self.limits.drain_timeout_s
        while self._busy and time.monotonic() < deadline_s:
            await asyncio.sleep(0.01)
