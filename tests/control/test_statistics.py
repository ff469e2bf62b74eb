"""Figures of the control loop, and their table."""

import io

import pytest
from rich.console import Console

from robopolicy.cli.run_report import live_table
from robopolicy.control.statistics import LoopStatistics, percentiles_ms


def test_percentiles_are_of_all_times_or_of_the_last_ones():
    """Guards against: a live table that slows down as the run grows, or never forgets its start."""
    times_s = [0.1] * 100 + [0.001] * 100
    assert percentiles_ms(times_s)["max"] == pytest.approx(100.0)
    assert percentiles_ms(times_s, last=50)["max"] == pytest.approx(1.0)
    assert percentiles_ms([]) == {}


def test_the_rate_is_that_at_which_steps_really_came():
    """Guards against: a loop that says 20 Hz because it was asked to."""
    statistics = LoopStatistics(control_dt=0.05, command_dt=0.001, steps=19, elapsed_s=0.95)
    assert statistics.rate_hz == pytest.approx(18 / 0.95)
    assert LoopStatistics(0.05, 0.001).rate_hz == 0.0


def test_the_table_shows_what_a_robot_engineer_looks_for():
    """Guards against: a limit that is hit at every step, and a table that doesn't say so."""
    statistics = LoopStatistics(control_dt=0.05, command_dt=0.001, steps=10, elapsed_s=0.45, overruns=3)
    statistics.delay_s.extend([0.0001] * 10)
    statistics.limited.update(motion=5)
    statistics.stops.append("no fresh chunk within 0.25 s")
    page = io.StringIO()
    Console(file=page, width=100).print(live_table(statistics))
    shown = page.getvalue()
    for words in ("20.00 of 20 Hz", "3 command ticks", "limited: motion", "50.0 %", "no fresh chunk", "0.10"):
        assert words in shown
    assert LoopStatistics(0.05, 0.001).to_dict()["latency_ms"] == {}
    Console(file=page).print(live_table(LoopStatistics(0.05, 0.001)))
