"""A stand-in for rosbridge and the arm behind it: enough of its JSON protocol to publish and to subscribe."""

import json
import threading
import time
from types import TracebackType
from typing import Any

import numpy as np
from websockets.exceptions import ConnectionClosed
from websockets.sync.server import ServerConnection, serve

from robopolicy.control.profile import RobotProfile


class StubRosbridge:
    """Publishes the joints of an arm that is at once where the last trajectory ends, in an order of its own."""

    def __init__(self, profile: RobotProfile, silent: bool = False, split: bool = False) -> None:
        self.names = [*reversed(profile.joint_names), "finger_1", "finger_2"]
        self.positions = dict(zip(profile.joint_names, profile.home_rad, strict=True)) | {
            "finger_1": 0.04,
            "finger_2": 0.04,
        }
        self.silent, self.split = silent, split
        self.received: list[dict[str, Any]] = []
        self._server = serve(self._attend, "127.0.0.1", 0, compression=None)
        self.port = self._server.socket.getsockname()[1]
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def __enter__(self) -> "StubRosbridge":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()

    def _attend(self, connection: ServerConnection) -> None:
        try:
            for text in connection:
                message = json.loads(text)
                self.received.append(message)
                if message["op"] == "subscribe":
                    threading.Thread(
                        target=self._publish, args=(connection, message["topic"], message["type"]), daemon=True
                    ).start()
                if message["op"] == "publish" and message["topic"] == "/gripper":
                    self.positions |= dict.fromkeys(("finger_1", "finger_2"), message["msg"]["data"] / 2)
                if message["op"] == "publish" and "points" in message["msg"]:
                    end = message["msg"]["points"][-1]["positions"]
                    self.positions |= dict(zip(message["msg"]["joint_names"], end, strict=True))
        except ConnectionClosed:
            return

    def _publish(self, connection: ServerConnection, topic: str, kind: str) -> None:
        while not self.silent:
            messages = [self._image()] if kind == "sensor_msgs/Image" else self._joints()
            try:
                for message in messages:
                    connection.send(json.dumps({"op": "publish", "topic": topic, "msg": message}))
            except ConnectionClosed:
                return
            time.sleep(0.01)

    def _joints(self) -> list[dict[str, Any]]:
        """All joints at once, or as an arm, a gripper and somebody else on one topic."""
        groups = [self.names[:-2], self.names[-2:]] if self.split else [self.names]
        messages = [{"name": names, "position": [self.positions[name] for name in names]} for names in groups]
        return [*messages, {"name": ["wheel"], "position": [1.0]}] if self.split else messages

    def _image(self) -> dict[str, Any]:
        import base64

        rows = np.zeros((4, 32), np.uint8)
        rows[:, :24] = np.tile([10, 20, 30], 8)
        data = base64.b64encode(rows.tobytes()).decode()
        return {"height": 4, "width": 8, "step": 32, "encoding": "bgr8", "data": data}
