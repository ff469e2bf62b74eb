"""Crops, scales and shifts images by nearest-neighbor sampling; beyond an edge, the edge pixels are repeated."""

import torch
from jaxtyping import Float, UInt8
from torch import Tensor


def resampled(
    images: UInt8[Tensor, "batch segment height width channels"],
    share: Float[Tensor, "batch 1"],
    shift: tuple[Tensor, Tensor],
) -> Tensor:
    """Images cropped to `share` of each side at a random place, shifted by (rows, columns) pixels, scaled back to full size."""
    count, segment, height, width, _ = images.shape
    rows, columns = (_sources(size, share, by) for size, by in zip((height, width), shift, strict=True))
    batch = torch.arange(count, device=images.device)[:, None, None, None]
    frame = torch.arange(segment, device=images.device)[None, :, None, None]
    return images[batch, frame, rows[:, None, :, None], columns[:, None, None, :]]


def _sources(size: int, share: Tensor, shift: Tensor) -> Tensor:
    """(B, size): the source row or column for each row or column of the result, for a crop at a random place."""
    corner = torch.rand_like(share) * (1 - share) * size
    centers = corner + (torch.arange(size, device=share.device) + 0.5) * share + shift
    return centers.floor().long().clamp(0, size - 1)
