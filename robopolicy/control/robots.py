"""Robots without an arm of their own: one for tests, and one at the other end of a network."""

import contextlib
import logging
import math
import ssl
import threading
import time
from types import TracebackType

import numpy as np
from jaxtyping import Float

from robopolicy.client import pack, unpack
from robopolicy.control.kinematics import matrix_to_quaternion, pose_and_jacobian
from robopolicy.control.profile import RobotProfile, profile_from_dict
from robopolicy.control.robot import RobotError
from robopolicy.control.serving.access import warn_of_plain_text
from robopolicy.control.timing import Clock, SystemClock
from robopolicy.types import Command, Observation

logger = logging.getLogger(__name__)

MAX_MESSAGE_BYTES = 64 * 2**20
"""A longer message of a robot closes the connection."""


def proprioception(
    profile: RobotProfile, qpos: Float[np.ndarray, " joints"], opening_m: float
) -> dict[str, np.ndarray]:
    """What every robot can tell of itself, as our simulator does: `qpos` [rad], `gripper` (1,) [m], `ee_pose` (7,)."""
    obs = {"qpos": np.asarray(qpos, np.float32), "gripper": np.array([opening_m], np.float32)}
    if profile.arm is not None:
        position, rotation, _ = pose_and_jacobian(profile.arm, np.asarray(qpos, np.float64))
        obs["ee_pose"] = np.concatenate([position, matrix_to_quaternion(rotation)]).astype(np.float32)
    return obs


class FakeRobot:
    """An arm that is at once wherever it is told to be, and remembers every command.

    Args:
        profile: what it claims to be.
        control_dt: time between two actions [s].
        command_dt: time between two commands [s].
        clock: the time of its stamps.
        opening_m: how far its gripper is open as it is found [m]; None: all the way.
    """

    def __init__(
        self,
        profile: RobotProfile,
        control_dt: float = 0.05,
        command_dt: float = 0.01,
        clock: Clock | None = None,
        opening_m: float | None = None,
    ) -> None:
        self.profile, self.control_dt, self.command_dt = profile, control_dt, command_dt
        self.clock = clock or SystemClock()
        self.commands: list[Command] = []
        self.instruction: str | None = None
        self.lost: str | None = None
        """Set to a reason to have every call fail as a robot does that can't be reached."""
        self._qpos = np.asarray(profile.home_rad, np.float64)
        self._opening_m = profile.opening_m if opening_m is None else opening_m
        self._stopped = False

    def observe(self) -> Observation:
        """Where it is."""
        self._refuse_if_lost()
        obs = proprioception(self.profile, self._qpos, self._opening_m)
        return Observation(obs, self.instruction, self.clock.now())

    def qpos(self) -> Float[np.ndarray, " joints"]:
        """Where it is [rad]."""
        return self._qpos

    def command(self, command: Command) -> None:
        """Be there."""
        self._refuse_if_lost()
        if self._stopped:
            raise RobotError("the robot was stopped; it takes no further command")
        self.commands.append(command)
        self._qpos = command.joint_position_rad
        if math.isfinite(command.gripper_opening_m):
            self._opening_m = command.gripper_opening_m

    def stop(self) -> None:
        """Take no further command."""
        self._stopped = True

    def _refuse_if_lost(self) -> None:
        if self.lost:
            raise RobotError(self.lost)


class WebsocketRobot:
    """A robot behind a `RobotServer`, on this machine or another.

    Joint positions stream in; an observation is asked for and waited for, in the policy's thread. A robot that falls
    silent is an error after `timeout_s`, and stops itself when no command comes.

    Args:
        host: name or address.
        port: its port.
        timeout_s: longest silence [s].
        api_key: sent as `Authorization: Api-Key <key>`.
        tls: certificates to trust (`robopolicy.control.serving.access.trusted`), for a server with one; None: plain text.
    """

    def __init__(
        self,
        host: str = "127.0.0.1",
        port: int = 8100,
        timeout_s: float = 0.25,
        api_key: str | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        if tls is None:
            warn_of_plain_text(logger, host, f"robot at {host}:{port}")
        try:
            from websockets.exceptions import ConnectionClosed, InvalidStatus, WebSocketException
            from websockets.sync.client import connect
        except ImportError:
            raise ImportError("a robot over the network needs websockets; pip install 'robopolicy[robot]'") from None
        self.timeout_s = timeout_s
        self._stack = contextlib.ExitStack()
        try:
            self._connection = self._stack.enter_context(
                connect(
                    f"{'wss' if tls else 'ws'}://{host}:{port}",
                    ssl=tls,
                    additional_headers={"Authorization": f"Api-Key {api_key}"} if api_key else None,
                    compression=None,
                    max_size=MAX_MESSAGE_BYTES,
                    close_timeout=0.2,
                    open_timeout=5,
                )
            )
            hello = unpack(_bytes(self._connection.recv(timeout=5)))
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
        except AssertionError:  # the library's, where the other end greets before it is asked
            raise RobotError(f"no robot at {host}:{port}: what answers is no websocket") from None
        if not isinstance(hello, dict) or not {"profile", "control_dt", "command_dt", "qpos"} <= set(hello):
            self._stack.close()
            raise RobotError(f"what answers at {host}:{port} is no robot; the server of a policy goes with --server")
        self.profile = profile_from_dict(hello["profile"], f"robot at {host}:{port}")
        self.control_dt, self.command_dt = float(hello["control_dt"]), float(hello["command_dt"])
        self._qpos = np.asarray(hello["qpos"], np.float64)
        self._heard_s = time.monotonic()
        self._lost: str | None = None
        self._stopped = False
        self._asked = 0
        self._seen: tuple[int, Observation, float] | None = None  # number of the wish, what came of it, its age [s]
        self._observed = threading.Event()
        threading.Thread(target=self._listen, name="robot", daemon=True).start()

    def observe(self) -> Observation:
        """What the robot sees now; stamped with the time at which it was asked, or earlier where a sensor is behind."""
        self._refuse_if_lost()
        asked_s = time.monotonic()
        self._asked += 1
        self._observed.clear()
        self._send({"observe": self._asked})
        while self._observed.wait(max(asked_s + self.timeout_s - time.monotonic(), 0.0)):
            self._observed.clear()
            self._refuse_if_lost()
            if self._seen is not None and self._seen[0] == self._asked:  # and no late answer to an earlier wish
                _, seen, age_s = self._seen
                return Observation(seen.obs, seen.instruction, min(asked_s, time.monotonic() - age_s))
        self._refuse_if_lost()
        raise RobotError(f"the robot sent no observation within {self.timeout_s} s")

    def qpos(self) -> Float[np.ndarray, " joints"]:
        """Joint positions heard last [rad]."""
        return self._qpos

    def command(self, command: Command) -> None:
        """Send one command."""
        if self._stopped:
            raise RobotError("the robot was stopped; it takes no further command")
        if (silent_s := time.monotonic() - self._heard_s) > self.timeout_s:
            self._lost = self._lost or f"no word from the robot for {silent_s:.2f} s"
        self._refuse_if_lost()
        self._send(
            {
                "qpos": command.joint_position_rad,
                "opening_m": float(command.gripper_opening_m),
                "stamp_s": float(command.stamp_s),
            }
        )

    def stop(self) -> None:
        """Tell the robot to hold, and leave it."""
        if not self._stopped:
            self._stopped = True
            with contextlib.suppress(RobotError):
                self._send({"stop": True})
            self._stack.close()

    def __enter__(self) -> "WebsocketRobot":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _listen(self) -> None:
        """Take in what the robot says, until it says no more."""
        try:
            for message in self._connection:
                told = unpack(_bytes(message))
                self._heard_s = time.monotonic()
                if "error" in told:
                    self._lost = str(told["error"])
                    self._observed.set()
                if "qpos" in told:
                    self._qpos = np.asarray(told["qpos"], np.float64)
                if "obs" in told:
                    seen = Observation(told["obs"], told.get("instruction"))
                    self._seen = told.get("observe"), seen, float(told.get("age_s", 0.0))
                    self._observed.set()
            self._lost = self._lost or "the robot closed the connection"
        except Exception as error:  # a lost robot is reported where it is used
            self._lost = f"connection to the robot lost: {type(error).__name__}"
        self._observed.set()

    def _send(self, message: dict[str, object]) -> None:
        try:
            self._connection.send(pack(message))
        except Exception as error:
            self._lost = self._lost or f"connection to the robot lost: {type(error).__name__}"
            raise RobotError(self._lost) from None

    def _refuse_if_lost(self) -> None:
        if self._lost:
            raise RobotError(self._lost)


def _bytes(message: str | bytes) -> bytes:
    return message.encode() if isinstance(message, str) else message
