"""Detects calibration drift over a set of demos: the offset of a joint or sensor, a camera's orientation or brightness.

It compares quantities that differ little from demo to demo unless the calibration changes: the first reading of each
column, and the background of each camera. A column drifts if it follows the order of the demos (Spearman's rank
correlation, which a single outlier hardly changes) and the last third of the demos differs from the first by more than
the standard deviation within a third.
"""

from collections.abc import Iterator, Sequence

import numpy as np

MIN_DEMOS = 8
"""Smallest number of demos in which drift is detected."""
MIN_TREND = 4.0
"""Minimum rank correlation, absolute, after Fisher's transformation [standard deviations]; two-sided p-value 6e-5."""
MIN_SHIFT = 1.0
"""Minimum difference between the thirds [standard deviations within a third]."""
MIN_SHARE = 0.01
"""Minimum drift, as a fraction of the column's usual range; a smaller drift is not reported."""
MIN_PX = 0.5
MIN_BRIGHTNESS = 0.03
"""Changes of a camera below these (pixels; fraction of the brightness) are not reported."""
THIRDS = "between the first and the last third of the demos"
BACKGROUND_PX = 64
"""Longer side of a background [pixels]."""
BACKGROUND_FRAMES = 16
"""Number of images of a demo whose median is its background."""
NOISE, MIN_RESIDUAL = 4.0, 0.5
"""Noise of a static pixel within a demo, and a lower bound for the scale of the residuals [gray levels, 0 .. 255]."""
FITS = 8
"""Iterations of the reweighted least-squares fit."""


def drift(values: Sequence[float] | np.ndarray) -> tuple[float, float] | None:
    """Means of the first and the last third of the values (one per demo) if they drift; None: no drift."""
    values = np.asarray(values, np.float64)
    third = len(values) // 3
    if len(values) < MIN_DEMOS or np.ptp(values) == 0:
        return None
    # Rank of each value; equal values get the mean of their ranks.
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(count) - (count - 1) / 2)[place]
    correlation = np.corrcoef(ranks, np.arange(len(values)))[0, 1]
    trend = np.arctanh(np.clip(correlation, -1 + 1e-12, 1 - 1e-12)) * np.sqrt((len(values) - 3) / 1.06)
    first, last = values[:third], values[-third:]
    within = np.sqrt((first.var() + last.var()) / 2)
    if abs(trend) < MIN_TREND or abs(last.mean() - first.mean()) < MIN_SHIFT * within:
        return None
    return float(first.mean()), float(last.mean())


def column_drifts(key: str, first_rows: np.ndarray, usual: np.ndarray) -> Iterator[str]:
    """A line for each column of a low-dimensional key that drifts.

    Args:
        key: its name.
        first_rows: (demos, columns) the first reading of each demo, in their order.
        usual: (columns,) width of each column's usual range, as `outliers` estimates it over the demos.
    """
    for column, values in enumerate(first_rows.T):
        found = drift(values)
        if found and abs(found[1] - found[0]) > MIN_SHARE * usual[column]:
            yield f"{key}[{column}] drifts at the first step, from {found[0]:.4g} to {found[1]:.4g} {THIRDS}"


def background(images: np.ndarray) -> np.ndarray:
    """Median brightness 0 .. 255 of each pixel of the images (T, height, width, 3), and its standard deviation.

    Returns:
        (2, rows, columns), averaged down to `BACKGROUND_PX`.
    """
    chosen = np.linspace(0, len(images) - 1, min(len(images), BACKGROUND_FRAMES)).round().astype(int)
    gray = images[chosen].mean(axis=-1, dtype=np.float32)
    step = downscale(images.shape[1:3])
    rows, columns = (size // step for size in gray.shape[1:])
    small = gray[:, : rows * step, : columns * step].reshape(-1, rows, step, columns, step).mean(axis=(2, 4))
    return np.stack([np.median(small, axis=0), small.std(axis=0)])


def downscale(shape: Sequence[int]) -> int:
    """Pixels of an image (height, width) that one pixel of its background stands for, in each direction."""
    return max(1, -(-max(shape) // BACKGROUND_PX))


def camera_drifts(camera: str, backgrounds: Sequence[np.ndarray], step: int) -> Iterator[str]:
    """A line for each drift of a camera: of its shift to the right, of its shift down, and of its brightness.

    Args:
        camera: its key.
        backgrounds: the background of each demo, in their order.
        step: `downscale` of its images.
    """
    if len(backgrounds) < MIN_DEMOS or min(backgrounds[0].shape[1:]) < 3:
        return
    right, down, gain = _moves(np.stack(backgrounds)).T
    for direction, shift in (("to the right", right), ("down", down)):
        found = drift(shift * step)
        if found and abs(found[1] - found[0]) >= MIN_PX:
            yield f"{camera}: the background moves {direction} by {found[1] - found[0]:.2g} pixels {THIRDS}"
    found = drift(gain)
    if found and abs(found[1] - found[0]) >= MIN_BRIGHTNESS:
        yield f"{camera}: the brightness changes by {found[1] - found[0]:+.0%} {THIRDS}"


def _moves(backgrounds: np.ndarray) -> np.ndarray:
    """(demos, 3): shift of each background from the median background, right and down [its pixels], and gain minus 1.

    To first order, an image moved by d is the image minus its gradient times d. Gain, offset and shift are fitted together,
    by iteratively reweighted least squares, with less weight on pixels that change within the demo or that do not fit: the
    robot and the objects, which lie elsewhere in each demo.
    """
    images, spread = backgrounds[:, 0].astype(np.float64), backgrounds[:, 1]
    reference = np.median(images, axis=0)
    down, right = np.gradient(reference)
    inner = (slice(1, -1), slice(1, -1))
    terms = np.stack([-right, -down, reference, np.ones_like(reference)], axis=-1)[inner].reshape(-1, 4)
    found = []
    for image, changes in zip(images, spread, strict=True):
        difference = (image - reference)[inner].reshape(-1)
        still = 1 / (1 + (changes[inner].reshape(-1) / NOISE) ** 2)
        weight = still
        for _ in range(FITS):
            root = np.sqrt(weight)
            fit = np.linalg.lstsq(terms * root[:, None], difference * root, rcond=None)[0]
            residual = difference - terms @ fit
            weight = still / (1 + (residual / (1.4826 * np.median(np.abs(residual)) + MIN_RESIDUAL)) ** 2)
        found.append(fit[:3])
    return np.array(found)
