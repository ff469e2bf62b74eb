"""Frozen cameras: noticed where the arm moves, and nowhere else."""

import numpy as np
import pytest

from robopolicy.control.inference import CameraWatch
from robopolicy.control.robot import RobotError
from robopolicy.types import Observation


def watch_40_steps(watch: CameraWatch, freeze_at: int, speed_rad_s: float = 0.5) -> None:
    """At 20 Hz; the camera `front` freezes, `wrist` does not."""
    rng = np.random.default_rng(0)
    front = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
    for step in range(40):
        front = front if step >= freeze_at else rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        wrist = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        obs = {"front": front.copy(), "wrist": wrist, "gripper": np.zeros(1)}
        watch.check(Observation(obs, None, 100 + 0.05 * step), np.full(7, 0.05 * step * speed_rad_s))


def test_a_camera_that_shows_the_same_image_while_the_arm_moves_is_frozen():
    """Guards against: an arm that is controlled from an image of where it was."""
    for watch, freeze_at in ((CameraWatch(), 10), (CameraWatch(("front",)), 25)):
        with pytest.raises(
            RobotError, match=r"'front' is frozen: the same image for 0\.55 s, while a joint moved 0\.2[78] rad"
        ):
            watch_40_steps(watch, freeze_at)


@pytest.mark.parametrize(
    ("watch", "freeze_at", "speed_rad_s"),
    [
        (CameraWatch(), 10**9, 2.0),
        (CameraWatch(), 5, 0.0),
        (CameraWatch(("wrist",)), 5, 2.0),
        (CameraWatch(()), 5, 2.0),
    ],
)
def test_images_that_change_an_arm_at_rest_and_cameras_that_nobody_looks_at_are_let_be(watch, freeze_at, speed_rad_s):
    """Guards against: a robot stopped because its scene stands still, or for a camera that the policy doesn't use."""
    watch_40_steps(watch, freeze_at, speed_rad_s)


def test_a_camera_slower_than_the_loop_is_not_frozen_and_a_reset_forgets():
    """Guards against: a camera of 5 images per second reported as frozen on an arm of 20 actions per second."""
    watch, image = CameraWatch(), np.zeros((4, 4, 3), np.uint8)
    for step in range(80):
        image = np.full((4, 4, 3), step // 4, np.uint8)
        watch.check(Observation({"front": image}, None, 0.05 * step), np.full(7, 0.1 * step))
    watch.reset()
    watch.check(Observation({"front": image}, None, 60.0), np.zeros(7))
