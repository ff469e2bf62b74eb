"""Copies of one environment, in this process or in separate processes; a copy that breaks is reported and replaced."""

import contextlib
import signal
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from robopolicy.rollout import env_runner
from robopolicy.rollout.env_runner import EnvSetupError, Session, one_line

Reply = tuple[dict[str, Any], dict[str, np.ndarray]]


class CopyLostError(RuntimeError):
    """An environment crashed or hung, so its episode has failed; the message says why."""


class LocalCopy:
    """A copy in this process.

    A hang is detected only in the main thread, and only in Python code or a system call; a crash of the environment ends
    this process. `ProcessCopy` handles both.

    Args:
        make: creates the environment's session.
    """

    def __init__(self, make: Callable[[], Session]) -> None:
        self._make = make
        self._session: Session | None = None
        self._request: tuple[Mapping[str, Any], np.ndarray | None] = ({}, None)

    def post(self, request: Mapping[str, Any], action: np.ndarray | None = None) -> None:
        """Post a request `{"do": "open" | "reset", "seed": ..., "reads": [...]}`, or `{"do": "step"}` with `action`."""
        self._request = request, action

    def collect(self, timeout_s: float) -> Reply:
        """Carry out the request; returns the reply.

        Raises:
            EnvSetupError: the environment can't be used as given.
            CopyLostError: the environment crashed, or gave no reply within `timeout_s`; the next request must be `open`.
        """
        request, action = self._request
        try:
            with _alarm(timeout_s):
                if request["do"] == "open":
                    self._session = self._session or self._make()
                if self._session is None:
                    raise CopyLostError("the environment is closed")
                return self._session.answer(request, action)
        except (EnvSetupError, CopyLostError):
            raise
        except _ExpiredError:
            self.close()
            raise CopyLostError(f"no reply within {timeout_s:g} s") from None
        except Exception as error:
            self.close()
            raise CopyLostError(f"{type(error).__name__}: {one_line(error)}") from error

    def close(self) -> None:
        """Close the environment; errors while closing are ignored."""
        if self._session is not None:
            with contextlib.suppress(Exception):
                self._session.close()
        self._session = None


class ProcessCopy:
    """A copy in a process of another interpreter, which runs `env_runner.py` and nothing else of this package.

    The two processes share a pipe, so no network port is open and no other program can connect.

    Args:
        python: the interpreter that has the simulator.
        spec: `EnvMap.runner_spec(...)`.
    """

    def __init__(self, python: str | Path, spec: Mapping[str, Any]) -> None:
        self._python, self._spec = str(python), spec
        self._process: subprocess.Popen | None = None
        self._connection: Connection | None = None
        self._log: Any = None

    def post(self, request: Mapping[str, Any], action: np.ndarray | None = None) -> None:
        """As `LocalCopy.post`, but the request is sent at once, so that several copies work at the same time.

        `open` starts the process if there is none.
        """
        if self._process is None:
            self._start()
        assert self._connection is not None
        request = {**request, "spec": self._spec} if request["do"] == "open" else request
        with contextlib.suppress(OSError):  # `collect` detects a dead process
            env_runner.send(self._connection, request, {} if action is None else {"action": action})

    def collect(self, timeout_s: float) -> Reply:
        """As `LocalCopy.collect`: wait for the reply."""
        assert self._connection is not None
        if not self._connection.poll(timeout_s):
            self.close()
            raise CopyLostError(f"no reply within {timeout_s:g} s")
        try:
            message, arrays = env_runner.receive(self._connection)
        except (EOFError, OSError, ValueError):
            raise CopyLostError(self._ended()) from None
        if "mistake" in message:
            raise EnvSetupError(message["mistake"])
        if "error" in message:
            self.close()
            raise CopyLostError(message["error"])
        return message, arrays

    def close(self) -> None:
        """End the process."""
        if self._connection is not None:
            self._connection.close()
        if self._process is not None:
            try:
                self._process.wait(timeout=0.2)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        if self._log is not None:
            self._log.close()
        self._process = self._connection = self._log = None

    def _start(self) -> None:
        self._connection, theirs = Pipe()
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  closed by `close`
        command = [self._python, str(Path(env_runner.__file__)), str(theirs.fileno())]
        try:
            self._process = subprocess.Popen(
                command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, stdout=self._log, stderr=self._log
            )
        except OSError as error:
            self.close()
            raise EnvSetupError(f"--env-python {self._python}: {error.strerror or error}") from None
        finally:
            theirs.close()

    def _ended(self) -> str:
        """How the process ended, and the last line that it printed."""
        assert self._process is not None
        try:
            code: int | None = self._process.wait(timeout=5.0)
        except subprocess.TimeoutExpired:
            code = None
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").strip().splitlines()
        self.close()
        if code is None:
            how = "closed its connection without ending"
        else:
            how = f"ended ({f'signal {signal.Signals(-code).name}' if code < 0 else f'exit code {code}'})"
        return f"{self._python} {how}{f': {lines[-1][:200]}' if lines else ''}"


Copy: TypeAlias = LocalCopy | ProcessCopy
"""One copy of an environment: a request is posted, its reply collected."""


class _ExpiredError(Exception):
    """A request exceeded its time limit."""


@contextlib.contextmanager
def _alarm(timeout_s: float) -> Iterator[None]:
    """Raise `_ExpiredError` after `timeout_s` if this is the main thread; in other threads there is no time limit."""
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        yield
        return

    def expire(*_: object) -> None:
        raise _ExpiredError

    earlier = signal.signal(signal.SIGALRM, expire)
    signal.setitimer(signal.ITIMER_REAL, timeout_s)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, earlier)
