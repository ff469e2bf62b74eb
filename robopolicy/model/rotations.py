"""Converts the rotations in an array's columns to a continuous form for learning, and back.

A quaternion and its negative are the same rotation, and an angle jumps by a full turn at the end of its range. Without
conversion, a network would see two very different values for the same pose. `aligned` keeps the columns and replaces each
rotation by the equivalent value that is nearest to the training demos' mean rotation. The result depends on the current frame
only, so streaming does not need to remember the last sign. `6d` is continuous everywhere: the first two columns of the
rotation matrix (Zhou et al. 2019, "On the Continuity of Rotation Representations in Neural Networks"), or cosine and sine of a
single angle.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from math import pi

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from robopolicy.model.rotation_math import (
    TINY,
    RotationColumns,
    RotationForm,
    RotationKind,
    in_range,
    mean_rotation,
    nearest,
    turn_origin,
    why_not,
)

LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class RotationFit:
    """Statistics of the rotations of one array (d columns) over the training split."""

    reference: np.ndarray
    """(d,) mean rotation, in the file's own representation; 0 in other columns."""
    origin: np.ndarray
    """(d,) lower end of the file's range of angles: -pi or 0 [rad]."""
    known: np.ndarray
    """(rotations,) bool: False for rotations whose values are not of the expected kind; these are left unchanged."""


class Rotations(nn.Module):
    """The rotations of one array: `forward` into the learned form, `inverse` back into the file's.

    `aligned` keeps every column in its place; `6d` puts the other columns first, then each rotation. The inverse gives
    the same rotation in the file's own range: unit quaternions on the reference's side, rotation vectors no longer than pi.
    """

    def __init__(self, width: int, parts: Sequence[RotationColumns], form: RotationForm) -> None:
        super().__init__()
        self.width, self.parts = width, tuple(parts)
        self.coded = form == "6d" and bool(self.parts)
        taken = {column for part in self.parts for column in part.columns}
        self.others = [column for column in range(width) if column not in taken]
        learned = sum(part.learned_width(form) for part in self.parts)
        self.learned_width = len(self.others) + learned if self.parts else width
        if self.parts:
            self.reference, self.origin = nn.Buffer(torch.zeros(width)), nn.Buffer(torch.zeros(width))
            self.known = nn.Buffer(torch.zeros(len(self.parts)))

    def load(self, fit: RotationFit | None) -> None:
        """Set the statistics that were fit to the training split."""
        if fit is not None and self.parts:
            self.reference.copy_(torch.as_tensor(fit.reference))
            self.origin.copy_(torch.as_tensor(fit.origin))
            self.known.copy_(torch.as_tensor(fit.known))

    def align(self, values: Tensor) -> Tensor:
        """(..., d) -> the equivalent values nearest to the reference, in the same columns."""
        aligned = values
        for index, part in enumerate(self.parts):
            before = _take(values, part.columns)
            after = nearest(part.kind, before, _take(self.reference, part.columns))
            if part.kind != "quaternion":  # a reference of 0 does not change a quaternion's sign
                after = torch.where(self.known[index] > 0, after, before)
            aligned = _put(aligned, part.columns, after)
        return aligned

    def forward(self, values: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch learned"]:
        """(..., d) as in the file -> (..., e) as it is learned."""
        if not self.coded:
            return self.align(values)
        return torch.cat(
            [values[..., self.others], *(code(part.kind, _take(values, part.columns)) for part in self.parts)],
            dim=-1,
        )

    def inverse(self, learned: Float[Tensor, "*batch learned"]) -> Float[Tensor, "*batch width"]:
        """(..., e) as a network predicts it -> (..., d) as in the file."""
        if self.coded:
            return self._decoded(learned)
        values = learned
        for index, part in enumerate(self.parts):
            before = _take(learned, part.columns)
            after = in_range(part.kind, before, _take(self.origin, part.columns))
            values = _put(values, part.columns, torch.where(self.known[index] > 0, after, before))
        return values

    def _decoded(self, learned: Tensor) -> Tensor:
        place = len(self.others)
        found = {column: learned[..., index] for index, column in enumerate(self.others)}
        for part in self.parts:
            width = part.learned_width("6d")
            values = decode(part.kind, learned[..., place : place + width], _take(self.reference, part.columns))
            values = in_range(part.kind, values, _take(self.origin, part.columns))
            found |= {column: values[..., index] for index, column in enumerate(part.columns)}
            place += width
        return torch.stack([found[column] for column in range(self.width)], dim=-1)


def fit_rotations(
    rows: Float[np.ndarray, "rows width"], parts: Sequence[RotationColumns], where: str
) -> RotationFit | None:
    """The statistics of the rotations; None if there are no rotations.

    Args:
        rows: rows of the training split.
        parts: the rotations among their columns.
        where: start of messages about values that are not valid rotations.

    Raises:
        ValueError: values of `strict` columns are not valid rotations.
    """
    if not parts:
        return None
    rows = np.asarray(rows, dtype=np.float64)
    fit = RotationFit(np.zeros(rows.shape[1]), np.full(rows.shape[1], -pi), np.ones(len(parts), dtype=bool))
    for index, part in enumerate(parts):
        columns = list(part.columns)
        values = rows[:, columns]
        reason = why_not(part.kind, values)
        if reason and part.strict:
            raise ValueError(f"{where}: {reason}; give its kind, or none, in --normalization.rotations")
        if reason:
            LOG.info("%s: columns %s look like a %s, but %s; left unchanged", where, columns, part.kind, reason)
        fit.known[index] = reason is None
        fit.reference[columns] = 0.0 if reason else mean_rotation(part.kind, values)
        if part.kind == "angle":
            fit.origin[columns] = np.nan_to_num(turn_origin(values))
    return fit


def _take(values: Tensor, columns: tuple[int, ...]) -> Tensor:
    """Columns of (..., d), without a copy if they are adjacent."""
    first, last = columns[0], columns[-1] + 1
    return values[..., first:last] if columns == tuple(range(first, last)) else values[..., list(columns)]


def _put(values: Tensor, columns: tuple[int, ...], part: Tensor) -> Tensor:
    """The values with these columns replaced by `part`."""
    width, first, last = values.shape[-1], columns[0], columns[-1] + 1
    if len(columns) == width and columns == tuple(range(width)):
        return part
    if columns == tuple(range(first, last)):
        return torch.cat([values[..., :first], part, values[..., last:]], dim=-1)
    place = {column: index for index, column in enumerate(columns)}
    return torch.stack([part[..., place[c]] if c in place else values[..., c] for c in range(width)], dim=-1)


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
    """The inverse of `code`, for any numbers: the matrix columns are first made orthonormal by Gram-Schmidt."""
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
