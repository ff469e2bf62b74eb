"""What the tests of the control loop share: a clock that obeys, and a robot on it."""

from dataclasses import dataclass, field

import pytest

from robopolicy.control.profile import RobotProfile, read_profile
from robopolicy.control.robots.fake import FakeRobot


@dataclass
class FakeClock:
    """Time that passes only when somebody sleeps, or when a test says so."""

    t_s: float = 100.0
    late_s: dict[int, float] = field(default_factory=dict)
    """Number of a sleep -> how much too late it returns [s]."""
    sleeps: int = 0

    def now(self) -> float:
        """The present."""
        return self.t_s

    def sleep_until(self, t_s: float) -> None:
        """Jump there."""
        self.t_s = max(self.t_s, t_s) + self.late_s.get(self.sleeps, 0.0)
        self.sleeps += 1


@pytest.fixture
def fake_clock() -> FakeClock:
    return FakeClock()


@pytest.fixture(scope="session")
def panda() -> RobotProfile:
    return read_profile("panda")


@pytest.fixture
def fake_robot(panda: RobotProfile, fake_clock: FakeClock) -> FakeRobot:
    return FakeRobot(panda, control_dt=0.05, command_dt=0.01, clock=fake_clock)
