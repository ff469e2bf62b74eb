"""The columns of a data set's actions: inferred where files do not declare them, compared with the grippers, and described."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from robopolicy.demos.schema import is_number
from robopolicy.types import ActionSpec, DemoFormatError

OPENING = re.compile(r"(.*_)?gripper(_opening|_width|_aperture)?(_m)?", re.IGNORECASE)
"""Names of observation keys whose columns are each a gripper's opening, or one of its two fingers."""
FINGERS = re.compile(r"(.*_)?gripper_(qpos|states?)", re.IGNORECASE)
"""Names of observation keys that hold the positions of a gripper's fingers; robosuite's Panda has two."""
GRIPPER_STEPS = 3
"""A gripper's opening is compared with the command this many steps earlier."""
PAIRED = 0.9
"""Correlation above which two columns are the fingers of one gripper."""


def infer_action_spec(actions: Iterable[np.ndarray]) -> ActionSpec:
    """The default rule: a column with two values is a binary gripper, one with one value is constant, all others are the arm.

    The rule uses all demos, since a gripper may stay open throughout one of them. The lower value is label 0, the higher
    one label 1.

    Args:
        actions: (T, width) per demo; may be a generator, for sets larger than memory.

    Raises:
        DemoFormatError: there are no demos, or they differ in width.
    """
    seen: list[np.ndarray] | None = None
    for rows in actions:
        seen = [rows[:0, column] for column in range(rows.shape[1])] if seen is None else seen
        if rows.shape[1] != len(seen):
            raise DemoFormatError(f"actions of {rows.shape[1]} columns after others of {len(seen)}; all need the same")
        # Three values are enough to know that a column is neither constant nor binary.
        seen = [np.unique(np.concatenate([known, rows[:, i]]))[:3] for i, known in enumerate(seen)]
    if not seen:
        raise DemoFormatError("no actions to infer an action spec from; expected at least one demo, and one column")
    gripper = [column for column, values in enumerate(seen) if len(values) == 2]
    return ActionSpec(
        arm=[column for column, values in enumerate(seen) if len(values) > 2],
        gripper=gripper,
        constant={column: float(values[0]) for column, values in enumerate(seen) if len(values) == 1},
        gripper_values=[(float(seen[column][0]), float(seen[column][1])) for column in gripper],
    )


def robosuite_action_facts(env_args: Mapping[str, Any]) -> dict[str, Any]:
    """Kind, space and rate of the actions, as declared by the environment's controller (robosuite 1.4 and 1.5)."""
    settings = env_args.get("env_kwargs") or {}
    facts: dict[str, Any] = {}
    rate_hz: Any = settings.get("control_freq")
    if is_number(rate_hz) and 0 < rate_hz <= 1e6:
        facts["rate_hz"] = float(rate_hz)
    controller = settings.get("controller_configs")
    if isinstance(controller, list) and controller:
        controller = controller[0]
    if isinstance(controller, Mapping) and isinstance(parts := controller.get("body_parts"), Mapping):
        controller = parts.get("right", controller)
    if not isinstance(controller, Mapping):
        return facts
    kind = str(controller.get("type", ""))
    spaces = {"OSC": "ee", "IK": "ee", "JOINT_POSITION": "joint_position", "JOINT_VELOCITY": "joint_velocity"}
    space = next((space for prefix, space in spaces.items() if kind.startswith(prefix)), None)
    if space is None:
        return facts
    delta = controller.get("input_type", "delta" if controller.get("control_delta", True) else "absolute") == "delta"
    return {**facts, "space": space, "kind": "delta" if delta and space != "joint_velocity" else "absolute"}


def gripper_openings(obs: Mapping[str, np.ndarray]) -> np.ndarray | None:
    """The measured gripper openings in the observations of T steps, (T, openings); None if no key holds one.

    These are keys named for an opening (`gripper`, `left_gripper`, `gripper_width`, ...), and pairs of fingers that move
    together (`robot0_gripper_qpos`, LIBERO's `gripper_states`). A single finger's position doesn't show at which end the
    gripper is open, so it is not used.
    """
    found = []
    for key, values in sorted(obs.items()):
        opens, fingers = OPENING.fullmatch(key), FINGERS.fullmatch(key)
        if values.ndim != 2 or values.dtype.kind not in "iuf" or not (opens or fingers):
            continue
        size = np.abs(values)
        paired = values.shape[1] == 2 and np.ptp(size, axis=0).all() and np.corrcoef(size.T)[0, 1] > PAIRED
        if paired and (fingers or (values.prod(1) <= 0).all()):
            found.append(size.sum(1, keepdims=True))
        elif opens:
            found.append(values)
    return np.concatenate(found, axis=1) if found else None


def opening_ends(
    actions: Sequence[np.ndarray], spec: ActionSpec, openings: Sequence[np.ndarray]
) -> tuple[Literal["first", "second"] | None, ...]:
    """For each of `spec.gripper_ends`, which of its two values opens that gripper; None: unclear from the demos.

    Args:
        actions: (T, width) of each demo.
        spec: describes their columns.
        openings: `gripper_openings` of each demo; the column that follows a gripper's command best is taken as its opening.
    """
    ends: list[Literal["first", "second"] | None] = []
    for column, first, second in spec.gripper_ends:
        if not openings or len({rows.shape[1] for rows in openings}) > 1:
            ends.append(None)
            continue
        commands = [(rows[:-GRIPPER_STEPS, column] - first) / (second - first) for rows in actions]
        at_second = np.concatenate(commands).astype(np.float64)
        measured = np.concatenate([rows[GRIPPER_STEPS:] for rows in openings]).astype(np.float64)
        ends.append(
            max((_follows(at_second, each) for each in measured.T), key=lambda one: one[0], default=(0.0, None))[1]
        )
    return tuple(ends)


def _follows(at_second: np.ndarray, opening: np.ndarray) -> tuple[float, Literal["first", "second"] | None]:
    """How well an opening follows a command (0: first value, 1: second value), and which value opens the gripper."""
    if len(opening) < 2 or np.ptp(at_second) == 0 or np.ptp(opening) == 0:
        return 0.0, None
    correlation = np.corrcoef(at_second, opening)[0, 1]
    slope = correlation * opening.std() / at_second.std()
    if abs(correlation) < 0.5 or abs(slope) < np.ptp(opening) / 4:
        return 0.0, None
    return abs(correlation), "second" if slope > 0 else "first"


def describe_action_spec(spec: ActionSpec) -> str:
    """An action spec in words, one line."""
    parts = [f"{spec.width} columns", f"arm {_runs(spec.arm_columns)}"]
    known = [word for word in (spec.kind, spec.space.replace("_", " ")) if word != "unknown"]
    parts[-1] += f" ({', '.join(known)})" if known else ""
    for column, (low, high) in zip(spec.gripper_columns, spec.gripper_values, strict=True):
        parts.append(f"binary gripper {column} ({low:g} or {high:g})")
    parts += [f"continuous gripper {_runs(spec.continuous_gripper)}"] if spec.continuous_gripper else []
    parts += [f"base {_runs(spec.base)}"] if spec.base else []
    parts += [f"arm {name} {_runs(columns)}" for name, columns in spec.arms.items()]
    parts += [f"constant {column} = {value:g}" for column, value in spec.constant.items()]
    parts += [f"{spec.rate_hz:g} Hz"] if spec.rate_hz else []
    return "; ".join(parts)


def _runs(columns: Sequence[int]) -> str:
    """Column numbers as text such as `0-5, 7`."""
    runs: list[list[int]] = []
    for column in columns:
        if runs and column == runs[-1][-1] + 1:
            runs[-1].append(column)
        else:
            runs.append([column])
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs) or "none"
