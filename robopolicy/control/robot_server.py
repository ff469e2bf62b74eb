"""The robot's end of `WebsocketRobot`: serves any `Robot` to one client at a time over a websocket.

Messages are msgpack maps as `robopolicy.client` packs them. The server sends the first one, with `profile`,
`control_dt`, `command_dt` and `qpos`. It then sends `qpos` continuously; `obs`, their `age_s` and `instruction` in reply to a
request `observe`, together with the request's number; and `error` when the robot has stopped itself. The client
sends commands (`qpos`; `opening_m`, an array with a number for each gripper, or a number for a single one; `stamp_s`; for a
mobile base also its velocities `base`), requests `observe` with a number, and `stop`.
"""

import http
import logging
import math
import queue
import ssl
import threading
from contextlib import AbstractContextManager
from typing import Any

import numpy as np

from robopolicy.client import ProtocolError, pack, unpack
from robopolicy.control.guard import CommandGuard
from robopolicy.control.robot import REST_COMMANDS, Robot, RobotError
from robopolicy.control.serving.access import is_loopback, key_fits, warn_of_plain_text
from robopolicy.control.smoothing import BaseRamp
from robopolicy.control.timing import Clock, FixedGrid, SystemClock
from robopolicy.types import Command, printable

logger = logging.getLogger(__name__)

STATE_DT = 0.005
"""Time between two messages that hold the joint positions [s]."""
KNOWN_FIELDS = {"qpos", "opening_m", "stamp_s", "base", "observe", "stop"}
"""Fields of a client's messages."""
MAX_COMMAND_BYTES = 4096
"""Size of a client's message [bytes] above which its connection is closed."""


class RobotServer(AbstractContextManager["RobotServer", None]):
    """Serves `robot` from a separate thread until `close`.

    Commands are passed on at the robot's own rate through a `CommandGuard`, so a client that dies, hangs or is cut off
    leaves a robot that comes to rest within its limits. Each connection starts with a new guard.

    Args:
        robot: the robot to serve.
        host: address to listen on; one that other machines reach needs a key.
        port: port to listen on; 0: a free one, which the attribute `port` holds.
        deadline_s: longest silence of the client in the middle of a motion [s].
        api_key: clients must send `Authorization: Api-Key <key>`.
        tls: context of the certificate, from `robopolicy.control.serving.access.tls_context`; None: plain text.
        clock: source of time for playing commands; None: the system's.

    Raises:
        ValueError: other machines can reach `host`, and there is no key.
    """

    def __init__(
        self,
        robot: Robot,
        host: str = "127.0.0.1",
        port: int = 8100,
        deadline_s: float = 0.05,
        api_key: str | None = None,
        tls: ssl.SSLContext | None = None,
        clock: Clock | None = None,
    ) -> None:
        try:
            from websockets.sync.server import serve
        except ImportError:
            raise ImportError("serving a robot needs websockets; pip install 'robopolicy[robot]'") from None
        if api_key is None and not is_loopback(host):
            raise ValueError(f"host {host} is open to the network, where anyone could move the robot; give an api_key")
        if tls is None:
            warn_of_plain_text(logger, host, f"robot server on {host}:{port}")
        self.robot, self.deadline_s, self._api_key = robot, deadline_s, api_key
        self.clock = clock or SystemClock()
        self._taken = threading.Lock()
        self._server = serve(
            self._attend,
            host,
            port,
            ssl=tls,
            origins=[None],  # web pages must not reach the robot
            compression=None,
            process_request=self._admit,
            max_size=MAX_COMMAND_BYTES,
        )
        self.port: int = self._server.socket.getsockname()[1]
        self._thread = threading.Thread(target=self._server.serve_forever, name="robot-server", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Accept no more clients."""
        self._server.shutdown()
        self._thread.join(timeout=2.0)

    def __exit__(self, *_: object) -> None:
        self.close()

    def _admit(self, connection: Any, request: Any) -> Any:
        if key_fits(request.headers.get_all("Authorization"), self._api_key):
            return None
        return connection.respond(http.HTTPStatus.UNAUTHORIZED, "Authorization: Api-Key <key> is missing or wrong\n")

    def _attend(self, connection: Any) -> None:
        """Serve one client, from its connection until the robot is at rest."""
        if not self._taken.acquire(blocking=False):
            connection.close(1013, "another client is already driving this robot")
            return
        try:
            session = _Session(self.robot, connection, self.deadline_s, self.clock)
            session.run()
            logger.info("client left: %s", session.guard.stopped)
        finally:
            self._taken.release()


class _Session:
    """One client driving the robot: a thread for its messages, one for the joints, one for the cameras."""

    def __init__(self, robot: Robot, connection: Any, deadline_s: float, clock: Clock) -> None:
        self.robot, self.connection, self.clock = robot, connection, clock
        self.guard = CommandGuard(robot.profile, robot.command_dt, robot.qpos(), deadline_s)
        self._lock = threading.Lock()  # around the guard
        self._opening_m = np.full(robot.profile.grippers, np.nan)  # a gripper without a command keeps what it holds
        self._base, self._base_s = BaseRamp(robot.profile, robot.command_dt), -math.inf
        self._requests: queue.SimpleQueue[int | None] = queue.SimpleQueue()  # number of an observation; None: the end
        self._connected = True
        self._reported: set[Any] = set()  # unknown fields, each logged once

    def run(self) -> None:
        robot = self.robot
        hello = {"control_dt": robot.control_dt, "command_dt": robot.command_dt, "qpos": robot.qpos()}
        self._send({"profile": robot.profile.to_dict(), **hello})
        threads = [threading.Thread(target=work, daemon=True) for work in (self._drive, self._look)]
        for thread in threads:
            thread.start()
        reason = "the connection ended"
        try:
            for message in self.connection:
                self._take(unpack(message.encode() if isinstance(message, str) else message))
        except ProtocolError as error:
            reason = f"a message can't be read: {error}"
        except Exception as error:  # however a connection may end
            reason = f"the connection ended: {type(error).__name__}"
        with self._lock:
            self.guard.stop(reason)
        self._connected = False
        self._requests.put(None)
        for thread in threads:
            thread.join()

    def _take(self, message: Any) -> None:
        if not isinstance(message, dict):
            raise ProtocolError(f"it has type {type(message).__name__}; expected a map")
        unknown = set(message) - KNOWN_FIELDS - self._reported
        if unknown:
            self._reported |= unknown
            shown = ", ".join(sorted(printable(str(field))[:40] for field in unknown)[:8])
            logger.warning(
                "the client sends %s, which is not read; expected %s", shown, ", ".join(sorted(KNOWN_FIELDS))
            )
        if "observe" in message:
            if not isinstance(message["observe"], int):
                raise ProtocolError("`observe` must be the number of a request")
            self._requests.put(message["observe"])
        if "stop" in message:
            with self._lock:
                self.guard.stop("the client sent stop")
        if "qpos" in message:
            try:
                position = np.asarray(message["qpos"], np.float64)
                command = Command(
                    position,
                    np.asarray(message["opening_m"], np.float64),
                    float(message["stamp_s"]),
                    np.asarray(message.get("base", ()), np.float64),
                )
            except (KeyError, TypeError, ValueError):
                raise ProtocolError(
                    f"a command needs qpos, opening_m and stamp_s as numbers; it has {', '.join(map(str, message))}"
                ) from None
            with self._lock:
                if self.guard.stopped is None:
                    self._command(command)

    def _command(self, command: Command) -> None:
        profile, opening_m, base = self.robot.profile, command.gripper_opening_m, command.base_velocity
        if np.isfinite(opening_m).any() and opening_m.shape != (profile.grippers,):
            self.guard.stop(
                f"a command has {opening_m.size} gripper openings; the robot has {profile.grippers} grippers"
            )
        if base.size and (base.shape != (len(profile.base_velocity),) or not np.isfinite(base).all()):
            self.guard.stop(f"a command's base velocities must be {len(profile.base_velocity)} finite numbers")
        try:
            self.guard.receive(command.joint_position_rad, command.stamp_s, self.clock.now())
        except RobotError:
            return
        if profile.grippers:
            within_m = opening_m.clip(0.0, profile.openings_m)
            self._opening_m = np.where(np.isfinite(opening_m), within_m, self._opening_m)
        if base.size:
            self._base.target, self._base_s = base, self.clock.now()

    def _drive(self) -> None:
        """Command the joints on the robot's own grid until the client has disconnected and they are at rest."""
        grid = FixedGrid(self.clock, self.robot.command_dt)
        sent_s, sent_error = 0.0, False
        try:
            rested = 0  # commands sent at rest after the client left, so that the robot recognizes the end
            while self._connected or rested < REST_COMMANDS:
                grid.wait()
                rested += not self._connected and self.guard.at_rest and self._base.at_rest
                with self._lock:
                    if self._base.target.any() and self.clock.now() - self._base_s > self.guard.deadline_s:
                        self.guard.stop(f"no command for {self.guard.deadline_s:g} s")
                    position, stopped = self.guard.position(grid.t_s), self.guard.stopped
                    if stopped is not None:
                        self._base.brake()
                    velocity = self._base.step()
                self.robot.command(Command(position, self._opening_m, grid.t_s, velocity))
                if grid.t_s - sent_s >= STATE_DT:
                    sent_s = grid.t_s
                    self._send({"qpos": self.robot.qpos()})
                if stopped is not None and not sent_error:
                    sent_error = True
                    self._send({"error": f"the robot stopped itself: {stopped}"})
        except Exception as error:  # whatever a driver may raise: the client needs the reason why the robot stopped
            reason = _cause(error)
            self._send({"error": reason})
            with self._lock:
                self.guard.stop(reason)
            self.connection.close(1011, "the robot is lost")

    def _look(self) -> None:
        while (number := self._requests.get()) is not None:
            try:
                seen = self.robot.observe()
                seen_now = {
                    "obs": dict(seen.obs),
                    "instruction": seen.instruction,
                    "age_s": self.clock.now() - seen.stamp_s,
                }
                self._send(seen_now | {"observe": number})
            except Exception as error:
                self._send({"error": _cause(error)})

    def _send(self, message: dict[str, Any]) -> None:
        try:
            self.connection.send(pack(message))
        except Exception as error:  # a lost client is noticed where its messages are read
            logger.debug("client not reached: %s", type(error).__name__)


def _cause(error: Exception) -> str:
    """The text of a `RobotError`; any other exception is a fault of the driver, and its traceback is logged."""
    if isinstance(error, RobotError):
        return str(error)
    logger.error("the robot's driver failed", exc_info=error)
    return f"the robot's driver failed: {type(error).__name__}: {' '.join(str(error).split())}"
