"""A robot behind a `RobotServer`, on this machine or another."""

import contextlib
import logging
import ssl
import threading
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np

from robopolicy.arrays import Float
from robopolicy.client import pack, unpack
from robopolicy.components import ConfigError, Options, option, register
from robopolicy.control.profile import profile_from_dict
from robopolicy.control.robot import RobotError
from robopolicy.control.robots.base import RobotContext, host_and_port
from robopolicy.control.serving.access import read_api_key, trusted, warn_of_plain_text
from robopolicy.control.timing import Clock, SystemClock
from robopolicy.types import Command, Observation

logger = logging.getLogger(__name__)

MAX_MESSAGE_BYTES = 64 * 2**20
"""Largest message accepted from a robot [bytes]; a larger one closes the connection."""


@dataclass(frozen=True)
class WebsocketOptions(Options):
    """Options of `websocket`."""

    address: str = "127.0.0.1:8100"
    """HOST:PORT of the `RobotServer`."""
    tls: bool = False
    """Encrypt the connection, as wss://HOST:PORT does."""
    ca: str | None = None
    """File of certificates (PEM) to trust with `tls`; null: the system's."""
    key_file: str | None = None
    """File with the server's API key in its first line."""
    timeout_s: float = option(0.25, "> 0")
    """Longest time without a message from the robot before calls raise [s]."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.ca is not None and not self.tls:
            raise ConfigError(f"--robot-ca is for wss://HOST:PORT, got ws://{self.address}")


class WebsocketRobot(AbstractContextManager["WebsocketRobot", None]):
    """A robot behind a `RobotServer`, on this machine or another.

    The server streams joint positions. `observe` requests an observation and waits for it, so call it in the policy's
    thread, not in the control loop. Calls raise if the robot has sent nothing for `timeout_s`. The robot stops itself when
    no command arrives.

    Args:
        host: host name or address of the server.
        port: port of the server.
        timeout_s: longest time without a message from the robot [s].
        api_key: API key, sent as `Authorization: Api-Key <key>`.
        tls: client context for an encrypted connection, from `robopolicy.control.serving.access.trusted`; None: plain text.
        clock: source of time; None: the system's clock.

    Raises:
        RobotError: there is no `RobotServer` at the address, or it refuses the key.
    """

    def __init__(
        self,
        host: str = "127.0.0.1",
        port: int = 8100,
        timeout_s: float = 0.25,
        api_key: str | None = None,
        tls: ssl.SSLContext | None = None,
        clock: Clock | None = None,
    ) -> None:
        if tls is None:
            warn_of_plain_text(logger, host, f"robot at {host}:{port}")
        self.timeout_s, self.clock = timeout_s, clock or SystemClock()
        self._stack = contextlib.ExitStack()
        hello = self._connect(host, port, api_key, tls)
        if not isinstance(hello, dict) or not {"profile", "control_dt", "command_dt", "qpos"} <= set(hello):
            self._stack.close()
            raise RobotError(f"the server at {host}:{port} is not a RobotServer; give a policy's server as --server")
        self.profile = profile_from_dict(hello["profile"], f"robot at {host}:{port}")
        self.control_dt, self.command_dt = float(hello["control_dt"]), float(hello["command_dt"])
        self._qpos = np.asarray(hello["qpos"], np.float64)
        self._heard_s = self.clock.now()
        self._lost: str | None = None  # why the connection can't be used any more
        self._stopped = False
        self._asked = 0  # number of the newest request for an observation
        self._seen: tuple[int, Observation, float] | None = None  # request number, its observation, age [s]
        self._observed = threading.Event()
        threading.Thread(target=self._listen, name="robot", daemon=True).start()

    def _connect(self, host: str, port: int, api_key: str | None, tls: ssl.SSLContext | None) -> Any:
        """Open the connection; returns the server's first message."""
        try:
            from websockets.exceptions import ConnectionClosed, InvalidStatus, WebSocketException
            from websockets.sync.client import connect
        except ImportError:
            raise ImportError("a robot over the network needs websockets; pip install 'robopolicy[robot]'") from None
        uri, key = f"{'wss' if tls else 'ws'}://{host}:{port}", {"Authorization": f"Api-Key {api_key}"}
        try:
            self._connection = self._stack.enter_context(
                connect(
                    uri,
                    ssl=tls,
                    additional_headers=key if api_key else None,
                    compression=None,  # compressing images would add latency
                    max_size=MAX_MESSAGE_BYTES,
                    close_timeout=0.2,
                    open_timeout=5,
                )
            )
            return unpack(_bytes(self._connection.recv(timeout=5)))
        except InvalidStatus as error:
            raise RobotError(
                f"the robot at {host}:{port} refuses: HTTP {error.response.status_code}; is its key right?"
            ) from None
        except ConnectionClosed as error:
            if error.rcvd is None:
                raise RobotError(f"no robot at {host}:{port}: the connection broke") from None
            raise RobotError(f"the robot at {host}:{port} refuses: {error.rcvd.reason}") from None
        except (OSError, TimeoutError, WebSocketException) as error:
            raise RobotError(f"no robot at {host}:{port}: {error or 'no answer'}") from None
        except AssertionError:  # the websockets library raises it if the server sends data before the handshake
            raise RobotError(f"no robot at {host}:{port}: not a websocket server") from None

    def observe(self) -> Observation:
        """Request an observation and wait for it.

        Its time is that of the request, or the time of arrival minus the age that the robot reports, whichever is earlier.

        Raises:
            RobotError: no observation arrives within `timeout_s`, or the connection is lost.
        """
        self._refuse_if_lost()
        asked_s = self.clock.now()
        self._asked += 1
        self._observed.clear()
        self._send({"observe": self._asked})
        while self._observed.wait(max(asked_s + self.timeout_s - self.clock.now(), 0.0)):
            self._observed.clear()
            self._refuse_if_lost()
            if self._seen is not None and self._seen[0] == self._asked:  # not a late reply to an earlier request
                _, seen, age_s = self._seen
                return Observation(seen.obs, seen.instruction, min(asked_s, self.clock.now() - age_s))
        self._refuse_if_lost()
        raise RobotError(f"the robot sent no observation within {self.timeout_s} s")

    def qpos(self) -> Float[np.ndarray, " joints"]:
        """Newest joint positions received [rad]."""
        return self._qpos

    def command(self, command: Command) -> None:
        """Send one command.

        Raises:
            RobotError: the robot was stopped, is lost, or has sent nothing for `timeout_s`.
        """
        if self._stopped:
            raise RobotError("the robot was stopped; it accepts no further commands")
        if (silent_s := self.clock.now() - self._heard_s) > self.timeout_s:
            self._lost = self._lost or f"no message from the robot for {silent_s:.2f} s"
        self._refuse_if_lost()
        self._send(message_of(command))

    def stop(self) -> None:
        """Send a stop message and disconnect."""
        if not self._stopped:
            self._stopped = True
            with contextlib.suppress(RobotError):
                self._send({"stop": True})
            self._stack.close()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _listen(self) -> None:
        """The receiving thread: store what the robot sends, until the connection ends."""
        try:
            for received in self._connection:
                message = unpack(_bytes(received))
                self._heard_s = self.clock.now()
                if "error" in message:
                    self._lost = str(message["error"])
                    self._observed.set()
                if "qpos" in message:
                    self._qpos = np.asarray(message["qpos"], np.float64)
                if "obs" in message:
                    seen = Observation(message["obs"], message.get("instruction"))
                    self._seen = message.get("observe"), seen, float(message.get("age_s", 0.0))
                    self._observed.set()
            self._lost = self._lost or "the robot closed the connection"
        except Exception as error:  # the next `command` or `observe` reports it
            self._lost = self._lost or f"connection to the robot lost: {type(error).__name__}"
        self._observed.set()  # wake a waiting `observe`, which then raises

    def _send(self, message: dict[str, object]) -> None:
        try:
            self._connection.send(pack(message))
        except Exception as error:
            self._lost = self._lost or f"connection to the robot lost: {type(error).__name__}"
            raise RobotError(self._lost) from None

    def _refuse_if_lost(self) -> None:
        if self._lost:
            raise RobotError(self._lost)


@register("robot", "websocket", WebsocketOptions)
def make_websocket(options: WebsocketOptions, context: RobotContext) -> WebsocketRobot:
    """A robot behind a `RobotServer`: ws://HOST:PORT or wss://HOST:PORT."""
    host, port = host_and_port(options.address, "--robot ws://")
    key = read_api_key(options.key_file) if options.key_file else None
    return WebsocketRobot(host, port, options.timeout_s, key, trusted(options.ca) if options.tls else None)


def message_of(command: Command) -> dict[str, object]:
    """A command as the message that a `RobotServer` reads; for a single gripper, `opening_m` is a number, not a list."""
    openings_m = command.gripper_opening_m
    message: dict[str, object] = {
        "qpos": command.joint_position_rad,
        "opening_m": float(openings_m[0]) if len(openings_m) == 1 else openings_m,
        "stamp_s": float(command.stamp_s),
    }
    return message | ({"base": command.base_velocity} if len(command.base_velocity) else {})


def _bytes(message: str | bytes) -> bytes:
    return message.encode() if isinstance(message, str) else message
