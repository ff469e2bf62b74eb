"""Time for two loops in threads of their own: it passes only while all of them sleep, however busy the machine is."""

import threading

PATIENCE_S = 60.0
"""How long one loop may keep the others waiting, in the machine's own time [s]."""


class LockstepClock:
    """Stands still until `sleepers` threads sleep, then moves to the first time at which one of them wakes.

    A loop on it is never late, so what depends on the load of the machine is gone, and nothing else.
    """

    def __init__(self, sleepers: int) -> None:
        self.sleepers = sleepers
        self._t_s = 100.0
        self._wakes_s: dict[int, float] = {}
        self._changed = threading.Condition()

    def now(self) -> float:
        """The present [s]."""
        return self._t_s

    def sleep_until(self, t_s: float) -> None:
        """Return at t_s, or at once if it has passed."""
        me = threading.get_ident()
        with self._changed:
            if t_s > self._t_s:
                self._wakes_s[me] = t_s
            while me in self._wakes_s:
                if len(self._wakes_s) >= self.sleepers:
                    self._t_s = min(self._wakes_s.values())
                    self._wakes_s = {each: wake_s for each, wake_s in self._wakes_s.items() if wake_s > self._t_s}
                    self._changed.notify_all()
                elif not self._changed.wait(PATIENCE_S):
                    raise TimeoutError(f"{len(self._wakes_s)} of {self.sleepers} loops sleep, the others do nothing")

    def leave(self) -> None:
        """One loop less to wait for."""
        with self._changed:
            self.sleepers -= 1
            self._changed.notify_all()
