"""Converts the rotations in an array's columns to a continuous form for learning, and back.

A quaternion and its negative are the same rotation, and an angle jumps by a full turn at the end of its range. Without
conversion, a network would see two very different values for the same pose. `aligned` keeps the columns and replaces each
rotation by the equivalent value that is nearest to the training demos' mean rotation. It depends on the current frame only,
so streaming does not need to remember the last sign. `6d` is continuous everywhere: the first two columns of the rotation
matrix (Zhou et al. 2019, "On the Continuity of Rotation Representations in Neural Networks"), or cosine and sine of a single
angle.
"""

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import pi
from typing import Literal, TypeAlias

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from robopolicy.model.rotation_math import (
    RotationKind,
    code,
    decode,
    in_range,
    mean_rotation,
    nearest,
    turn_origin,
    why_not,
)
from robopolicy.types import ActionSpec

RotationForm: TypeAlias = Literal["aligned", "6d", "none"]
"""The form of a rotation that the network learns."""

LOG = logging.getLogger(__name__)

ACTIONS = "actions"
"""Name of the action rows in declarations of rotations by key."""
DECLARED = re.compile(r"(?P<key>[^\[\]]+)(\[(?P<first>\d+):(?P<last>\d+)\])?")
QUATERNION_KEY = re.compile(r"(.*[_/.])?quat(ernion)?")
"""Keys of width 4 that are assumed to be quaternions because of their name, such as robosuite's `robot0_eef_quat`."""


@dataclass(frozen=True)
class RotationColumns:
    """Columns of one array that are a rotation."""

    columns: tuple[int, ...]
    kind: RotationKind
    declared: bool = False
    """Whether the rotation was declared: other values are then an error; if not declared, they are left unchanged."""

    def learned_width(self, form: RotationForm) -> int:
        """Columns that are learned."""
        if form == "6d":
            return 2 * len(self.columns) if self.kind == "angle" else 6
        return len(self.columns)


@dataclass(frozen=True)
class RotationFit:
    """Statistics of the rotations of one array (d columns) over the training split."""

    reference: np.ndarray
    """(d,) mean rotation, in the file's own representation; 0 in other columns."""
    origin: np.ndarray
    """(d,) lower end of the file's range of angles: -pi or 0 [rad]."""
    known: np.ndarray
    """(rotations,) bool: False where the values are not such rotations and are left unchanged."""


def key_rotations(
    key: str, width: int, form: RotationForm, declared: Mapping[str, RotationKind]
) -> tuple[RotationColumns, ...]:
    """The rotations of an observation key: those declared for it, else by its name.

    Raises:
        ValueError: a declaration doesn't fit the key.
    """
    if form == "none":
        return ()
    if own := _declared(key, width, declared):
        return tuple(part for part in own if part.kind != "none")
    named = width == 4 and QUATERNION_KEY.fullmatch(key)
    return (RotationColumns((0, 1, 2, 3), "quaternion", declared=form == "6d"),) if named else ()


def action_rotations(
    spec: ActionSpec, form: RotationForm, declared: Mapping[str, RotationKind]
) -> tuple[RotationColumns, ...]:
    """The rotations among the arm columns.

    If none are declared, the last 3 columns of an absolute end-effector pose of 6 columns are a rotation vector (robosuite's
    `OSC_POSE`), and the last 4 of one of 7 columns a quaternion. Constant columns are not learned and not part of a rotation.
    """
    if form == "none":
        return ()
    parts = _declared(ACTIONS, spec.width, declared)
    pose = spec.joint_columns
    if not parts and (spec.kind, spec.space) == ("absolute", "ee") and len(pose) in (6, 7):
        parts = (RotationColumns(tuple(pose[3:]), "axis-angle" if len(pose) == 6 else "quaternion", form == "6d"),)
    found = []
    for part in parts:
        columns = tuple(column for column in part.columns if column in spec.arm_columns)
        if form == "6d" and part.kind in ("quaternion", "axis-angle") and len(columns) < len(part.columns):
            raise ValueError(
                f"actions {list(part.columns)} are a {part.kind} of which a column never changes; "
                "--normalization.rotation 6d needs them all, use aligned"
            )
        if columns and part.kind != "none":
            found.append(RotationColumns(columns, part.kind, part.declared))
    return tuple(found)


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
        parts: their rotations.
        where: beginning of messages about values that are not such a rotation.

    Raises:
        ValueError: values that were declared a rotation are not one.
    """
    if not parts:
        return None
    rows = np.asarray(rows, dtype=np.float64)
    fit = RotationFit(np.zeros(rows.shape[1]), np.full(rows.shape[1], -pi), np.ones(len(parts), dtype=bool))
    for index, part in enumerate(parts):
        columns = list(part.columns)
        values = rows[:, columns]
        reason = why_not(part.kind, values)
        if reason and part.declared:
            raise ValueError(f"{where}: {reason}; say what it is, or none, in --normalization.rotations")
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
    """The values with these columns replaced."""
    width, first, last = values.shape[-1], columns[0], columns[-1] + 1
    if len(columns) == width and columns == tuple(range(width)):
        return part
    if columns == tuple(range(first, last)):
        return torch.cat([values[..., :first], part, values[..., last:]], dim=-1)
    place = {column: index for index, column in enumerate(columns)}
    return torch.stack([part[..., place[c]] if c in place else values[..., c] for c in range(width)], dim=-1)


def _declared(key: str, width: int, declared: Mapping[str, RotationKind]) -> tuple[RotationColumns, ...]:
    found: list[RotationColumns] = []
    for text, kind in declared.items():
        match = DECLARED.fullmatch(text)
        if match is None:
            raise ValueError(f"--normalization.rotations {text!r}: expected a key, or columns such as {ACTIONS}[3:6]")
        if match["key"] != key:
            continue
        first, last = (int(match["first"]), int(match["last"])) if match["first"] else (0, width)
        columns = tuple(range(first, last))
        expected = {"quaternion": 4, "axis-angle": 3}.get(kind, len(columns))
        if last > width or len(columns) != expected or not columns:
            raise ValueError(
                f"--normalization.rotations {text!r}: {len(columns)} of the {width} columns of {key}; "
                f"a {kind} has {expected}, name them as {key}[first:last]"
            )
        if twice := [column for part in found for column in part.columns if column in columns]:
            raise ValueError(
                f"--normalization.rotations {text!r}: column {twice[0]} of {key} already belongs to another rotation"
            )
        found.append(RotationColumns(columns, kind, declared=True))
    return tuple(found)
