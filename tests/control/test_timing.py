"""The fixed grid of ticks."""

import numpy as np
import pytest

from robopolicy.control.timing import FixedGrid


def test_ticks_stay_on_the_grid_and_missed_ones_are_counted_not_made_up_for(fake_clock):
    """Guards against: sleeping one period from now (49.3 instead of 50 Hz), and jerks from catching up with lost ticks."""
    fake_clock.late_s = {3: 0.004, 5: 0.035}
    grid = FixedGrid(fake_clock, 0.01)
    passed = [grid.wait() for _ in range(8)]
    assert passed == [1, 1, 1, 1, 1, 4, 1, 1]
    np.testing.assert_allclose(grid.t_s, grid.origin_s + 10 * 0.01)
    assert fake_clock.now() == pytest.approx(grid.t_s)
