"""Videos of demos."""

import av
import numpy as np
import pytest
from PIL import Image, ImageSequence

from robopolicy.report.video import demo_images, write_video
from robopolicy.types import Demo
from tests.full_disk import full_disk


def test_a_gif_shows_every_image_enlarged(tmp_path):
    """Guards against: Images of 64 pixels are too small to see a cube in; a dropped one hides the moment of failure."""
    frames = np.zeros((4, 8, 10, 3), np.uint8)
    for step in range(4):
        frames[step] = 60 * step
    with Image.open(write_video(frames, tmp_path / "a.gif", scale=3)) as gif:
        shown = np.stack([np.asarray(frame.convert("RGB")) for frame in ImageSequence.Iterator(gif)])
    assert shown.shape[:3] == (4, 24, 30)
    assert (np.diff(shown[:, 12, 15, 0].astype(int)) > 0).all()


@pytest.mark.parametrize("free_bytes", [0, 3000])
def test_a_video_that_could_not_be_written_leaves_nothing(tmp_path, free_bytes):
    """Guards against: Half a video, of a full disk, plays as if the episode had ended there; a pipe left open behind it."""
    frames = np.random.default_rng(0).integers(0, 256, (60, 64, 64, 3), np.uint8)
    with full_disk(free_bytes), pytest.raises(OSError, match=r"File too large: .*a\.mp4"):
        write_video(frames, tmp_path / "a.mp4")
    assert list(tmp_path.iterdir()) == []


def test_a_video_is_of_the_given_rate(tmp_path):
    """Guards against: An episode played at another speed than the robot's."""
    written = write_video(np.zeros((30, 16, 16, 3), np.uint8), tmp_path / "a.mp4", fps=15.0)
    with av.open(written) as video:
        assert len(list(video.decode(video=0))) == 30
        assert float(video.duration / av.time_base) == pytest.approx(2.0, abs=0.1)


def test_cameras_are_shown_side_by_side_and_their_absence_is_told():
    """Guards against: A demo without images must not become an empty video."""
    image = np.zeros((2, 8, 8, 3), np.uint8)
    actions = np.zeros((2, 1), np.float32)
    demo = Demo(name="demo_0", obs={"front": image, "wrist": image + 9}, actions=actions)
    assert demo_images(demo).shape == (2, 8, 16, 3)
    with pytest.raises(ValueError, match="demo_1 holds no images; it has pose; collect with --cameras"):
        demo_images(Demo(name="demo_1", obs={"pose": np.zeros((2, 3), np.float32)}, actions=actions))
