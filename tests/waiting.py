"""Waiting for what another thread or process does, however long a busy machine takes."""

import time
from collections.abc import Callable

PATIENCE_S = 60.0
"""After that it is not late but missing [s]."""


def wait_until(condition: Callable[[], object]) -> None:
    """Return once `condition()` is true.

    Raises:
        AssertionError: it did not come true.
    """
    ends_s = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < ends_s, f"it did not come true within {PATIENCE_S:g} s"
        time.sleep(0.005)
