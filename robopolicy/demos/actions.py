"""The columns of a data set's actions: inferred by a default rule if files do not declare them, and described in words."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from robopolicy.demos.schema import is_number
from robopolicy.types import ActionSpec, DemoFormatError


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
