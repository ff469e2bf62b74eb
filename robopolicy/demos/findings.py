"""Problems of single demos, and anomalies of a set of them."""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import numpy as np

from robopolicy.demos.actions import FINGERS, opening_ends
from robopolicy.demos.formats.base import is_image
from robopolicy.types import ActionSpec, Demo

CLOCK = re.compile(r"(.*_)?(time|timestamp|stamp)(_s)?")
"""Pattern of the names of observation keys that hold times."""
JITTER = 0.5
"""A step is irregular if its duration differs from the median by more than this fraction."""
DRIFT = 0.05
"""Two clocks disagree if the durations of their steps differ by more than this fraction."""
UNIT_TOLERANCE = 1e-3
"""Largest deviation of a quaternion's length from 1."""
DECLARE = "where training doesn't list it among its rotations, declare it in --normalization.rotations as"
OVERSHOOT = 0.5
"""Fraction of the stroke by which commands may exceed the declared ends of a continuous gripper. A leader arm's gripper, which
closes without an object, exceeds them slightly; values in another unit exceed them more."""
MIN_STROKE = 0.25
"""A continuous gripper that uses a smaller fraction of its declared range may be recorded in other units."""
JOINTS = re.compile(r"(.*_)?(qpos|joints?|joint_(states?|pos|positions?|angles?))", re.IGNORECASE)
"""Names of observation keys that hold joint positions."""
TURN_RAD = 2 * np.pi + 0.5
"""Joint positions beyond this [rad] look like degrees: few joints turn further than once."""
REPEATS = 0.5
"""A note is made if more than this fraction of the steps repeats the action before."""


@dataclass(frozen=True)
class Finding:
    """A problem or note that a check found."""

    severity: Literal["problem", "note"]
    """A problem makes the exit code 1 and excludes the demo from `--salvage`; a note is information only."""
    text: str
    demo: str | None = None
    """The demo it was found in; None: the whole file."""
    edit: tuple[str, str] | None = None
    """Option of `robopolicy edit` that removes it, and its value, such as `--drop` and `demo_3`."""


@dataclass
class KeySummary:
    """One observation key, or `actions`, over all demos."""

    shape: tuple[int, ...]
    """Shape of one step."""
    dtype: str
    low: np.ndarray
    """Smallest value per dimension of the last axis; over all of them for images."""
    high: np.ndarray
    demos: int = 0

    @classmethod
    def of(cls, values: np.ndarray) -> "KeySummary":
        """An empty summary for steps like these (T, ...)."""
        width = 1 if is_image(values) or values.ndim == 1 else values.shape[-1]
        return cls(values.shape[1:], str(values.dtype), np.full(width, np.inf), np.full(width, -np.inf))

    def add(self, values: np.ndarray) -> None:
        """Widen the range by these steps (T, ...)."""
        rows = values.reshape(-1, self.low.size)
        self.low = np.minimum(self.low, rows.min(0))
        self.high = np.maximum(self.high, rows.max(0))
        self.demos += 1

    @property
    def constant(self) -> list[int]:
        """Dimensions that never change."""
        return np.flatnonzero(self.low == self.high).tolist()


def demo_problems(demo: Demo, clock: np.ndarray | None, rate_hz: float | None) -> Iterator[str]:
    """Problems of one demo that its reader does not refuse: irregular or contradictory times."""
    clocks = {key: values.reshape(len(demo), -1)[:, 0] for key, values in demo.obs.items() if CLOCK.fullmatch(key)}
    if clock is not None:
        clocks["timestamp"] = clock
    usual = {"the control rate": 1 / rate_hz} if rate_hz else {}
    for key, times in clocks.items():
        durations = np.diff(times.astype(np.float64))
        if not len(durations) or not np.isfinite(durations).all():
            continue
        if durations.min() <= 0:
            yield f"{key} goes back, or stands still, at step {int(durations.argmin()) + 1}"
            continue
        usual[key] = float(np.median(durations))
        off = np.abs(durations / usual[key] - 1)
        if off.max() > JITTER:
            step = int(off.argmax())
            yield f"{key} is irregular: step {step} lasts {durations[step]:.4g} s, the median step {usual[key]:.4g} s"
    for one, other in combinations(usual, 2):
        if abs(usual[one] / usual[other] - 1) > DRIFT:
            yield f"unequal clocks: a step lasts {usual[one]:.4g} s by {one}, {usual[other]:.4g} s by {other}"


def demo_notes(demo: Demo) -> Iterator[str]:
    """Notes on one demo: cameras slower than the control rate, rotations that jump."""
    for key, values in demo.obs.items():
        if is_image(values) and len(values) > 1:
            share = float((values[1:] == values[:-1]).all(axis=(1, 2, 3)).mean())
            if share >= REPEATS:
                yield f"{key}: {share:.0%} of the images repeat the one before; the camera is slower, or its image is frozen"
    for key, values in {"actions": demo.actions, **demo.obs}.items():
        if values.ndim == 2 and values.dtype.kind == "f":
            yield from _rotation_jumps(key, values.astype(np.float64))


def set_findings(
    keys: Mapping[str, KeySummary],
    demos: int,
    instructions: Mapping[str | None, int],
    masks: Mapping[str, Sequence[str]],
) -> Iterator[Finding]:
    """Findings about the whole set of readable demos: missing keys, constant dimensions, overlapping masks."""
    for key, known in keys.items():
        if known.demos < demos:
            yield Finding("problem", f"{key} is in {known.demos} of {demos} readable demos")
        if known.constant and known.shape:
            dimensions = ", ".join(map(str, known.constant))
            yield Finding("note", f"{key}: constant over all demos in dimension {dimensions}")
        if JOINTS.fullmatch(key) and not FINGERS.fullmatch(key) and known.low.size > 2:
            yield from _degrees(key, "note", known.low, known.high, range(known.low.size))
    instructed = sum(count for text, count in instructions.items() if text)
    if 0 < instructed < demos:
        yield Finding("note", f"{demos - instructed} of {demos} demos have no instruction")
    if shared := sorted(set(masks.get("train", ())) & set(masks.get("valid", ()))):
        yield Finding("problem", f"{len(shared)} demos are in mask/train and in mask/valid: {', '.join(shared[:3])}")


def action_findings(
    actions: Mapping[str, np.ndarray],
    spec: ActionSpec,
    instruction_of: Mapping[str, str | None] | None = None,
    openings: Mapping[str, np.ndarray] | None = None,
) -> Iterator[Finding]:
    """Findings about the actions (T, width) of each demo: grippers that never move, repeated actions, unusual ranges.

    A gripper that stays still is compared with the other demos of the same instruction.

    Args:
        actions: demo -> its actions.
        spec: describes their columns.
        instruction_of: demo -> its instruction.
        openings: demo -> `gripper_openings` of it, where there are any.
    """
    yield from gripper_findings(np.concatenate(list(actions.values())), spec)
    measured = [name for name in actions if openings and name in openings]
    ends = opening_ends([actions[name] for name in measured], spec, [(openings or {})[name] for name in measured])
    for (column, closed, opened), end in zip(spec.gripper_ends, ends, strict=True):
        if end == "second":
            text = (
                f"the gripper (action {column}) opens at {opened:g} and closes at {closed:g}, by its measured opening"
            )
            yield Finding("note", f"{text}; a robot that executes it needs gripper_opens: second in its profile")
    for column in (*spec.gripper_columns, *spec.continuous_gripper):
        yield from _still_gripper(column, actions, instruction_of or {})
    yield from _arm_motion([spec.split(rows)[0] for rows in actions.values()], spec)
    if spec.space == "joint_position":
        rows = np.concatenate(list(actions.values()))
        yield from _degrees("actions", "problem", rows.min(0), rows.max(0), spec.joint_columns)


def _degrees(
    name: str, severity: Literal["problem", "note"], low: np.ndarray, high: np.ndarray, columns: Sequence[int]
) -> Iterator[Finding]:
    """Joint positions whose range (width,) is larger than a turn in radians."""
    reach = np.maximum(-low, high)
    if far := [column for column in columns if reach[column] > TURN_RAD]:
        text = f"{name}: joint positions reach {reach[far].max():.4g} in dimension {', '.join(map(str, far))}"
        yield Finding(severity, f"{text}, more than a turn; are they in degrees? A robot's joints are in radians here")


def gripper_findings(rows: np.ndarray, spec: ActionSpec) -> Iterator[Finding]:
    """Gripper columns (rows, width) whose values differ from what the action spec declares."""
    for column, pair in zip(spec.gripper_columns, spec.gripper_values, strict=True):
        values = np.unique(rows[:, column])
        if len(values) > 2:
            text = (
                f"action {column} is declared a binary gripper and has {len(values)} values; declare it an arm column"
            )
            yield Finding("problem", f"{text} and continuous_gripper")
        elif not set(values.tolist()) <= set(pair):
            text = f"the gripper (action {column}) holds {_listed(values)}; the action spec declares {_listed(pair)}"
            inferred = tuple(pair) == (-1.0, 1.0) and len(values) == 2
            yield Finding("note" if inferred else "problem", text)
    for column, ends in zip(spec.continuous_gripper, spec.continuous_gripper_values, strict=True):
        low, high, stroke = rows[:, column].min(), rows[:, column].max(), max(ends) - min(ends)
        text = (
            f"the continuous gripper (action {column}) holds {low:g} .. {high:g}; the action spec declares its ends as "
            f"{_listed(ends)}; declare continuous_gripper_values"
        )
        beyond = max(min(ends) - low, high - max(ends)) / stroke
        if beyond > OVERSHOOT and tuple(ends) != (-1.0, 1.0):
            yield Finding("problem", text)
        elif beyond > 1e-3 or high - low < MIN_STROKE * stroke:
            yield Finding("note", text)


def _still_gripper(
    column: int, actions: Mapping[str, np.ndarray], instruction_of: Mapping[str, str | None]
) -> Iterator[Finding]:
    """Demos in which a gripper never moves: a problem where it moves in most demos of the same instruction."""
    still = [name for name, rows in actions.items() if np.ptp(rows[:, column]) == 0]
    every = Counter(instruction_of.get(name) for name in actions)
    unmoved = Counter(instruction_of.get(name) for name in still)
    odd = [name for name in still if unmoved[instruction_of.get(name)] <= every[instruction_of.get(name)] / 2]
    text = f"the gripper (action {column}) never moves; in most demos of the same instruction it does"
    yield from (Finding("problem", text, name) for name in odd)
    if count := len(still) - len(odd):
        yield Finding("note", f"the gripper (action {column}) never moves in {count} of {len(actions)} demos")


def _arm_motion(arms: Sequence[np.ndarray], spec: ActionSpec) -> Iterator[Finding]:
    """Arm columns (T, A) of each demo that leave [-1, 1], or that mostly repeat the action before."""
    low, high = min(rows.min(initial=0) for rows in arms), max(rows.max(initial=0) for rows in arms)
    if spec.kind != "absolute" and (low < -1 or high > 1):
        yield Finding("note", f"arm actions reach from {low:.4g} to {high:.4g}, beyond [-1, 1]")
    repeated = [(rows[1:] == rows[:-1]).all(1) for rows in arms if rows.shape[1]]
    if repeated and (share := np.concatenate(repeated)).size and share.mean() >= REPEATS:
        text = f"{share.mean():.0%} of the arm's actions merely repeat the one before; a policy may learn to copy"
        yield Finding("note", text)


def _listed(values: Sequence[float] | np.ndarray) -> str:
    return " and ".join(f"{value:g}" for value in values)


def copied_share(actions: Sequence[np.ndarray], spec: ActionSpec) -> float | None:
    """Fraction of the arm's variance that the last action explains: 1 - |a[t] - a[t-1]|^2 / |a[t] - mean|^2; None: no arm.

    If it is near 1, a policy that sees its last action can reach a low training loss by copying it (the copycat problem).
    """
    arms = [spec.split(rows)[0].astype(np.float64) for rows in actions if len(rows) > 1]
    if not arms or not spec.arm_width:
        return None
    now, before = np.concatenate([rows[1:] for rows in arms]), np.concatenate([rows[:-1] for rows in arms])
    spread = ((now - now.mean(0)) ** 2).sum()
    return float(1 - ((now - before) ** 2).sum() / spread) if spread > 0 else 1.0


def holds_last_action(demo: Demo) -> Iterator[str]:
    """Observation keys with a column that equals the previous action, which makes copying easy."""
    before = [column for column in demo.actions[:-1].T if np.ptp(column) > 0] if len(demo) > 2 else []
    for key, values in demo.obs.items():
        if values.ndim == 2 and any(np.array_equal(seen, acted) for seen in values[1:].T for acted in before):
            yield key


def _rotation_jumps(key: str, rows: np.ndarray) -> Iterator[str]:
    """Quaternions whose sign flips and angles that wrap from one step to the next: the pose is the same, the values are not."""
    for first in range(rows.shape[1] - 3):
        block = rows[:, first : first + 4]
        unit = np.abs(np.linalg.norm(block, axis=1) - 1).max() < UNIT_TOLERANCE
        # Three small numbers and a gripper value of -1 or 1 also have a length of about 1.
        gripper = ((np.ptp(np.abs(block), axis=0) == 0) & (block[0] != 0)).any()
        if unit and not gripper and ((block[1:] * block[:-1]).sum(axis=1) < -0.5).any():
            yield f"{key}[{first}:{first + 4}]: a quaternion whose sign flips; {DECLARE} quaternion"
    jumps = np.abs(np.diff(rows, axis=0))
    wraps = (np.abs(jumps - 2 * np.pi) < 0.5).any(axis=0) & (np.abs(rows).max(axis=0) <= 2 * np.pi + UNIT_TOLERANCE)
    for column in np.flatnonzero(wraps).tolist():
        yield f"{key}[{column}:{column + 1}]: an angle that jumps by a turn; {DECLARE} angle"
