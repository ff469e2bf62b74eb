"""Records the frames that a genuine rosbridge server and the robot `rosbridge` exchange, and replays them without the server.

How the recordings beside `tests/control/` were made, beside the servers that the first line of each names:

    python -m tests.rosbridge_recording ADDRESS NAME NOTE
"""

import itertools
import json
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect
from websockets.sync.server import ServerConnection, serve

from robopolicy.control.profile import read_profile
from robopolicy.control.robots.rosbridge import ArmTopics, GripperTopics, RosbridgeOptions, RosbridgeRobot
from robopolicy.types import Command, Observation
from tests.waiting import PATIENCE_S, wait_until

RECORDINGS = Path(__file__).parent / "control" / "rosbridge_recordings"
FINGERS = ("panda_finger_joint1", "panda_finger_joint2")
GAP_S = 0.02
"""Longest pause between two frames of a replay [s]."""


def exchange(address: str, folder: Path, action: bool) -> tuple[Observation, Observation]:
    """Connect to a Panda on a mobile base, observe, command one motion and stop; what was observed before and after it."""
    profile = replace(read_profile("panda"), base_velocity=(1.0, 1.0), base_acceleration=(1.0, 1.0))
    (folder / "mobile.yaml").write_text(json.dumps(profile.to_dict()))
    gripper = {"action": "/gripper/gripper_cmd"} if action else {"topic": "/gripper", "message": "gripper_command"}
    options = RosbridgeOptions(
        address,
        profile=str(folder / "mobile.yaml"),
        arms={"arm": ArmTopics()},
        grippers={"hand": GripperTopics(**gripper, fingers=FINGERS)},  # type: ignore[arg-type]
        cameras={"front": "/front/image_raw", "wrist": "/wrist/image_raw/compressed"},
        base_topic="/cmd_vel",
        timeout_s=PATIENCE_S,
    )
    robot = RosbridgeRobot(options)
    before, target = robot.observe(), robot.qpos() + 0.05
    robot.command(Command(target, 0.02, 0.0, np.array([0.2, 0.1])))
    wait_until(lambda: np.allclose(robot.qpos(), target) and np.allclose(robot.observe().obs["gripper"], 0.02))
    after = robot.observe()
    robot.stop()
    return before, after


class FrameServer:
    """A websocket server on a free port that attends to each connection with a function.

    Args:
        attend: called with the connection, in a thread of its own.
    """

    def __init__(self, attend: Callable[[ServerConnection], None]) -> None:
        self._server = serve(attend, "127.0.0.1", 0, compression=None, max_size=None)
        self.address = f"127.0.0.1:{self._server.socket.getsockname()[1]}"

    def __enter__(self) -> "FrameServer":
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()


def recorder(address: str, frames: list[dict[str, Any]]) -> Callable[[ServerConnection], None]:
    """Forwards frames between clients and the server at `address`, and appends them to `frames`."""
    began_s, count = time.monotonic(), itertools.count()

    def attend(client: ServerConnection) -> None:
        number = next(count)
        with connect(f"ws://{address}", compression=None, max_size=None) as server:

            def forward(source: Any, target: Any, name: str) -> None:
                try:
                    for frame in source:
                        at_s = round(time.monotonic() - began_s, 3)
                        frames.append({"connection": number, "from": name, "t_s": at_s, "frame": json.loads(frame)})
                        target.send(frame)
                except ConnectionClosed:
                    pass
                source.close()
                target.close()

            answers = threading.Thread(target=forward, args=(server, client, "server"))
            answers.start()
            forward(client, server, "client")
            answers.join()

    return attend


def replayer(frames: list[dict[str, Any]], differences: list[str]) -> Callable[[ServerConnection], None]:
    """Sends the server's frames, and compares each frame that it receives with the client's; ids are not compared."""
    count = itertools.count()

    def attend(client: ServerConnection) -> None:
        number, before_s = next(count), 0.0
        try:
            for each in (each for each in frames if each["connection"] == number):
                if each["from"] == "server":
                    time.sleep(min(GAP_S, max(each["t_s"] - before_s, 0.0)))
                    client.send(json.dumps(each["frame"]))
                else:
                    found, expected = json.loads(client.recv(timeout=PATIENCE_S)), each["frame"]
                    if found | {"id": None} != expected | {"id": None}:
                        differences.append(f"{found}\nwhere the genuine server took\n{expected}")
                before_s = each["t_s"]
        except (ConnectionClosed, TimeoutError) as error:
            differences.append(f"{type(error).__name__}: {error}")

    return attend


def read_recording(name: str) -> tuple[str, list[dict[str, Any]]]:
    """How a recording was made, and its frames."""
    note, *frames = (RECORDINGS / f"{name}.jsonl").read_text().splitlines()
    return json.loads(note), [json.loads(frame) for frame in frames]


def main(address: str, name: str, note: str) -> None:
    """Record an exchange with the server at an address."""
    frames: list[dict[str, Any]] = []
    RECORDINGS.mkdir(exist_ok=True)
    with FrameServer(recorder(address, frames)) as proxy:
        exchange(proxy.address, Path(tempfile.mkdtemp()), action=name == "ros2")
    last = max(place for place, each in enumerate(frames) if each["from"] == "client")
    (RECORDINGS / f"{name}.jsonl").write_text("".join(json.dumps(each) + "\n" for each in [note, *frames[: last + 1]]))


if __name__ == "__main__":
    main(*sys.argv[1:])
