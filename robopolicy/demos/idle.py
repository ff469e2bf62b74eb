"""Idle stretches of a demo: consecutive steps at which no joint, base or gripper is commanded to move."""

from collections.abc import Iterable

import numpy as np

from robopolicy.types import ActionSpec

IDLE_SHARE = 0.05
"""A column moves at a step if it is commanded to move more than this fraction of its fast motion (see `IdleSteps`)."""
GRIPPER_WAIT_S = 0.5
"""Time that the arm may wait for the gripper after a gripper command [s]; steps within it are not idle."""
DEFAULT_RATE_HZ = 20.0
"""Control rate that is assumed if the action spec declares none [Hz]."""


class IdleSteps:
    """Finds the idle steps in the demos of a set.

    Args:
        actions: (T, width) of each demo; the fast motion of a column is the 99th percentile of its motion per step, over the
            steps of all demos.
        spec: describes the columns. Columns of unknown kind are treated as deltas.
    """

    def __init__(self, actions: Iterable[np.ndarray], spec: ActionSpec) -> None:
        self._spec = spec
        self._wait = round(GRIPPER_WAIT_S * (spec.rate_hz or DEFAULT_RATE_HZ))
        rows = list(actions)
        self._fast = np.percentile(np.concatenate([self._motion(demo) for demo in rows]), 99, axis=0)
        self._strokes = {
            column: IDLE_SHARE * max(float(np.ptp(demo[:, column])) for demo in rows)
            for column, _, _ in spec.gripper_ends
        }

    def of(self, actions: np.ndarray) -> np.ndarray:
        """(T,) bool: True at steps where no joint, base or gripper is commanded to move."""
        idle = np.all(self._motion(actions) <= IDLE_SHARE * self._fast, axis=1)
        for column, stroke in self._strokes.items():
            for step in np.flatnonzero(np.abs(np.diff(actions[:, column])) > stroke) + 1:
                idle[step : step + self._wait] = False
        return idle

    def stretches(self, actions: np.ndarray, longer_than: int) -> list[tuple[int, int]]:
        """Start and end (exclusive) of each idle stretch of more than `longer_than` steps."""
        return [(start, stop) for start, stop in runs(self.of(actions)) if stop - start > longer_than]

    def kept(self, actions: np.ndarray, longest: int) -> np.ndarray:
        """Ascending indices of the steps that remain if each idle stretch is cut to its last `longest` steps."""
        keep = np.ones(len(actions), bool)
        for start, stop in self.stretches(actions, longest):
            keep[start : stop - longest] = False
        return np.flatnonzero(keep)

    def _motion(self, actions: np.ndarray) -> np.ndarray:
        """(T, columns): how far each joint or base column is commanded to move at each step, in the units of the actions."""
        joints, base = list(self._spec.joint_columns), list(self._spec.base)
        moved = actions[:, joints]
        if self._spec.kind == "absolute" and self._spec.space != "joint_velocity":
            moved = np.diff(moved, axis=0, prepend=moved[:1])
        return np.abs(np.concatenate([moved, actions[:, base]], axis=1).astype(np.float64))


def runs(flags: np.ndarray) -> list[tuple[int, int]]:
    """Start and end (exclusive) of each run of True values in `flags` (T,)."""
    edges = np.flatnonzero(np.diff(np.r_[False, flags, False]))
    return [(int(start), int(stop)) for start, stop in zip(edges[::2], edges[1::2], strict=True)]
