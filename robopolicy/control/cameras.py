"""A camera that has frozen: its driver continues giving images, and they are all the same one."""

from collections.abc import Collection
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from robopolicy.control.robot import RobotError
from robopolicy.types import Observation

STILL_S = 0.5
"""A image that stays the same for so long is suspicious; cameras may be slower than the control loop."""
MOVED_RAD = 0.2
"""By how much a joint must have turned meanwhile: a real image has noise, a rendered one of a scene at rest has none."""


class _Picture(NamedTuple):
    pixels: np.ndarray
    stamp_s: float
    qpos: np.ndarray


class CameraWatch:
    """Compares each image with the one before, to the last bit.

    Args:
        cameras: keys of the images that are watched; None: all of them.
    """

    def __init__(self, cameras: Collection[str] | None = None) -> None:
        self.cameras = cameras
        self.reset()

    def reset(self) -> None:
        """An episode begins."""
        self._first: dict[str, _Picture] = {}

    def check(self, observation: Observation, qpos: Float[np.ndarray, " joints"]) -> None:
        """Look at an observation, taken with the joints at `qpos` [rad].

        Raises:
            RobotError: an image stayed the same although the arm moved.
        """
        for key, value in observation.obs.items():
            picture = np.asarray(value)
            if picture.ndim != 3 or (self.cameras is not None and key not in self.cameras):
                continue
            first = self._first.get(key)
            if first is None or not np.array_equal(picture, first.pixels):
                self._first[key] = _Picture(picture, observation.stamp_s, np.array(qpos))
                continue
            same_s, moved_rad = observation.stamp_s - first.stamp_s, float(np.abs(qpos - first.qpos).max())
            if same_s > STILL_S and moved_rad > MOVED_RAD:
                raise RobotError(
                    f"camera {key!r} has shown the same image for {same_s:.2f} s, while a joint turned by "
                    f"{moved_rad:.2f} rad: it is frozen"
                )
