"""Reads and writes images in video files and as PNG or JPEG bytes, with PyAV and Pillow."""

import io
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from jaxtyping import UInt8

from robopolicy.types import DemoFormatError

CODEC = "libx264"
QUALITY = {"crf": "18", "g": "2", "preset": "medium"}
"""Visually lossless H.264; every second frame is a key frame, as in LeRobot, for fast access to any frame."""


class VideoWriter:
    """Writes frames to one mp4; a context manager.

    Args:
        target: path of the file, or a seekable file object.
        height: height of the frames [pixels].
        width: width of the frames [pixels].
        rate_hz: frames per second.
        quality: options of the codec.
    """

    def __init__(
        self, target: Path | io.BytesIO, height: int, width: int, rate_hz: float, quality: Mapping[str, str] = QUALITY
    ) -> None:
        self.frames = 0
        self._container = _pyav().open(target, "w", format="mp4")
        rate = Fraction(rate_hz).limit_denominator(1001)
        self._stream: Any = self._container.add_stream(CODEC, rate=rate, options=dict(quality))
        self._stream.width, self._stream.height = width, height
        self._stream.pix_fmt = "yuv444p" if height % 2 or width % 2 else "yuv420p"

    def write(self, frames: UInt8[np.ndarray, "time height width 3"]) -> None:
        """Append these frames."""
        from av import VideoFrame

        for frame in frames:
            self._container.mux(
                self._stream.encode(VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24"))
            )
        self.frames += len(frames)

    def close(self) -> None:
        """Finish the file."""
        self._container.mux(self._stream.encode(None))
        self._container.close()

    def __enter__(self) -> "VideoWriter":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def read_video(path: Path, start_s: float, count: int, rate_hz: float) -> UInt8[np.ndarray, "time height width 3"]:
    """`count` frames from `start_s` on, found by their time stamps.

    Raises:
        DemoFormatError: the file is missing or damaged, or one of the frames isn't in it.
    """
    av = _pyav()
    first = round(start_s * rate_hz)
    found: dict[int, np.ndarray] = {}
    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            container.seek(int(start_s / stream.time_base), stream=stream)
            for frame in container.decode(stream):
                place = round(float(frame.pts * stream.time_base) * rate_hz) - first
                if 0 <= place < count:
                    found[place] = frame.to_ndarray(format="rgb24")
                if len(found) == count or place > count:
                    break
    except (av.FFmpegError, IndexError, ValueError) as error:
        raise DemoFormatError(f"{path.name}: can't be read as video ({error})") from error
    if len(found) != count:
        raise DemoFormatError(
            f"{path.name}: {len(found)} frames from {start_s:.3f} s on; the episode has {count} steps"
        )
    return np.stack([found[place] for place in range(count)])


def encode_png(frame: UInt8[np.ndarray, "height width 3"]) -> bytes:
    """One image as PNG, without loss."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()


def decode_image(data: bytes, where: str) -> UInt8[np.ndarray, "height width 3"]:
    """One PNG or JPEG image as RGB.

    Raises:
        DemoFormatError: it is neither, or cut short.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        return np.asarray(Image.open(io.BytesIO(data), formats=("PNG", "JPEG")).convert("RGB"))
    except (UnidentifiedImageError, OSError, ValueError) as error:
        raise DemoFormatError(f"{where}: not a complete PNG or JPEG image ({error})") from error


def _pyav() -> Any:
    try:
        import av
    except ImportError as error:
        raise DemoFormatError("video needs PyAV; install it with: pip install 'robopolicy[formats]'") from error
    return av
