"""Converts camera images from other forms found in files to the package's own, uint8 (T, height, width, 3)."""

import numpy as np

from robopolicy.types import DemoFormatError

MIN_PX = 8
"""Arrays with a smaller side are not treated as images [pixels]."""


def image_form(shape: tuple[int, ...], dtype: np.dtype) -> str | None:
    """How rows of images differ from uint8 (height, width, 3), in words; None if they do not, or if they are not images.

    Only uint8 and float arrays are taken as images. The values of a float image must be in [0, 1], which `as_image` checks.
    """
    layout = _layout(shape, dtype)
    if layout is None or (layout == "color" and dtype == np.uint8):
        return None
    channels = {"color": "", "first": "channels first"}.get(layout, "grayscale")
    return ", ".join(filter(None, [channels, "float in [0, 1]" if dtype.kind == "f" else ""]))


def as_image(values: np.ndarray) -> np.ndarray:
    """Images in the rows (T, ...) as uint8 (T, height, width, 3), if `image_form` describes them; other rows unchanged."""
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
    """Rows (T, ...) of numbers 0 .. white as uint8 images (T, height, width, 3).

    Args:
        values: images of any layout that `as_image` knows, of any type of number.
        white: the value of full brightness, such as 65535 or 4095.
        where: beginning of error messages.

    Raises:
        DemoFormatError: the rows have another shape than an image's, or lie outside 0 .. white.
    """
    if _layout(values.shape[1:], np.dtype(np.uint8)) is None:
        raise DemoFormatError(
            f"{where}: rows of shape {values.shape[1:]} are not images; expected height x width (x 3)"
        )
    if not (values.min() >= 0 and values.max() <= white):
        raise DemoFormatError(f"{where}: values {values.min():g} .. {values.max():g}, expected 0 .. {white:g}")
    return as_image((values * (255 / white)).round().astype(np.uint8))


def _layout(shape: tuple[int, ...], dtype: np.dtype) -> str | None:
    """Layout of one image: color (channels last), first (channels first), gray, or gray with a channel axis; None: no image."""
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
