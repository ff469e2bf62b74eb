"""Detects a frozen camera: its driver keeps delivering images, but always the same one."""

from collections.abc import Collection
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from robopolicy.control.robot import RobotError
from robopolicy.types import Observation

STILL_S = 0.5
"""Time without a new image after which a camera is suspect [s]; cameras may be slower than the control loop."""
MOVED_RAD = 0.2
"""Joint motion in that time that makes it an error [rad]: rendered images of a scene at rest are equal, without a fault."""


class _Seen(NamedTuple):
    pixels: np.ndarray
    stamp_s: float
    qpos: np.ndarray


class CameraWatch:
    """Compares each image with the last one, bit by bit.

    Args:
        cameras: keys of the images that are compared; None: all of them.
    """

    def __init__(self, cameras: Collection[str] | None = None) -> None:
        self.cameras = cameras
        self.reset()

    def reset(self) -> None:
        """Begin an episode."""
        self._first: dict[str, _Seen] = {}

    def check(self, observation: Observation, qpos: Float[np.ndarray, " joints"]) -> None:
        """Compare the images of an observation, taken with the joints at `qpos` [rad].

        Raises:
            RobotError: an image stayed the same although the arm moved.
        """
        for key, value in observation.obs.items():
            image = np.asarray(value)
            if image.ndim != 3 or (self.cameras is not None and key not in self.cameras):
                continue
            first = self._first.get(key)
            if first is None or not np.array_equal(image, first.pixels):
                self._first[key] = _Seen(image, observation.stamp_s, np.array(qpos))
                continue
            same_s, moved_rad = observation.stamp_s - first.stamp_s, float(np.abs(qpos - first.qpos).max())
            if same_s > STILL_S and moved_rad > MOVED_RAD:
                raise RobotError(
                    f"camera {key!r} is frozen: the same image for {same_s:.2f} s, while a joint moved {moved_rad:.2f} rad"
                )
