"""Finds demos that differ from the others: pauses, jerks, unusual lengths and ranges, frozen sensors, drifting calibration.

All findings are notes, since any of them may be intended. Most name the option of `robopolicy edit` that removes the cause.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from itertools import islice

import numpy as np

from robopolicy.demos.drift import background, camera_drifts, column_drifts, downscale
from robopolicy.demos.findings import CLOCK, Finding
from robopolicy.demos.formats.base import is_image
from robopolicy.demos.idle import DEFAULT_RATE_HZ, IdleSteps, runs
from robopolicy.types import ActionSpec, Demo

MIN_DEMOS = 8
"""Outliers and drifts are reported only if there are at least this many demos to compare."""
IDLE_S = 1.0
"""Shorter stretches without motion are not reported [s]."""
LEFT_S = 0.2
"""Length to which the proposed `--trim-idle` shortens stretches without motion [s]."""
FROZEN_S = 1.0
"""A camera or sensor is frozen if its reading stays the same for this long while the robot moves [s]."""
MOVING = 0.8
"""A reading is frozen only if the robot is commanded to move during at least this fraction of the steps."""
OUTLIER = 5.0
"""Minimum distance of an outlier's logarithm from the median [robust standard deviations, which are 1.4826 times the median
absolute deviation]."""
MIN_SPREAD = 0.05
"""Minimum robust standard deviation of the logarithm, so that a few percent do not make an outlier among similar demos."""
LENGTH_RATIO, TREMOR_RATIO, SPIKE_RATIO = 2.0, 1.5, 3.0
"""Minimum ratio between an outlier and the median: of lengths (longer or shorter), of mean jerk, and of the largest jerk."""
GLITCH, GLITCH_RATIO = 0.5, 3.0
"""A single reading is reported if it is off by more than this fraction of its key's usual range, and by more than this factor
times the 90th percentile over the demos."""
RANGE_RATIO = 3.0
"""A column is reported if it leaves its usual range by more than this factor times the usual range of its key."""


class SetComparison:
    """Collects a few numbers and small images from each demo, and compares the demos after all have been added."""

    def __init__(self) -> None:
        self._keys: dict[str, dict[str, np.ndarray]] = defaultdict(dict)
        """Low-dimensional key -> demo -> (4, columns): the first, smallest and largest reading, and the largest distance by
        which a reading lies outside the range of its two neighbors."""
        self._still: dict[str, dict[str, list[tuple[int, int]]]] = defaultdict(dict)
        """Key -> demo -> (start, end) of the stretches of steps whose reading equals that of the step after."""
        self._backgrounds: dict[str, list[np.ndarray]] = defaultdict(list)
        self._steps: dict[str, int] = {}
        """Camera -> side of the block of image pixels that is averaged to one background pixel."""

    def add(self, demo: Demo) -> None:
        """Add the numbers and images of one demo."""
        for key, values in demo.obs.items():
            if is_image(values):
                if (step := downscale(values.shape[1:3])) == self._steps.setdefault(key, step):
                    self._backgrounds[key].append(background(values))
            elif values.ndim <= 2 and values.dtype.kind == "f" and not CLOCK.fullmatch(key):
                self._add_column(demo.name, key, values.reshape(len(demo), -1).astype(np.float64))
            else:
                continue
            same = (values[1:] == values[:-1]).all(axis=tuple(range(1, values.ndim)))
            self._still[key][demo.name] = runs(same)

    def _add_column(self, name: str, key: str, rows: np.ndarray) -> None:
        glitch = _single_readings(rows).max(axis=0, initial=0)
        readings = np.stack([rows[0], rows.min(0), rows.max(0), glitch])
        known = self._keys[key]
        if all(readings.shape == other.shape for other in islice(known.values(), 1)):
            known[name] = readings

    def findings(
        self, actions: Mapping[str, np.ndarray], spec: ActionSpec, instruction_of: Mapping[str, str | None]
    ) -> Iterator[Finding]:
        """Compare the demos that were added.

        Args:
            actions: demo -> its actions (T, width).
            spec: describes the columns of the actions.
            instruction_of: demo -> its instruction.
        """
        rate_hz = spec.rate_hz or DEFAULT_RATE_HZ
        idle = IdleSteps(actions.values(), spec)
        yield from _idle(actions, idle, spec, rate_hz)
        yield from _lengths(actions, instruction_of)
        yield from _jerks(actions, spec)
        yield from self._frozen(actions, idle, rate_hz)
        for key, known in self._keys.items():
            if len(known) >= MIN_DEMOS:
                yield from _readings(key, known)
        yield from self._drifts()

    def _frozen(self, actions: Mapping[str, np.ndarray], idle: IdleSteps, rate_hz: float) -> Iterator[Finding]:
        """Cameras and sensors that do not change while the robot moves; sensors only if this is rare in most demos."""
        moving = {name: ~idle.of(rows) for name, rows in actions.items()}
        for key, demos in self._still.items():
            longest = {}
            for name, stretches in demos.items():
                frozen = [stop - start + 1 for start, stop in stretches if moving[name][start:stop].mean() >= MOVING]
                longest[name] = max(frozen, default=0)
            usual, camera = float(np.median(list(longest.values()))), key in self._backgrounds
            found = {name: steps for name, steps in longest.items() if steps >= FROZEN_S * rate_hz}
            if not camera and usual > FROZEN_S * rate_hz / 4:
                continue  # an object that lies still until it is touched
            for name, steps in found.items():
                what = "shows one image" if camera else "repeats one reading"
                text = f"{key} {what} for {steps / rate_hz:.1f} s while the robot moves"
                everywhere = len(found) > len(demos) / 2
                yield Finding("note", text, name, ("--drop-keys", key) if everywhere else ("--drop", name))

    def _drifts(self) -> Iterator[Finding]:
        for key, known in self._keys.items():
            if len(known) >= MIN_DEMOS:
                first, low, high, _ = np.stack(list(known.values()), axis=1)
                for text in column_drifts(key, first, np.subtract(*_usual(low, high)[::-1])):
                    yield Finding("note", text, None, ("--drop-keys", key))
        for camera, backgrounds in self._backgrounds.items():
            if len({shown.shape for shown in backgrounds}) == 1:
                for text in camera_drifts(camera, backgrounds, self._steps[camera]):
                    yield Finding("note", text, None, ("--drop-keys", camera))


def _idle(actions: Mapping[str, np.ndarray], idle: IdleSteps, spec: ActionSpec, rate_hz: float) -> Iterator[Finding]:
    least, edit, hint = int(IDLE_S * rate_hz), ("--trim-idle", str(max(1, round(LEFT_S * rate_hz)))), ""
    if spec.kind == "absolute" and spec.space == "unknown":  # a constant action may be a constant velocity
        edit, hint = None, "; if the actions are velocities, declare so in action_spec (space or base)"
    for name, rows in actions.items():
        if stretches := idle.stretches(rows, least - 1):
            start, stop = max(stretches, key=lambda stretch: stretch[1] - stretch[0])
            more = f"; {len(stretches)} such stretches" if len(stretches) > 1 else ""
            text = f"nothing is commanded to move for {(stop - start) / rate_hz:.1f} s from step {start}{more}{hint}"
            yield Finding("note", text, name, edit)


def _lengths(actions: Mapping[str, np.ndarray], instruction_of: Mapping[str, str | None]) -> Iterator[Finding]:
    """Demos much longer or shorter than others of the same instruction."""
    alike: dict[str | None, list[str]] = defaultdict(list)
    for name in actions:
        alike[instruction_of.get(name)].append(name)
    for names in alike.values():
        lengths = {name: float(len(actions[name])) for name in names}
        for name, ratio in _outliers(lengths, LENGTH_RATIO):
            length, usual = lengths[name], np.median(list(lengths.values()))
            text = f"{length:.0f} steps, where the others have {usual:g} ({ratio:.2g} times)"
            yield Finding("note", text, name, ("--drop", name))


def _jerks(actions: Mapping[str, np.ndarray], spec: ActionSpec) -> Iterator[Finding]:
    """Demos whose commanded motion is jerkier than that of the others, on average or at a single step."""
    joints = list(spec.joint_columns)
    rows = {name: values[:, joints].astype(np.float64) for name, values in actions.items() if len(values) > 3}
    if not joints or len(rows) < MIN_DEMOS:
        return
    targets = spec.kind == "absolute" and spec.space != "joint_velocity"
    speeds = {name: np.diff(values, axis=0) if targets else values for name, values in rows.items()}
    fast = np.percentile(np.abs(np.concatenate(list(speeds.values()))), 99, axis=0)
    moving = fast > 0
    jerk = {name: np.abs(np.diff(values, axis=0)[:, moving]) / fast[moving] for name, values in speeds.items()}
    mean = {name: float(np.sqrt((values**2).mean())) for name, values in jerk.items() if values.size}
    for name, ratio in _outliers(mean, TREMOR_RATIO, above=True):
        yield Finding("note", f"the actions are {ratio:.2g} times as jerky as the other demos'", name, ("--drop", name))
    largest = {name: float(values.max()) for name, values in jerk.items() if values.size}
    for name, ratio in _outliers(largest, SPIKE_RATIO, above=True):
        step = int(jerk[name].max(axis=1).argmax()) + 1
        text = f"the actions jerk at step {step}, {ratio:.2g} times the largest jerk of the other demos"
        yield Finding("note", text, name, ("--drop", name))


def _readings(key: str, known: Mapping[str, np.ndarray]) -> Iterator[Finding]:
    """Single readings far from their neighbors, and columns far outside their usual range."""
    _, lows, highs, glitch = np.stack(list(known.values()), axis=1)
    low, high = _usual(lows, highs)
    # The largest range of any column, since one that hardly changes in most demos, such as a cube's tilt, has a range near 0.
    usual = float((high - low).max())
    if not usual > 0:
        return
    limit = np.maximum(GLITCH * usual, GLITCH_RATIO * np.percentile(glitch, 90, axis=0))
    beyond = np.maximum(highs - high, low - lows) > RANGE_RATIO * usual
    for place, name in enumerate(known):
        if (off := np.flatnonzero(glitch[place] > limit)).size:
            text = f"{key}[{off[0]}]: a single reading is off by {glitch[place][off[0]]:.4g}"
            yield Finding("note", text, name, ("--drop", name))
        elif (out := np.flatnonzero(beyond[place])).size:
            column = out[0]
            text = f"{key}[{column}] reaches from {lows[place][column]:.4g} to {highs[place][column]:.4g}"
            text += f"; in most demos it stays within {low[column]:.4g} .. {high[column]:.4g}"
            yield Finding("note", text, name, ("--drop", name))


def _usual(lows: np.ndarray, highs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ends (columns,) of the usual range: 10th percentile of the minima, 90th percentile of the maxima (demos, columns)."""
    return np.percentile(lows, 10, axis=0), np.percentile(highs, 90, axis=0)


def _single_readings(rows: np.ndarray) -> np.ndarray:
    """(T - 2, columns): how far each reading lies outside the range between the reading before it and the one after it."""
    before, here, after = rows[:-2], rows[1:-1], rows[2:]
    return np.maximum(here - np.maximum(before, after), np.minimum(before, after) - here).clip(min=0)


def _outliers(values: Mapping[str, float], least_ratio: float, above: bool = False) -> Iterator[tuple[str, float]]:
    """Names whose value is far from the median, each with the value's ratio to the median; `above`: only larger values."""
    if len(values) < MIN_DEMOS:
        return
    logarithms = np.log(np.maximum(list(values.values()), 1e-12))
    middle = np.median(logarithms)
    spread = max(1.4826 * float(np.median(np.abs(logarithms - middle))), MIN_SPREAD)
    for name, distance in zip(values, logarithms - middle, strict=True):
        far = distance if above else abs(distance)
        if far > OUTLIER * spread and far > np.log(least_ratio):
            yield name, float(np.exp(distance))
