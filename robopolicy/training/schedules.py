"""Schedules: values that change during a run, such as the expert's share per round or the anchor's weight per iteration.

A schedule is written as text:

    0.5  or  constant:0.5            0.5 at every step
    linear:1:0                       from 1 at step 0 to 0 at the last step
    exponential:1:0.5                1 at step 0, multiplied by 0.5 at each further step
    piecewise:0=1,2=0.5,4=0          1 from step 0, 0.5 from step 2, 0 from step 4
"""

from bisect import bisect_right
from collections.abc import Callable
from typing import TypeAlias

from robopolicy.components import ConfigError, require

Schedule: TypeAlias = Callable[[int, int], float]
"""(step, last step), both counted from 0 -> value at the step."""

FORMS = "a number, constant:V, linear:FROM:TO, exponential:FROM:FACTOR or piecewise:STEP=V,STEP=V,..."


def read_schedule(text: str, option: str, high: float = float("inf")) -> Schedule:
    """Parse a schedule.

    Args:
        text: the schedule, in one of the forms in the module's docstring.
        option: the command-line option, for error messages, such as `--expert-share`.
        high: largest allowed value; the smallest is 0.

    Raises:
        ConfigError: the text has none of the forms, or a value is outside 0 .. high.
    """
    kind, _, rest = text.partition(":")
    if not rest:
        kind, rest = "constant", text
    try:
        if kind == "piecewise":
            pairs = [pair.split("=") for pair in rest.split(",")]
            steps, values = [int(step) for step, _ in pairs], [float(value) for _, value in pairs]
        else:
            steps, values = [0], [float(value) for value in rest.split(":")]
    except ValueError:
        raise ConfigError(f"{option} is {text}; expected {FORMS}") from None
    numbers = {"constant": 1, "linear": 2, "exponential": 2}.get(kind, len(values))
    ordered = steps[0] == 0 and steps == sorted(set(steps))
    if kind not in ("constant", "linear", "exponential", "piecewise") or len(values) != numbers or not ordered:
        raise ConfigError(f"{option} is {text}; expected {FORMS}, with steps that rise from 0")
    bounded = values[:1] if kind == "exponential" else values  # the factor of an exponential may exceed `high`
    require(
        all(0 <= value <= high for value in bounded) and all(0 <= value < float("inf") for value in values),
        f"{option} is {text}; expected values from 0 to {high:g}",
    )

    def at(step: int, last: int) -> float:
        if kind == "linear":
            return values[0] + (values[1] - values[0]) * step / max(last, 1)
        if kind == "exponential":
            return min(values[0] * values[1] ** step, high)
        return values[bisect_right(steps, step) - 1]

    return at
