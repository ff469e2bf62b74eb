"""Converts camera images from the layouts and types found in demo files to this package's, uint8 (T, height, width, 3)."""

import numpy as np

from robopolicy.types import DemoFormatError

MIN_PX = 8
"""Arrays whose height or width is smaller are not treated as images, except uint8 (height, width, 3) [pixels]."""


def image_form(shape: tuple[int, ...], dtype: np.dtype) -> str | None:
    """Describe how images differ from uint8 (height, width, 3); None if they do not differ, or are not images.

    Only uint8 and float arrays are taken as images. The values of a float image must be in [0, 1], which `as_image` checks.

    Args:
        shape: shape of one row.
        dtype: type of the rows.
    """
    layout = _layout(shape, dtype)
    if layout is None or (layout == "color" and dtype == np.uint8):
        return None
    channels = {"color": "", "first": "channels first"}.get(layout, "grayscale")
    return ", ".join(filter(None, [channels, "float in [0, 1]" if dtype.kind == "f" else ""]))


def as_image(values: np.ndarray) -> np.ndarray:
    """Convert images (T, ...) that `image_form` describes to uint8 (T, height, width, 3).

    All other arrays, and float arrays with values outside [0, 1], are returned unchanged.
    """
    shape, dtype = values.shape[1:], values.dtype
    if image_form(shape, dtype) is None:
        return values
    if dtype.kind == "f":
        if not values.size or values.min() < 0 or values.max() > 1:
            return values
        values = (values * 255).round().astype(np.uint8)
    layout = _layout(shape, dtype)
    if layout == "gray":
        values = values[..., None]
    elif layout in ("first", "gray first"):
        values = np.moveaxis(values, 1, -1)
    return np.ascontiguousarray(values) if values.shape[-1] == 3 else values.repeat(3, axis=-1)


def scaled_image(values: np.ndarray, white: float, where: str) -> np.ndarray:
    """Scale images (T, ...) with values 0 .. white to uint8 (T, height, width, 3).

    Args:
        values: images of any layout that `as_image` accepts, with any numeric type.
        white: the value of full brightness, such as 65535 or 4095.
        where: the beginning of error messages.

    Raises:
        DemoFormatError: the rows do not have the shape of an image, or a value lies outside 0 .. white.
    """
    if _layout(values.shape[1:], np.dtype(np.uint8)) is None:
        raise DemoFormatError(
            f"{where}: rows of shape {values.shape[1:]} are not images; expected height x width (x 3)"
        )
    if not (values.min() >= 0 and values.max() <= white):
        raise DemoFormatError(f"{where}: values {values.min():g} .. {values.max():g}, expected 0 .. {white:g}")
    return as_image((values * (255 / white)).round().astype(np.uint8))


def _layout(shape: tuple[int, ...], dtype: np.dtype) -> str | None:
    """Layout of one image: color (channels last), first (channels first), gray, gray last, gray first; None: no image.

    "gray" has the shape (height, width), "gray last" and "gray first" a channel axis of length 1.
    """
    if dtype != np.uint8 and dtype.kind != "f":
        return None
    if len(shape) == 2 and min(shape) >= MIN_PX and dtype == np.uint8:
        return "gray"
    if len(shape) != 3:
        return None
    for place, name in ((2, ("color", "gray last")), (0, ("first", "gray first"))):
        sides = shape[:2] if place == 2 else shape[1:]
        if shape[place] in (1, 3) and (
            min(sides) >= MIN_PX or (dtype == np.uint8 and shape[place] == 3 and place == 2)
        ):
            return name[0] if shape[place] == 3 else name[1]
    return None
