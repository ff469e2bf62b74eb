"""Arithmetic of rotations: choice among equivalent values, conversion to and from the 6-D form, and the mean.

Quaternions may be in either order, x y z w or w x y z, as long as it is the same throughout. Rotation vectors and
angles are in [rad].
"""

from math import pi
from typing import Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor

RotationKind: TypeAlias = Literal["quaternion", "axis-angle", "angle", "none"]
"""What columns hold: a unit quaternion in either order, a rotation vector [rad], or independent angles [rad]."""

TOLERANCE = 1e-2
"""Tolerance of a quaternion's length, and of the range of a rotation vector or an angle [rad]."""
TINY = 1e-9


def why_not(kind: RotationKind, values: np.ndarray) -> str | None:
    """Why the values (n, d) are not rotations of this kind; None if they are."""
    length = np.linalg.norm(values, axis=1)
    if kind == "quaternion" and (worst := float(np.abs(length - 1).max())) > TOLERANCE:
        return f"quaternions are of length {length[np.abs(length - 1).argmax()]:.4g} (off by {worst:.2g}), expected 1"
    if kind == "axis-angle" and length.max() > pi + TOLERANCE:
        return f"rotation vectors are up to {length.max():.4g} long, expected at most pi"
    if kind == "angle" and np.isnan(origin := turn_origin(values)).any():
        column = int(np.isnan(origin).argmax())
        low, high = values[:, column].min(), values[:, column].max()
        return f"angles reach from {low:.4g} to {high:.4g}, expected -pi .. pi or 0 .. 2 pi"
    return None


def turn_origin(values: np.ndarray) -> np.ndarray:
    """(d,) lower end of the range of angles (n, d): -pi or 0, or NaN if it is neither."""
    low, high = values.min(axis=0), values.max(axis=0)
    symmetric = (low >= -pi - TOLERANCE) & (high <= pi + TOLERANCE)
    positive = (low >= -TOLERANCE) & (high <= 2 * pi + TOLERANCE)
    return np.where(symmetric, -pi, np.where(positive, 0.0, np.nan))


def mean_rotation(kind: RotationKind, values: np.ndarray) -> np.ndarray:
    """The mean of rotations (n, d), independent of quaternions' signs (Markley et al. 2007, "Averaging Quaternions")."""
    if kind == "angle":
        return np.arctan2(np.sin(values).mean(axis=0), np.cos(values).mean(axis=0))
    if kind == "axis-angle":
        length = np.linalg.norm(values, axis=1, keepdims=True)
        shares = 0.5 * np.sinc(length / (2 * pi)) * values
        mean = mean_rotation("quaternion", np.concatenate([shares, np.cos(length / 2)], axis=1))
        mean = mean if mean[-1] >= 0 else -mean
        sine = np.linalg.norm(mean[:-1])
        return mean[:-1] * (2 * np.arctan2(sine, mean[-1]) / max(sine, TINY))
    mean = np.linalg.eigh(values.T @ values)[1][:, -1]
    return mean * np.sign(mean[np.abs(mean).argmax()])


def nearest(kind: RotationKind, values: Tensor, reference: Tensor) -> Tensor:
    """Of the values that represent the same rotation, the one nearest to the reference."""
    if kind == "quaternion":
        other_side = (values * reference).sum(dim=-1, keepdim=True) < 0
        return torch.where(other_side, -values, values)
    if kind == "angle":
        return values - 2 * pi * torch.round((values - reference) / (2 * pi))
    length = values.norm(dim=-1, keepdim=True)
    other = values * (1 - 2 * pi / length.clamp(min=TINY))
    nearer = (other - reference).norm(dim=-1, keepdim=True) < (values - reference).norm(dim=-1, keepdim=True)
    return torch.where(nearer & (length > TINY), other, values)


def in_range(kind: RotationKind, values: Tensor, origin: Tensor) -> Tensor:
    """The same rotation in the range of the files: of unit length, no longer than pi, or within one turn from `origin` on."""
    if kind == "quaternion":
        return values / values.norm(dim=-1, keepdim=True).clamp(min=TINY)
    if kind == "angle":
        return values - 2 * pi * torch.floor((values - origin) / (2 * pi))
    length = values.norm(dim=-1, keepdim=True)
    return values * (1 - 2 * pi * torch.round(length / (2 * pi)) / length.clamp(min=TINY))


def code(kind: RotationKind, values: Tensor) -> Tensor:
    """(..., d) -> the first two columns of the rotation matrix (..., 6), or cosines and sines (..., 2 d)."""
    if kind == "angle":
        return torch.cat([values.cos(), values.sin()], dim=-1)
    if kind == "axis-angle":
        length = values.norm(dim=-1, keepdim=True)
        share = torch.where(length > TINY, (length / 2).sin() / length.clamp(min=TINY), 0.5)
        values = torch.cat([values * share, (length / 2).cos()], dim=-1)
    x, y, z, w = (values / values.norm(dim=-1, keepdim=True).clamp(min=TINY)).unbind(dim=-1)
    first = [1 - 2 * (y * y + z * z), 2 * (x * y + z * w), 2 * (x * z - y * w)]
    second = [2 * (x * y - z * w), 1 - 2 * (x * x + z * z), 2 * (y * z + x * w)]
    return torch.stack([*first, *second], dim=-1)


def decode(kind: RotationKind, coded: Tensor, reference: Tensor) -> Tensor:
    """The inverse of `code`, for any numbers: the frame is orthogonalized by Gram-Schmidt first."""
    if kind == "angle":
        cosines, sines = coded.chunk(2, dim=-1)
        return torch.atan2(sines, cosines)
    first = _unit(coded[..., :3])
    second = coded[..., 3:]
    second = _unit(second - (first * second).sum(dim=-1, keepdim=True) * first)
    quaternion = _quaternion(first, second, torch.linalg.cross(first, second))
    if kind == "quaternion":
        return nearest(kind, quaternion, reference)
    quaternion = torch.where(quaternion[..., 3:] < 0, -quaternion, quaternion)
    sine = quaternion[..., :3].norm(dim=-1, keepdim=True)
    share = torch.where(sine > TINY, 2 * torch.atan2(sine, quaternion[..., 3:]) / sine.clamp(min=TINY), 2.0)
    return quaternion[..., :3] * share


def _quaternion(first: Tensor, second: Tensor, third: Tensor) -> Tensor:
    """(..., 4) x y z w of the rotation matrix with these columns.

    4 q q^T is linear in the matrix; of its four columns, the one with the largest diagonal entry is numerically most accurate.
    """
    (a, d, g), (b, e, h), (c, f, i) = (column.unbind(dim=-1) for column in (first, second, third))
    products = torch.stack(
        [
            torch.stack([1 + a - e - i, b + d, c + g, h - f], dim=-1),
            torch.stack([b + d, 1 - a + e - i, f + h, c - g], dim=-1),
            torch.stack([c + g, f + h, 1 - a - e + i, d - b], dim=-1),
            torch.stack([h - f, c - g, d - b, 1 + a + e + i], dim=-1),
        ],
        dim=-2,
    )
    largest = products.diagonal(dim1=-2, dim2=-1).argmax(dim=-1)[..., None, None]
    return _unit(products.gather(-2, largest.expand(*largest.shape[:-1], 4)).squeeze(-2))


def _unit(values: Tensor) -> Tensor:
    return values / values.norm(dim=-1, keepdim=True).clamp(min=TINY)
