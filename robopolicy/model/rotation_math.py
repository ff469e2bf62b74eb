"""Finds an array's rotation columns, chooses among equivalent values and averages rotations; for NumPy and torch.

Quaternions may be in either order, x y z w or w x y z, as long as one order is used throughout. Rotation vectors and
angles are in [rad].
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import pi
from typing import Literal, TypeAlias

import numpy as np

from robopolicy.action_spec import ActionSpec, Array
from robopolicy.arrays import namespace

RotationKind: TypeAlias = Literal["quaternion", "axis-angle", "angle", "none"]
"""What columns hold: a unit quaternion in either order, a rotation vector [rad], or independent angles [rad]."""

RotationForm: TypeAlias = Literal["aligned", "6d", "none"]
"""The form of a rotation that the network learns."""

TOLERANCE = 1e-2
"""Tolerance of a quaternion's norm, and of the range of a rotation vector or an angle [rad]."""
TINY = 1e-9
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
    strict: bool = False
    """True: values that are not valid rotations are an error; False: such values are left unchanged."""

    def learned_width(self, form: RotationForm) -> int:
        """Number of columns of the learned form."""
        if form == "6d":
            return 2 * len(self.columns) if self.kind == "angle" else 6
        return len(self.columns)


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
    """(d,) lower end of the range of angles (n, d): -pi or 0, or NaN if the angles fit neither range."""
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


def nearest(kind: RotationKind, values: Array, reference: Array) -> Array:
    """Of the values that represent the same rotation, the one nearest to the reference."""
    xp = namespace(values)
    if kind == "quaternion":
        other_side = (values * reference).sum(-1)[..., None] < 0
        return xp.where(other_side, -values, values)
    if kind == "angle":
        return values - 2 * pi * xp.round((values - reference) / (2 * pi))
    length = _length(values)
    other = values * (1 - 2 * pi / length.clip(TINY))
    nearer = _length(other - reference) < _length(values - reference)
    return xp.where(nearer & (length > TINY), other, values)


def in_range(kind: RotationKind, values: Array, origin: Array) -> Array:
    """The same rotation in the files' range: norm 1, length at most pi, or angle in [origin, origin + 2 pi)."""
    xp = namespace(values)
    if kind == "quaternion":
        return values / _length(values).clip(TINY)
    if kind == "angle":
        return values - 2 * pi * xp.floor((values - origin) / (2 * pi))
    length = _length(values)
    return values * (1 - 2 * pi * xp.round(length / (2 * pi)) / length.clip(TINY))


def is_rotation(kind: RotationKind, values: Array) -> Array:
    """(..., 1) bool: False for quaternions whose norm is not 1."""
    xp = namespace(values)
    if kind != "quaternion":
        return xp.ones_like(values[..., :1], dtype=xp.bool)
    return abs(_length(values) - 1) <= TOLERANCE


def _length(values: Array) -> Array:
    return namespace(values).linalg.norm(values, axis=-1, keepdims=True)


def key_rotations(
    key: str, width: int, form: RotationForm, declared: Mapping[str, RotationKind]
) -> tuple[RotationColumns, ...]:
    """The rotations of an observation key: those declared for it, else a quaternion if its name is that of one.

    Raises:
        ValueError: a declaration doesn't fit the key.
    """
    if form == "none":
        return ()
    if own := _declared(key, width, declared):
        return tuple(part for part in own if part.kind != "none")
    named = width == 4 and QUATERNION_KEY.fullmatch(key)
    return (RotationColumns((0, 1, 2, 3), "quaternion", strict=form == "6d"),) if named else ()


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
            found.append(RotationColumns(columns, part.kind, part.strict))
    return tuple(found)


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
        found.append(RotationColumns(columns, kind, strict=True))
    return tuple(found)
