"""Schedules as text: what a run's options may change over its rounds or iterations."""

import pytest

from robopolicy.components import ConfigError
from robopolicy.training.schedules import read_schedule


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("0.5", [0.5] * 5),
        ("constant:0.25", [0.25] * 5),
        ("linear:1:0", [1, 0.75, 0.5, 0.25, 0]),
        ("exponential:1:0.5", [1, 0.5, 0.25, 0.125, 0.0625]),
        ("piecewise:0=1,2=0.5,4=0", [1, 1, 0.5, 0.5, 0]),
    ],
)
def test_a_schedule_has_its_values_at_every_step(text: str, values: list[float]) -> None:
    """Guards against: an end value that is never reached, and steps counted from 1."""
    schedule = read_schedule(text, "--share", high=1.0)
    assert [schedule(step, 4) for step in range(5)] == pytest.approx(values)


def test_a_run_of_one_step_has_the_first_value() -> None:
    """Guards against: a division by zero."""
    assert read_schedule("linear:1:0", "--share")(0, 0) == 1


@pytest.mark.parametrize(
    "text",
    ["", "linear:1", "often", "cosine:1:0", "piecewise:1=0", "piecewise:0=1,0=2", "nan", "-1", "linear:0:2", "2"],
)
def test_what_is_no_schedule_is_refused_by_its_option(text: str) -> None:
    """Guards against: a share in percent, and a typo that means 0."""
    with pytest.raises(ConfigError, match="--share is"):
        read_schedule(text, "--share", high=1.0)
