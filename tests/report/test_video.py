"""Videos of demos."""

import numpy as np
import pytest

from robopolicy.report import demo_images, write_video
from robopolicy.types import Demo


def test_a_gif_shows_every_picture_enlarged(tmp_path):
    """Guards against: Pictures of 64 pixels are too small to see a cube in; a dropped one hides the moment of failure."""
    import imageio.v3 as imageio

    frames = np.zeros((4, 8, 10, 3), np.uint8)
    for step in range(4):
        frames[step] = 60 * step
    shown = imageio.imread(write_video(frames, tmp_path / "a.gif", scale=3))
    assert shown.shape[:3] == (4, 24, 30)
    assert (np.diff(shown[:, 12, 15, 0].astype(int)) > 0).all()


def test_a_video_that_could_not_be_written_leaves_nothing(tmp_path, monkeypatch):
    """Guards against: Half a video, of a full disk, plays as if the episode had ended there."""
    import imageio.v3 as imageio

    def half(path, *_, **__):
        path.write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(imageio, "imwrite", half)
    with pytest.raises(OSError, match="No space left"):
        write_video(np.zeros((2, 8, 8, 3), np.uint8), tmp_path / "a.mp4")
    assert list(tmp_path.iterdir()) == []


def test_cameras_are_shown_side_by_side_and_their_absence_is_told():
    """Guards against: A demo without pictures must not become an empty video."""
    picture = np.zeros((2, 8, 8, 3), np.uint8)
    actions = np.zeros((2, 1), np.float32)
    demo = Demo(name="demo_0", obs={"front": picture, "wrist": picture + 9}, actions=actions)
    assert demo_images(demo).shape == (2, 8, 16, 3)
    with pytest.raises(ValueError, match="demo_1 holds no images; it has pose; collect with --cameras"):
        demo_images(Demo(name="demo_1", obs={"pose": np.zeros((2, 3), np.float32)}, actions=actions))
