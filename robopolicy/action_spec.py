"""Describes the columns of an action row; nothing here imports torch, as in `robopolicy.types`."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any, Literal, TypeAlias

import numpy as np

Array: TypeAlias = Any
"""A NumPy array or a torch tensor."""
ActionKind: TypeAlias = Literal["delta", "absolute", "unknown"]
ActionSpace: TypeAlias = Literal["ee", "joint_position", "joint_velocity", "unknown"]


@dataclass(frozen=True)
class ActionSpec:
    """Describes each column of a demo's action rows.

    Inside the package, action targets are ordered arm first, gripper last; `split` separates the columns of a row, and
    `order` puts them back. A count is short for the next columns: `ActionSpec(arm=6, gripper=1)` is columns 0-5 and column 6.
    Index lists describe interleaved layouts, such as ALOHA's 6 + 1 + 6 + 1.

    Raises:
        ValueError: a column is named twice, or a column below the highest one is not named.
    """

    arm: int | Sequence[int] = 6
    """Columns learned by regression: a count or indices. A continuous gripper is one of them."""
    gripper: int | Sequence[int] = 1
    """Columns with exactly two values, learned as a binary choice: a count or indices. May be 0."""
    constant: Mapping[int, float] = field(default_factory=dict)
    """Columns that never change, and their value; it is returned unchanged, not learned."""
    gripper_values: Sequence[tuple[float, float]] = ()
    """For each gripper column, the values of label 0 and label 1 in the demos' units; default (-1, 1)."""
    continuous_gripper: Sequence[int] = ()
    """Those arm columns that move a gripper."""
    continuous_gripper_values: Sequence[tuple[float, float]] = ()
    """For each of them, the two ends of its range in the demos' units, in the order of `gripper_values`; default (-1, 1)."""
    base: Sequence[int] = ()
    """Those arm columns that are velocities of a mobile base [m/s, rad/s], whatever `space` the others have."""
    arms: Mapping[str, Sequence[int]] = field(default_factory=dict)
    """For a robot of several arms, the columns of each by its name, gripper included; empty: one arm, or joints in
    the robot's own order. Base columns belong to no arm."""
    kind: ActionKind = "unknown"
    """Whether arm columns are added to the current pose (`delta`) or are the pose itself (`absolute`)."""
    space: ActionSpace = "unknown"
    """Space of the arm columns: poses of the end effector, joint positions, or joint velocities."""
    units: Sequence[str] = ()
    """Unit of each arm column; empty if unknown."""
    rate_hz: float | None = None
    """Actions per second; None if unknown."""

    def __post_init__(self) -> None:
        arm = _columns(self.arm, start=0)
        taken = len(arm) if isinstance(self.arm, int) else max((*arm, -1)) + 1
        gripper, continuous = _columns(self.gripper, start=taken), _columns(self.continuous_gripper, start=0)
        normalized = {
            "arm": arm,
            "gripper": gripper,
            "constant": {int(column): float(value) for column, value in self.constant.items()},
            "gripper_values": _pairs(self.gripper_values, len(gripper)),
            "continuous_gripper": continuous,
            "continuous_gripper_values": _pairs(self.continuous_gripper_values, len(continuous)),
            "base": _columns(self.base, start=0),
            "arms": {str(name): _columns(columns, start=0) for name, columns in self.arms.items()},
            "units": tuple(self.units),
        }
        for name, value in normalized.items():
            object.__setattr__(self, name, value)
        self._check_columns()
        self._check_values()

    def _check_columns(self) -> None:
        arm, named = self.arm_columns, [*self.arm_columns, *self.gripper_columns, *self.constant]
        if sorted(named) != list(range(len(named))):
            raise ValueError(
                f"action columns {sorted(named)} should be 0 .. {len(named) - 1}, each once; "
                f"name every column of the demos' actions in exactly one of arm {list(arm)}, gripper "
                f"{list(self.gripper_columns)}, constant {list(self.constant)}"
            )
        for name in ("continuous_gripper", "base"):
            if not set(getattr(self, name)) <= set(arm):
                raise ValueError(f"{name} {list(getattr(self, name))} must be among the arm columns {list(arm)}")
        owned = sorted(column for columns in self.arms.values() for column in columns)
        moving = {*arm, *self.gripper_columns} - set(self.base) | set(owned) & set(self.constant)
        if self.arms and owned != sorted(moving):
            raise ValueError(
                f"the columns of the arms {self.arms} must hold each arm and gripper column once, and no base column "
                f"{list(self.base)}"
            )

    def _check_values(self) -> None:
        for name in ("gripper", "continuous_gripper"):
            columns, pairs = getattr(self, name), getattr(self, f"{name}_values")
            if len(pairs) != len(columns) or any(low == high for low, high in pairs):
                raise ValueError(
                    f"{name}_values {pairs} for {len(columns)} columns of {name}; give a pair of different values for each"
                )
        if self.units and len(self.units) != len(self.arm_columns):
            raise ValueError(f"{len(self.units)} units for {self.arm_width} arm columns; give one each, or none")
        if self.rate_hz is not None and not self.rate_hz > 0:
            raise ValueError(f"rate_hz is {self.rate_hz}; expected a positive number of actions per second")

    @property
    def arm_columns(self) -> tuple[int, ...]:
        """Indices of the arm columns in a demo's action row."""
        return tuple(self.arm)  # type: ignore[arg-type]

    @property
    def gripper_columns(self) -> tuple[int, ...]:
        """Indices of the binary gripper columns in a demo's action row."""
        return tuple(self.gripper)  # type: ignore[arg-type]

    @property
    def joint_columns(self) -> tuple[int, ...]:
        """The arm columns without those of grippers and base."""
        others = {*self.continuous_gripper, *self.base}
        return tuple(column for column in self.arm_columns if column not in others)

    @cached_property
    def gripper_ends(self) -> tuple[tuple[int, float, float], ...]:
        """Column and the two values of every gripper, binary or continuous, in the order of the columns."""
        binary = zip(self.gripper_columns, self.gripper_values, strict=True)
        continuous = zip(self.continuous_gripper, self.continuous_gripper_values, strict=True)
        return tuple(sorted((column, first, second) for column, (first, second) in (*binary, *continuous)))

    @cached_property
    def arm_specs(self) -> "Mapping[str, ActionSpec]":
        """For each of `arms`, the spec of a row with only its columns, in ascending order."""
        found = {}
        for name, columns in self.arms.items():
            place = {column: index for index, column in enumerate(sorted(columns))}
            binary = [index for index, column in enumerate(self.gripper_columns) if column in place]
            continuous = [index for index, column in enumerate(self.continuous_gripper) if column in place]
            found[name] = ActionSpec(
                arm=[place[column] for column in self.arm_columns if column in place],
                gripper=[place[self.gripper_columns[index]] for index in binary],
                constant={place[column]: value for column, value in self.constant.items() if column in place},
                gripper_values=[self.gripper_values[index] for index in binary],
                continuous_gripper=[place[self.continuous_gripper[index]] for index in continuous],
                continuous_gripper_values=[self.continuous_gripper_values[index] for index in continuous],
                kind=self.kind,
                space=self.space,
                rate_hz=self.rate_hz,
            )
        return found

    @property
    def arm_width(self) -> int:
        """A, the number of arm columns."""
        return len(self.arm_columns)

    @property
    def gripper_width(self) -> int:
        """G, the number of binary gripper columns."""
        return len(self.gripper_columns)

    @property
    def width(self) -> int:
        """Columns of one action row in the demos' own layout, constants included."""
        return self.arm_width + self.gripper_width + len(self.constant)

    @property
    def order(self) -> tuple[int, ...]:
        """Index of each column of a demo's row in the order (arm, gripper, constant): `joined[..., order]` is the row."""
        internal = [*self.arm_columns, *self.gripper_columns, *self.constant]
        return tuple(int(place) for place in np.argsort(internal))

    def split(self, rows: Array) -> tuple[Array, Array]:
        """Arm (..., A) and gripper (..., G) columns of action rows (..., width), in the rows' own units."""
        if rows.shape[-1] != self.width:
            raise ValueError(f"action rows have {rows.shape[-1]} columns; this ActionSpec describes {self.width}")
        return rows[..., list(self.arm_columns)], rows[..., list(self.gripper_columns)]

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary; `from_dict` reads it back."""
        return json.loads(json.dumps(asdict(self)))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "ActionSpec":
        """The inverse of `to_dict`."""
        known = dict(values)
        known["constant"] = {int(column): value for column, value in known.get("constant", {}).items()}
        for pairs in ("gripper_values", "continuous_gripper_values"):
            known[pairs] = tuple((low, high) for low, high in known.get(pairs, ()))
        return cls(**known)


def _columns(columns: int | Sequence[int], start: int) -> tuple[int, ...]:
    if isinstance(columns, int):
        if columns < 0:
            raise ValueError(f"{columns} action columns; a count is 0 or more")
        return tuple(range(start, start + columns))
    return tuple(int(column) for column in columns)


def _pairs(values: Sequence[tuple[float, float]], count: int) -> tuple[tuple[float, float], ...]:
    """The two values of each gripper; default: (-1, 1) for each of `count`."""
    return tuple((float(low), float(high)) for low, high in values) or ((-1.0, 1.0),) * count
