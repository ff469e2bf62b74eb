"""Replays a recorded demonstration in place of a policy, at a chosen speed."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from robopolicy.arrays import Float
from robopolicy.control.profile import RobotProfile
from robopolicy.control.smoothing import TARGET_VELOCITY_SHARE
from robopolicy.types import ActionSpec, Observation, Prefix

CHUNK = 8
"""Actions per chunk; more than one, so that the replay continues if the next observation is late."""
SETTLING_S = 0.5
"""Time that the last target is held before the replay ends [s]."""
TOLERANCE_RAD = 0.1
"""Largest distance of a joint from the recorded path at which the replay counts as followed [rad]."""
REFERENCE = "reference_qpos"
"""Observation key of the commanded joint positions [rad], in demos of the simulator."""
JOINTS = "qpos"
"""Observation key of the joint positions [rad]; every robot has it."""


@dataclass(frozen=True)
class Record:
    """Recorded actions, one per control step, and the joint positions at each step.

    Action k applies from step k to step k + 1.
    """

    actions: Float[np.ndarray, "time width"]
    spec: ActionSpec
    """Meaning of the columns; `kind` and `space` must be set."""
    path_rad: Float[np.ndarray, "place joints"] | None = None
    """Joint positions at the beginning of each step [rad], if recorded; there may be one row more or fewer than actions."""
    reference_rad: Float[np.ndarray, "place joints"] | None = None
    """Commanded joint positions at the beginning of each step [rad], if recorded; the joints lag behind them."""

    def speed_within(self, profile: RobotProfile) -> float:
        """The largest speed, up to 1, at which the interpolated path stays within the velocity and acceleration limits."""
        if self.path_rad is None or len(self.path_rad) < 2 or not self.spec.rate_hz:
            return 1.0
        places = np.asarray(self.path_rad, np.float64)
        slope, step = _slopes(places), np.diff(places, axis=0)
        halfway = 1.5 * step - (slope[:-1] + slope[1:]) / 4
        leaving, arriving = 6 * step - 4 * slope[:-1] - 2 * slope[1:], 6 * step - 2 * slope[:-1] - 4 * slope[1:]
        fastest = np.abs(np.concatenate([slope, halfway])).max(0) * self.spec.rate_hz
        velocity = fastest / (TARGET_VELOCITY_SHARE * np.asarray(profile.velocity_rad_s))
        acceleration = np.abs([leaving, arriving]).max((0, 1)) * self.spec.rate_hz**2 / profile.acceleration_rad_s2
        return float(1 / max(1.0, velocity.max(), np.sqrt(acceleration.max())))

    def at_speed(self, speed: float) -> "Record":
        """The same motion, `speed` times as fast, in more or fewer steps of the same duration.

        Deltas and velocities are divided among the new steps so that their sum is kept; absolute targets and the path are
        interpolated; gripper columns are taken from the nearest earlier step.
        """
        if speed == 1.0:
            return self
        steps = int(np.ceil(len(self.actions) / speed - 1e-9))
        began = np.arange(steps) * speed  # in steps of the record
        ended = np.minimum(began + speed, len(self.actions))
        actions = self.actions[(began + 1e-9).astype(int)]
        arm, base = list(self.spec.joint_columns), list(self.spec.base)
        actions[:, base] *= speed
        if self.spec.kind == "absolute":
            actions[:, arm] = _between(self.actions[:, arm], ended - 1)
        else:
            total = np.concatenate([np.zeros((1, len(arm))), np.cumsum(self.actions[:, arm], axis=0)])
            actions[:, arm] = _between(total, ended) - _between(total, began)
        places = np.arange(steps + 1) * speed
        path, reference = (
            None if each is None else _curve(each, places) for each in (self.path_rad, self.reference_rad)
        )
        return Record(actions, self.spec, path, reference)


def along_path(record: Record) -> Record:
    """The record with its joint path as absolute targets instead of its actions; gripper columns are kept.

    Absolute targets bring the arm back to the recorded path after a disturbance or a limit, while deltas, each relative to
    the current position, would keep the error until the end. The targets are the commanded positions if they were recorded,
    so that the arm lags behind them as it did in the record.

    Raises:
        ValueError: the record has no path, or only one position.
    """
    path, spec = record.path_rad, record.spec
    targets = path if record.reference_rad is None else record.reference_rad
    if path is None or len(path) < 2:
        raise ValueError("the record has no joint positions; give --follow actions")
    assert targets is not None
    path, targets = (
        np.concatenate([each, 2 * each[-1:] - each[-2:-1]])[: len(record.actions) + 1] for each in (path, targets)
    )
    joints = path.shape[1]
    grippers = [column for column, _, _ in spec.gripper_ends]
    binary = [joints + place for place, column in enumerate(grippers) if column in spec.gripper_columns]
    continuous = [joints + place for place, column in enumerate(grippers) if column in spec.continuous_gripper]
    base = tuple(joints + len(grippers) + place for place in range(len(spec.base)))
    followed = ActionSpec(
        arm=[*range(joints), *continuous, *base],
        gripper=binary,
        gripper_values=[(low, high) for column, low, high in spec.gripper_ends if column in spec.gripper_columns],
        continuous_gripper=continuous,
        continuous_gripper_values=[
            (low, high) for column, low, high in spec.gripper_ends if column in spec.continuous_gripper
        ],
        base=base,
        kind="absolute",
        space="joint_position",
        rate_hz=spec.rate_hz,
    )
    others = record.actions[: len(targets) - 1, [*grippers, *spec.base]]
    actions = np.concatenate([targets[1:], others], axis=1)
    return Record(actions.astype(np.float32), followed, path)


class RecordedStream:
    """A record as the stream of a control loop; actions are chosen by the time stamp of the observation.

    The first observation marks the beginning of the record. Late and skipped observations do not shift the replay.
    """

    gripper_logit = None
    """A record has no gripper logits."""

    def __init__(self, record: Record, control_dt: float) -> None:
        self.record, self.control_dt = record, control_dt
        rest = np.array(record.actions[-1:])
        if record.spec.kind != "absolute":
            rest[:, list(record.spec.joint_columns)] = 0.0
        rest[:, list(record.spec.base)] = 0.0
        self._rows = np.concatenate([np.asarray(record.actions, np.float32), rest.astype(np.float32)])
        self.reset()

    @property
    def finished(self) -> bool:
        """Whether the record has ended and its last target was held for `SETTLING_S`."""
        return self.step >= len(self.record.actions) + round(SETTLING_S / self.control_dt)

    def __call__(self, observation: Observation, prefix: Prefix | None = None) -> Float[np.ndarray, "chunk width"]:
        """The actions from this observation's time on; beyond the end of the record the arm rests."""
        if self._began_s is None:
            self._began_s = observation.stamp_s
        self.step = round((observation.stamp_s - self._began_s) / self.control_dt)
        if JOINTS in observation.obs:
            self.visited.append((self.step, np.asarray(observation.obs[JOINTS], np.float64)))
        return self._rows[np.minimum(self.step + np.arange(CHUNK), len(self._rows) - 1)]

    def reset(self) -> None:
        """Start from the first action."""
        self._began_s: float | None = None
        self.step = -1
        """The record's step at the last observation; -1 before the first."""
        self.visited: list[tuple[int, np.ndarray]] = []
        """Steps, and the joint positions observed at their beginning [rad]."""

    def outcome(self) -> dict[str, Any]:
        """A JSON-ready summary: steps done and in total, and the largest distance of the joints from the recorded path.

        `followed` is True if the end was reached and no joint was more than `TOLERANCE_RAD` away.
        """
        steps, done = len(self.record.actions), min(self.step, len(self.record.actions))
        outcome: dict[str, Any] = {"steps": steps, "done": max(done, 0), "followed": self.finished}
        path = self.record.path_rad
        if path is not None and self.visited:
            steps_seen, positions = zip(*self.visited, strict=True)
            away = np.abs(np.stack(positions) - path[np.minimum(steps_seen, len(path) - 1)])
            visit, joint = np.unravel_index(away.argmax(), away.shape)
            outcome |= {
                "largest_rad": float(away.max()),
                "joint": int(joint),
                "at_s": steps_seen[visit] * self.control_dt,
            }
            outcome |= {"end_rad": float(away[-1].max())}
            outcome["followed"] &= outcome["largest_rad"] <= TOLERANCE_RAD
        return outcome


def first_place(record: Record, profile: RobotProfile) -> Float[np.ndarray, " joints"] | None:
    """Joint positions at the beginning of the record [rad]; None if they were not recorded.

    Raises:
        ValueError: the record's number of joints differs from the robot's.
    """
    if record.path_rad is None:
        return None
    found = record.path_rad.shape[-1]
    if found != profile.joints:
        raise ValueError(f"the record has {found} joint positions; {profile.name} has {profile.joints} joints")
    return np.asarray(record.path_rad[0], np.float64)


def _between(rows: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Rows (n, width) linearly interpolated at fractional indices; constant beyond the ends."""
    columns = [np.interp(places, np.arange(len(rows)), column) for column in rows.T]
    return np.array(columns).reshape(-1, len(places)).T


def _curve(rows: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Rows (n, width) at fractional indices by cubic Hermite interpolation with central differences; at rest at both ends."""
    if len(rows) < 2:
        return _between(rows, places)
    places = places.clip(0, len(rows) - 1)
    before = np.minimum(places.astype(int), len(rows) - 2)
    x, slope = (places - before)[:, None], _slopes(rows)
    here, there = (1 + 2 * x) * (1 - x) ** 2, x**2 * (3 - 2 * x)
    leaving, arriving = x * (1 - x) ** 2, x**2 * (x - 1)
    return here * rows[before] + there * rows[before + 1] + leaving * slope[before] + arriving * slope[before + 1]


def _slopes(rows: np.ndarray) -> np.ndarray:
    """Central differences per step of rows (n, width), n > 1; zero at both ends."""
    slope = np.gradient(rows, axis=0)
    slope[[0, -1]] = 0.0
    return slope
