"""The robot's side of `robopolicy serve`: one file that needs numpy, msgpack and websockets, and nothing of ours.

It uses openpi's wire protocol, so it also works with an openpi server, and openpi's client works with our server. The file
can be copied to a robot computer by itself; its syntax is that of Python 3.9, since robot computers often have old versions.

    client = PolicyClient("127.0.0.1", 8000)
    actions = client.infer({"ee_pose": pose, "front": image, "prompt": "lift the red cube"})["actions"]
"""

import logging
import re
import socket
import ssl
import time
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any, Optional

import msgpack
import numpy as np
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus
from websockets.sync.client import ClientConnection, connect

logger = logging.getLogger("robopolicy.client")

RESET_KEY = "reset"
"""Observation key that resets the policy's memory before this observation."""
ACTIONS_PER_CALL_KEY = "actions_per_call"
"""Observation key: number of actions of each reply that are executed; the server compares it with the policy's frame stride."""

MAX_CONTAINERS = 256
MAX_ENTRIES = 256
MAX_DIMENSIONS = 8
MAX_TEXT_BYTES = 16384
SAFE_DTYPE = re.compile(r"[<>=|]?(b1|[iu][1248]|f[248])")


class ProtocolError(ValueError):
    """A message violates the wire protocol; the error's text may be sent to the peer."""


class PolicyServerError(RuntimeError):
    """The server refused an observation or failed on it; the error's text is from the server."""


def pack(message: Any) -> bytes:
    """A message as openpi's msgpack bytes; arrays and NumPy scalars are tagged maps with bytes keys.

    Raises:
        ProtocolError: an array is of objects, text, complex numbers or records, or a value has a type that msgpack lacks.
    """
    try:
        packed = msgpack.packb(message, default=_tag)
    except (TypeError, OverflowError, ValueError) as error:
        raise ProtocolError(f"message can't be packed: {error}") from None
    assert packed is not None
    return packed


def unpack(data: bytes) -> Any:
    """The message in `data`, with arrays as read-only views of it; safe for untrusted bytes.

    Accepted are at most 256 maps and lists of at most 256 entries each, text up to 16 kB, and arrays of kinds b i u f with up
    to 8 axes whose size is that of their shape. Memory is bounded by the size of `data`: limit that before calling.

    Raises:
        ProtocolError: `data` is something else.
    """
    containers = 0

    def count(container: Any) -> Any:
        nonlocal containers
        containers += 1
        if containers > MAX_CONTAINERS:
            raise ProtocolError(f"message has more than {MAX_CONTAINERS} maps and lists")
        return _untag(container) if isinstance(container, dict) else container

    try:
        return msgpack.unpackb(
            data,
            object_hook=count,
            list_hook=count,
            ext_hook=_refuse_extension,
            max_str_len=MAX_TEXT_BYTES,
            max_array_len=MAX_ENTRIES,
            max_map_len=MAX_ENTRIES,
            max_ext_len=0,
        )
    except ProtocolError:
        raise
    except (ValueError, TypeError, OverflowError, RecursionError, msgpack.UnpackException) as error:
        raise ProtocolError(f"not a msgpack message within the limits ({type(error).__name__})") from None


class PolicyClient:
    """A policy on a server, used like a local one.

    The policy's memory belongs to the connection: a reconnect begins a new episode, and so does the first `infer` after
    `reset()`. One observation is in flight at a time; the object is not thread-safe.

    Attributes:
        metadata: sent by the server when the connection was opened: `observation` {key: {shape, dtype}}, action spec, rates.
        reconnects: number of connections after the first; each of them began with an empty memory.
    """

    def __init__(
        self,
        host: str = "127.0.0.1",
        port: Optional[int] = 8000,
        api_key: Optional[str] = None,
        *,
        timeout_s: float = 10.0,
        connect_timeout_s: float = 60.0,
        max_reply_bytes: int = 16 * 2**20,
        tls: Optional[ssl.SSLContext] = None,
    ) -> None:
        """Connect, waiting up to `connect_timeout_s` [s] for a server that is still starting.

        Args:
            host: a name or address, or a whole `ws://` or `wss://` address.
            port: its port; None: that of the address.
            api_key: sent as `Authorization: Api-Key <key>`.
            timeout_s: time limit for one reply [s].
            connect_timeout_s: time limit for connecting, which is tried repeatedly with growing pauses [s].
            max_reply_bytes: a longer reply closes the connection [bytes].
            tls: certificates to trust, for `wss://`; default: the system's.

        Raises:
            PermissionError: the server refuses the key.
            ConnectionError: no server within `connect_timeout_s`.
        """
        name = f"[{host}]" if ":" in host else host  # an IPv6 address goes in brackets
        address = host if "://" in host else f"{'wss' if tls else 'ws'}://{name}"
        self._uri = address if port is None else f"{address}:{port}"
        self._headers = {"Authorization": f"Api-Key {api_key}"} if api_key else None
        self._timeout_s, self._connect_timeout_s = timeout_s, connect_timeout_s
        self._options: dict[str, Any] = {
            "compression": None,
            "max_size": max_reply_bytes,
            "open_timeout": timeout_s,
            "close_timeout": 1.0,  # a hung server doesn't answer the close either
        }
        if tls is not None:
            self._options["ssl"] = tls
        self._stack = ExitStack()
        self._connection: Optional[ClientConnection] = None
        self._reset_next = False
        self.metadata: dict[str, Any] = {}
        self.reconnects = -1
        self._connected()

    def infer(self, obs: Mapping[str, Any]) -> dict[str, Any]:
        """The reply to one observation: `actions` (K, width) in the demos' units, and timings [ms].

        If the connection was lost, it is opened again and the observation is sent once more. The policy's memory then begins
        with this observation, `reconnects` is increased, and a warning is logged.

        Raises:
            PolicyServerError: the server refused the observation; the next call opens a new connection.
            TimeoutError: no reply within `timeout_s`; the next call opens a new connection.
            ConnectionError: the server could not be reached again within `connect_timeout_s`.
        """
        if self._reset_next:
            obs = self._with_reset(obs)
        message = pack(dict(obs))
        self._connected()
        try:
            reply = self._exchange(message)
        except ConnectionClosed:
            self.close()
            logger.warning("connection to %s was lost; the policy's memory starts again", self._uri)
            try:
                reply = self._exchange(message)
            except ConnectionClosed as error:
                self.close()
                raise ConnectionError(f"{self._uri} closes the connection at this observation: {error}") from None
        self._reset_next = False
        if isinstance(reply, str):
            self.close()
            raise PolicyServerError(reply)
        return unpack(reply)

    def reset(self) -> None:
        """Begin a new episode with the next observation."""
        self._reset_next = True

    def close(self) -> None:
        """Close the connection; the next `infer` opens another."""
        self._connection = None
        self._stack.close()

    def __enter__(self) -> "PolicyClient":
        """The client itself; the connection is closed at the end of the block."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the connection."""
        self.close()

    def _with_reset(self, obs: Mapping[str, Any]) -> Mapping[str, Any]:
        if RESET_KEY in self.metadata.get("optional", {}):
            return {**obs, RESET_KEY: True}
        self.close()  # a server without the key: a new connection is a new episode
        return obs

    def _exchange(self, message: bytes) -> Any:
        connection = self._connected()
        try:
            connection.send(message)
            return connection.recv(timeout=self._timeout_s)
        except TimeoutError:
            self.close()  # a late reply must not be taken for the next one
            raise TimeoutError(f"no answer from {self._uri} within {self._timeout_s} s") from None

    def _connected(self) -> ClientConnection:
        if self._connection is None:
            self._connection = self._open()
            self.reconnects += 1
        return self._connection

    def _open(self) -> ClientConnection:
        deadline_s = time.monotonic() + self._connect_timeout_s
        pause_s = 0.05
        while True:
            try:
                connection = self._stack.enter_context(
                    connect(self._uri, additional_headers=self._headers, **self._options)
                )
                self.metadata = unpack(connection.recv(timeout=self._timeout_s))
                return connection
            except (OSError, InvalidHandshake, ConnectionClosed, TimeoutError, AssertionError) as error:
                # AssertionError: raised by the library if the other end sends data before the handshake
                self._stack.close()
                _raise_if_refused(error, self._uri)
                if time.monotonic() + pause_s > deadline_s:
                    message = f"no policy server at {self._uri} within {self._connect_timeout_s} s: {error}"
                    raise ConnectionError(message) from None
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, 2.0)


class ChunkBroker:
    """Single actions from a policy that returns chunks: requests a new chunk after `replan_every` actions.

    The policy then sees every `replan_every`-th frame, so it must be trained with that frame stride or a multiple of it, in
    which case a robopolicy server keeps several interleaved memories.
    """

    def __init__(self, client: PolicyClient, replan_every: int = 1) -> None:
        """Execute the first `replan_every` actions of each chunk of `client`'s policy.

        Raises:
            ValueError: the policy's chunks are shorter than that.
        """
        chunk = client.metadata.get("chunk", replan_every)
        if not 1 <= replan_every <= chunk:
            raise ValueError(
                f"replan_every is {replan_every}; the policy answers with chunks of {chunk}, so use 1 .. {chunk}"
            )
        self._client, self._replan_every = client, replan_every
        self._announces = ACTIONS_PER_CALL_KEY in client.metadata.get("optional", {})
        self._actions: list[np.ndarray] = []

    def infer(self, obs: Mapping[str, Any]) -> np.ndarray:
        """The action (width,) for the current step; `obs` is sent only if a new chunk is needed."""
        if not self._actions:
            spacing = {ACTIONS_PER_CALL_KEY: self._replan_every} if self._announces else {}
            self._actions = list(self._client.infer({**obs, **spacing})["actions"][: self._replan_every])
        return self._actions.pop(0)

    def reset(self) -> None:
        """Begin a new episode: the rest of the current chunk is dropped."""
        self._actions = []
        self._client.reset()


def _raise_if_refused(error: Exception, uri: str) -> None:
    status = error.response.status_code if isinstance(error, InvalidStatus) else None
    if status in (401, 403):
        raise PermissionError(
            f"{uri} refuses this api_key (HTTP {status}); ask the operator of the server for the key"
        ) from None
    if isinstance(error, (ssl.SSLCertVerificationError, socket.gaierror)):
        raise ConnectionError(f"{uri}: {error}") from None


def _tag(value: Any) -> Any:
    if not isinstance(value, (np.ndarray, np.generic)):
        raise TypeError(f"a value is a {type(value).__name__}; send numbers, text, lists, maps and NumPy arrays")
    if value.dtype.kind not in "biuf":
        raise TypeError(f"an array has dtype {value.dtype}; send booleans, integers or floats")
    if isinstance(value, np.ndarray):
        return {b"__ndarray__": True, b"data": value.tobytes(), b"dtype": value.dtype.str, b"shape": list(value.shape)}
    return {b"__npgeneric__": True, b"data": value.item(), b"dtype": value.dtype.str}


def _untag(value: dict[Any, Any]) -> Any:
    if b"__ndarray__" in value:
        return _array(value.get(b"data"), _dtype(value.get(b"dtype")), value.get(b"shape"))
    if b"__npgeneric__" in value:
        number = value.get(b"data")
        if not isinstance(number, (bool, int, float)):
            raise ProtocolError("a NumPy scalar is not a number")
        with np.errstate(over="ignore"):
            return _dtype(value.get(b"dtype")).type(number)
    return value


def _array(data: Any, dtype: np.dtype, shape: Any) -> np.ndarray:
    if not isinstance(data, bytes) or not isinstance(shape, list) or len(shape) > MAX_DIMENSIONS:
        raise ProtocolError(f"an array needs bytes and a shape of at most {MAX_DIMENSIONS} axes")
    size = dtype.itemsize
    for length in shape:
        if type(length) is not int or length < 0:
            raise ProtocolError("an array's shape holds something other than lengths of 0 or more")
        size *= length
    if size != len(data):
        raise ProtocolError(f"an array's shape and dtype ask for {min(size, 2**63)} bytes; it has {len(data)}")
    if dtype.kind == "b":  # NumPy booleans must be the byte 0 or 1
        return (np.frombuffer(data, np.uint8) != 0).reshape(shape)
    return np.frombuffer(data, dtype).reshape(shape)


def _dtype(name: Any) -> np.dtype:
    text = name.decode("ascii", "replace") if isinstance(name, bytes) else name
    if not isinstance(text, str) or not SAFE_DTYPE.fullmatch(text):
        raise ProtocolError("an array's dtype is neither a boolean, an integer nor a float")
    return np.dtype(text)


def _refuse_extension(code: int, data: bytes) -> Any:
    raise ProtocolError("message holds a msgpack extension; none is used here")
