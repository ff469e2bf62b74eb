"""What the columns of a data set's actions are, where its files don't say."""

from collections.abc import Iterable

import numpy as np

from robopolicy.types import ActionSpec, DemoFormatError


def infer_action_spec(actions: Iterable[np.ndarray]) -> ActionSpec:
    """The default rule: exactly two values make a binary gripper, one value a constant column, the rest is the arm.

    The rule reads all the demos given, since a gripper may stay open in any one of them. Of the two values the lower
    is label 0 and the higher label 1.

    Args:
        actions: (T, width) per demo; may be a generator, so that a set larger than memory passes through.

    Raises:
        DemoFormatError: there is none, or the demos differ in width.
    """
    seen: list[np.ndarray] = []
    for rows in actions:
        if seen and rows.shape[1] != len(seen):
            raise DemoFormatError(f"actions of {rows.shape[1]} columns after others of {len(seen)}; all need the same")
        columns = seen or [rows[:0, column] for column in range(rows.shape[1])]
        # Three values are enough to know that a column is neither constant nor binary.
        seen = [np.unique(np.concatenate([known, rows[:, i]]))[:3] for i, known in enumerate(columns)]
    if not seen:
        raise DemoFormatError("no actions to infer an action spec from; expected at least one demo")
    gripper = [column for column, values in enumerate(seen) if len(values) == 2]
    return ActionSpec(
        arm=[column for column, values in enumerate(seen) if len(values) > 2],
        gripper=gripper,
        constant={column: float(values[0]) for column, values in enumerate(seen) if len(values) == 1},
        gripper_values=[(float(seen[column][0]), float(seen[column][1])) for column in gripper],
    )
