"""Plots that can be read: every value inside the axes, every axis with numbers."""

import re

from hypothesis import given, settings
from hypothesis import strategies as st

from robopolicy.report.plots import Series, histogram, interval_plot, line_plot


@settings(max_examples=40, deadline=None)
@given(values=st.lists(st.floats(1e-6, 1e4), min_size=2, max_size=20), log=st.booleans())
def test_every_point_lies_between_the_first_and_the_last_tick(values, log):
    """Guards against: A curve that leaves its axes, or a constant one that divides by a range of 0, tells nothing."""
    svg = line_plot(
        [Series("run", [(float(step), value) for step, value in enumerate(values, start=1)])],
        "steps",
        log=log,
        height=200,
    )
    points = re.search(r"points='([^']*)'", svg)
    assert points is not None
    heights = [float(point.split(",")[1]) for point in points[1].split()]
    assert all(-0.1 <= height <= 200.1 for height in heights)
    assert 3 <= svg.count("text-anchor=end") + svg.count("class=grid") <= 40
    assert "nan" not in svg


def test_success_is_drawn_with_its_interval():
    """Guards against: A dot without its interval makes 4 of 5 look like 80 of 100."""
    svg = interval_plot({"a <b>": (0.5, (0.25, 0.75))}, width=400)
    assert "x1=100.0 x2=300.0" in svg
    assert "cx=200.0" in svg
    assert "a &lt;b&gt;" in svg


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 500), min_size=1, max_size=50))
def test_a_histogram_counts_every_value_once(values):
    """Guards against: Bins that miss the largest value hide the longest episodes."""
    svg = histogram(values, "steps")
    assert sum(int(count) for count in re.findall(r": (\d+)</title>", svg)) == len(values)
    assert svg.count("<rect") <= 31
