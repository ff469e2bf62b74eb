"""Images of demos as videos for a browser, or in the rerun viewer."""

import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from robopolicy.files import replacing, write_file
from robopolicy.types import Demo


def write_video(frames: np.ndarray, path: Path, fps: float = 20.0, scale: int = 4) -> Path:
    """Write images (T, height, width, 3) uint8 as mp4 (H.264, plays in a browser) or GIF, by the path's ending.

    Args:
        frames: one camera's images, right way up.
        path: ends in `.mp4` or `.gif`.
        fps: images per second.
        scale: integer factor by which small images are enlarged.
    """
    try:
        import imageio.v3 as imageio
        import imageio_ffmpeg  # noqa: F401
    except ImportError as error:
        raise ImportError("videos need imageio and imageio-ffmpeg; pip install 'robopolicy[sim]'") from error
    large = frames.repeat(scale, axis=1).repeat(scale, axis=2)
    large = large[:, : large.shape[1] // 2 * 2, : large.shape[2] // 2 * 2]
    if path.suffix == ".gif":
        write_file(path, imageio.imwrite("<bytes>", large, extension=".gif", duration=1000 / fps, loop=0))
        return path
    with replacing(path) as temporary:
        _encode(np.ascontiguousarray(large), temporary, fps)
        _require_frames(temporary, path, len(large))
    return path


def _encode(frames: np.ndarray, path: Path, fps: float) -> None:
    """Encode images (T, height, width, 3) uint8 as H.264, or leave a file of fewer frames where ffmpeg gives up.

    ffmpeg is run here because `imageio` leaves its pipe open, or the process unreaped, when ffmpeg ends early.
    """
    from imageio_ffmpeg import get_ffmpeg_exe

    height, width = frames.shape[1:3]
    source = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", f"{fps:g}", "-i", "-"]
    target = ["-c:v", "libx264", "-crf", "25", "-pix_fmt", "yuv420p", "-y", str(path)]
    words = [get_ffmpeg_exe(), "-v", "error", *source, *target]
    subprocess.run(words, input=frames.data, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)


def _require_frames(written: Path, path: Path, frames: int) -> None:
    """Refuse a video that was cut short: ffmpeg does not report a full disk."""
    from imageio_ffmpeg import count_frames_and_secs

    try:
        found, _ = count_frames_and_secs(str(written))
    except RuntimeError:
        found = 0
    if not found or found < frames:
        raise OSError(f"{path}: {found} of {frames} frames could be written; is the disk full?")


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


def side_by_side(videos: Sequence[np.ndarray], gap: int = 2) -> np.ndarray:
    """Videos (T, height, width, 3) uint8 of one height as one; those that end first show their last image."""
    length = max(len(video) for video in videos)
    parts = []
    for video in videos:
        held = np.concatenate([video, np.repeat(video[-1:], length - len(video), axis=0)])
        parts += [held, np.full((length, video.shape[1], gap, 3), 255, np.uint8)]
    return np.concatenate(parts[:-1], axis=2)


def show_in_rerun(demo: Demo, control_dt: float = 0.05) -> None:
    """Open a demo in the rerun viewer: images, low-dimensional observations and actions over time.

    Args:
        demo: what to show.
        control_dt: time of one step [s].
    """
    try:
        import rerun
    except ImportError as error:
        raise ImportError("the viewer needs rerun; pip install 'robopolicy[view]'") from error
    rerun.init(f"robopolicy {demo.name}", spawn=True)
    for step in range(len(demo)):
        rerun.set_time("time", duration=step * control_dt)
        rerun.log("actions", rerun.Scalars(demo.actions[step]))
        for key, value in demo.obs.items():
            is_image = value.ndim == 4
            rerun.log(f"obs/{key}", rerun.Image(value[step]) if is_image else rerun.Scalars(np.ravel(value[step])))
