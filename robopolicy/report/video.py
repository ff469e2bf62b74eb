"""Images of demos as videos for a browser, or in the rerun viewer."""

from pathlib import Path

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
    except ImportError as error:
        raise ImportError("videos need imageio; pip install 'robopolicy[sim]'") from error
    large = frames.repeat(scale, axis=1).repeat(scale, axis=2)
    large = large[:, : large.shape[1] // 2 * 2, : large.shape[2] // 2 * 2]
    if path.suffix == ".gif":
        write_file(path, imageio.imwrite("<bytes>", large, extension=".gif", duration=1000 / fps, loop=0))
        return path
    with replacing(path) as temporary:
        imageio.imwrite(temporary, large, fps=fps, codec="libx264", macro_block_size=2, ffmpeg_log_level="error")
        _require_frames(temporary, path, len(large))
    return path


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
