"""Images of demos as videos for a browser, or in the rerun viewer."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from robopolicy.demos.formats._video import VideoWriter
from robopolicy.files import write_file
from robopolicy.types import Demo

QUALITY = {"crf": "25", "preset": "medium"}
"""H.264 settings for small files, since a page may contain several videos."""
GAP_PX = 2
"""Width of the white gap between two videos [pixels]."""


def write_video(frames: np.ndarray, path: Path, fps: float = 20.0, scale: int = 4) -> Path:
    """Write images (T, height, width, 3) uint8 as mp4 (H.264, plays in a browser) or GIF, by the path's ending.

    Args:
        frames: one camera's images, right way up.
        path: ends in `.mp4` or `.gif`.
        fps: images per second.
        scale: integer factor by which small images are enlarged.
    """
    large = frames.repeat(scale, axis=1).repeat(scale, axis=2)
    large = large[:, : large.shape[1] // 2 * 2, : large.shape[2] // 2 * 2]  # H.264 halves the resolution of colors
    written = io.BytesIO()
    if path.suffix == ".gif":
        from PIL import Image

        first, *others = map(Image.fromarray, large)
        first.save(written, "GIF", save_all=True, append_images=others, duration=1000 / fps, loop=0)
    else:
        height, width = large.shape[1:3]
        with VideoWriter(written, height, width, fps, QUALITY) as video:
            video.write(large)
    write_file(path, written.getbuffer())
    return path


def demo_images(demo: Demo) -> np.ndarray:
    """All cameras of a demo side by side, (T, height, width, 3) uint8.

    Raises:
        ValueError: the demo holds no images.
    """
    images = [value for _, value in sorted(demo.obs.items()) if value.ndim == 4 and value.dtype == np.uint8]
    if not images:
        raise ValueError(f"{demo.name} holds no images; it has {', '.join(sorted(demo.obs))}; collect with --cameras")
    return np.concatenate(images, axis=2)


def episode_images(episode: Any) -> np.ndarray:
    """All cameras of a recorded `rollout.episodes.Episode` side by side, (T, height, width, 3) uint8."""
    return np.concatenate([demo_images(demo) for demo in episode.demos])


def side_by_side(videos: Sequence[np.ndarray]) -> np.ndarray:
    """Videos (T, height, width, 3) uint8 of one height as one; those that end early show their last image until the end."""
    length = max(len(video) for video in videos)
    parts = []
    for video in videos:
        held = np.concatenate([video, np.repeat(video[-1:], length - len(video), axis=0)])
        parts += [held, np.full((length, video.shape[1], GAP_PX, 3), 255, np.uint8)]
    return np.concatenate(parts[:-1], axis=2)


class RerunViewer:
    """The rerun viewer, which shows images, numbers and texts over time.

    Args:
        title: title of the viewer's window.

    Raises:
        ImportError: rerun is not installed; the message names the extra to install.
    """

    def __init__(self, title: str) -> None:
        try:
            import rerun
        except ImportError:
            raise ImportError("the viewer needs rerun; pip install 'robopolicy[view]'") from None
        self._rerun = rerun
        rerun.init(title, spawn=True)

    def show(self, time_s: float, values: Mapping[str, Any]) -> None:
        """Add the values of one instant [s] by name: images (height, width, 3), numbers, or texts."""
        rerun = self._rerun
        rerun.set_time("time", duration=time_s)
        for name, value in values.items():
            numbers = rerun.Image if np.ndim(value) == 3 else lambda value: rerun.Scalars(np.ravel(value))
            rerun.log(name, rerun.TextLog(value) if isinstance(value, str) else numbers(value))


def show_in_rerun(demo: Demo, control_dt: float) -> None:
    """Open a demo in the rerun viewer: images, low-dimensional observations and actions over time.

    Args:
        demo: the demo to show.
        control_dt: time of one step [s].
    """
    viewer = RerunViewer(f"robopolicy {demo.name}")
    rows = {"actions": demo.actions, **{f"obs/{key}": values for key, values in demo.obs.items()}}
    for step in range(len(demo)):
        viewer.show(step * control_dt, {name: values[step] for name, values in rows.items()})
