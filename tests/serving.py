"""A policy whose answers tell what it saw, and a server of it in a thread: shared by the tests of client and server."""

import asyncio
import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from robopolicy.control.server import PolicyServer
from robopolicy.control.serving.mapping import KeyMapping
from robopolicy.control.serving.protocol import ObservationReader
from robopolicy.types import ActionSpec, ArraySpec, PolicySpec, Prediction
from tests.waiting import PATIENCE_S

SPEC = PolicySpec(
    observation={"qpos": ArraySpec((3,)), "front": ArraySpec((8, 8, 3), "uint8")},
    action=ActionSpec(arm=5, gripper=0),
    chunk=4,
    window=3,
    instruction=True,
    control_dt=0.05,
    provenance={"task": "lift"},
)
LOW_DIM_SPEC = PolicySpec(
    observation={"qpos": ArraySpec((3,))}, action=ActionSpec(arm=5, gripper=0), chunk=4, window=3, control_dt=0.05
)


@dataclass(frozen=True)
class FakeState:
    """Frames seen by each episode, and the sum of what they held."""

    seen: np.ndarray

    @staticmethod
    def concat(states: Sequence["FakeState"]) -> "FakeState":
        """End to end."""
        return FakeState(np.concatenate([state.seen for state in states]))

    def split(self, sizes: int) -> list["FakeState"]:
        """Parts."""
        return [FakeState(self.seen[i : i + sizes]) for i in range(0, len(self.seen), sizes)]


class FakePolicy:
    """Answers (frames seen, sum of qpos over them, length of the instruction, mean of the image, k)."""

    def __init__(self, chunk: int = 4) -> None:
        self.chunk = chunk
        self.spec = SPEC
        self.batches: list[int] = []
        self.asked = threading.Event()
        self.hold = threading.Event()
        self.hold.set()

    def initial_state(self, batch: int) -> FakeState:
        """Nothing seen."""
        return FakeState(np.zeros((batch, 2)))

    def act(self, observation: Mapping[str, Any], state: FakeState) -> tuple[np.ndarray, FakeState]:
        """As `predict`."""
        prediction, state = self.predict(observation, state)
        return prediction.actions, state

    def predict(self, observation: Mapping[str, Any], state: FakeState) -> tuple[Prediction, FakeState]:
        """Adds one frame to the state; qpos of 666 makes it fail."""
        self.asked.set()
        assert self.hold.wait(PATIENCE_S)
        qpos = observation["qpos"]
        if (qpos == 666).any():
            raise RuntimeError("secret path /home/operator/policy.py")
        self.batches.append(len(qpos))
        seen = state.seen + np.stack([np.ones(len(qpos)), qpos.sum(axis=1)], axis=1)
        told = [len(text) for text in observation.get("instruction", [""] * len(qpos))]
        images = observation.get("front", np.zeros((len(qpos), 1)))
        means = images.reshape(len(qpos), -1).mean(axis=1)
        rows = np.column_stack([seen, told, means, np.zeros(len(qpos))])
        actions = np.repeat(rows[:, None], self.chunk, axis=1)
        actions[..., 4] = np.arange(self.chunk)
        return Prediction(actions), FakeState(seen)


def observation(number: float = 1.0, **changes: Any) -> dict[str, Any]:
    """What `SPEC` expects."""
    return {
        "qpos": np.full(3, number),
        "front": np.full((8, 8, 3), 7, np.uint8),
        "prompt": "lift",
        **changes,
    }


@contextmanager
def running_server(
    policy: Any = None, spec: PolicySpec = SPEC, mapping: str | Path | KeyMapping = "native", **options: Any
) -> Iterator[PolicyServer]:
    """A server in a thread of its own, on a free port of this machine."""
    mapping = mapping if isinstance(mapping, KeyMapping) else KeyMapping.read(mapping)
    reader = ObservationReader(spec, mapping, getattr(policy, "token_spec", None))
    server = PolicyServer(policy or FakePolicy(), reader, **{"port": 0, **options})
    ready = threading.Event()
    thread = threading.Thread(target=lambda: asyncio.run(server.run(lambda *_: ready.set())))
    thread.start()
    try:
        assert ready.wait(PATIENCE_S), "the server did not come up"
        yield server
    finally:
        server.stop()
        thread.join(PATIENCE_S)
        assert not thread.is_alive(), "the server did not stop"


def self_signed(folder: Path) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 and its key (PEM); the test is skipped where openssl is missing."""
    certificate, key = folder / "cert.pem", folder / "key.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 1 -subj /CN=localhost"
    options = ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)]
    try:
        subprocess.run([*command.split(), *options], check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("openssl is not installed, so there is no certificate to serve with")
    return certificate, key
