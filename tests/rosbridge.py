"""A stand-in for rosbridge and the arms behind it: enough of its JSON protocol to publish, to subscribe and to take goals.

Reproduced after rosbridge v2's protocol specification (`ROSBRIDGE_PROTOCOL.md` of rosbridge_suite). What genuine servers
send and take is in `tests/control/rosbridge_recordings`.
"""

import base64
import io
import json
import threading
import time
from types import TracebackType
from typing import Any

import numpy as np
from PIL import Image
from websockets.exceptions import ConnectionClosed
from websockets.sync.server import ServerConnection, serve

from robopolicy.control.profile import RobotProfile


class StubRosbridge:
    """Publishes the joints of arms that are at once where the last command sends them, in an order of its own.

    Args:
        profile: the arms.
        silent: publish nothing.
        split: each arm, the fingers and a wheel in a message of their own.
        stamp_ahead_s: added to the header stamps; None: no header.
    """

    def __init__(
        self, profile: RobotProfile, silent: bool = False, split: bool = False, stamp_ahead_s: float | None = None
    ) -> None:
        self.profile, self.stamp_ahead_s = profile, stamp_ahead_s
        self.arms = [[*reversed(arm.joint_names)] for _, arm, _, _ in profile.parts]
        self.fingers = [f"finger_{number}" for number in range(1, 2 * profile.grippers + 1)]
        self.positions = dict(zip(profile.joint_names, profile.home_rad, strict=True))
        self.positions |= dict(zip(self.fingers, np.repeat(profile.openings_m / 2, 2).tolist(), strict=True))
        self.silent, self.split = silent, split
        self.encoding = "bgr8"
        self.goals_end = threading.Event()
        """Unset: goals are pursued, and their connection is not read, as servers do by default."""
        self.goals_end.set()
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

    def sent(self, topic: str) -> list[dict[str, Any]]:
        """Messages that were published on a topic so far."""
        return [each["msg"] for each in self.received if each["op"] == "publish" and each["topic"] == topic]

    def _attend(self, connection: ServerConnection) -> None:
        try:
            for text in connection:
                message = json.loads(text)
                self.received.append(message)
                if message["op"] == "subscribe":
                    threading.Thread(
                        target=self._publish, args=(connection, message["topic"], message["type"]), daemon=True
                    ).start()
                if message["op"] == "publish":
                    self._follow(message["topic"], message["msg"])
                if message["op"] == "send_action_goal":
                    self.goals_end.wait()
                    self._grip(message["action"], message["args"]["command"]["position"])
                    result = {"position": message["args"]["command"]["position"], "reached_goal": True}
                    reply = {"op": "action_result", "action": message["action"], "id": message["id"], "status": 4}
                    connection.send(json.dumps(reply | {"values": result, "result": True}))
        except ConnectionClosed:
            return

    def _follow(self, topic: str, message: dict[str, Any]) -> None:
        if "gripper" in topic:
            self._grip(topic, message["data"] if "data" in message else message["position"])
        elif "points" in message:
            self.positions |= dict(zip(message["joint_names"], message["points"][-1]["positions"], strict=True))

    def _grip(self, name: str, opening_m: float) -> None:
        fingers = self.fingers[2:4] if "right" in name else self.fingers[:2]
        self.positions |= dict.fromkeys(fingers, opening_m / 2)

    def _publish(self, connection: ServerConnection, topic: str, kind: str) -> None:
        while not self.silent:
            made = {"sensor_msgs/Image": self._image, "sensor_msgs/CompressedImage": self._compressed}
            messages = [made[kind]()] if kind in made else self._joints()
            try:
                for message in messages:
                    connection.send(json.dumps({"op": "publish", "topic": topic, "msg": self._stamped(message)}))
            except ConnectionClosed:
                return
            time.sleep(0.01)

    def _stamped(self, message: dict[str, Any]) -> dict[str, Any]:
        if self.stamp_ahead_s is None:
            return message
        sec, nanosec = divmod(round(1e9 * (time.monotonic() + self.stamp_ahead_s)), 10**9)
        return {"header": {"stamp": {"sec": sec, "nanosec": nanosec}, "frame_id": ""}, **message}

    def _joints(self) -> list[dict[str, Any]]:
        """All joints at once, or as arms, grippers and somebody else on one topic."""
        together = [[name for names in (*self.arms, self.fingers) for name in names]]
        groups = [*self.arms, self.fingers] if self.split else together
        messages = [{"name": names, "position": [self.positions[name] for name in names]} for names in groups]
        return [*messages, {"name": ["wheel"], "position": [1.0]}] if self.split else messages

    def _image(self) -> dict[str, Any]:
        rows = np.zeros((4, 32), np.uint8)
        rows[:, :24] = np.tile([10, 20, 30], 8)
        data = base64.b64encode(rows.tobytes()).decode()
        return {"height": 4, "width": 8, "step": 32, "encoding": self.encoding, "data": data}

    def _compressed(self) -> dict[str, Any]:
        kept = io.BytesIO()
        Image.fromarray(np.full((4, 8, 3), (30, 20, 10), np.uint8)).save(kept, "PNG")
        return {"format": "rgb8; png compressed bgr8", "data": base64.b64encode(kept.getvalue()).decode()}
