"""An operator takes the robot over from the policy and hands it back, on a clock that obeys."""

import re
from dataclasses import dataclass, field

import numpy as np
import pytest

from tests.control.test_loop import ListRecorder, assert_within_limits, forward, make_loop

BACK = np.array([-1.0, 0.3, 0, 0, 0, 0.5, 1.0])


@dataclass
class ScriptedOperator:
    """Has the robot in the control steps `begins` .. `ends` - 1, and moves it by `action`."""

    begins: int = 8
    ends: int = 14
    action: np.ndarray = field(default_factory=BACK.copy)
    step: int = -1

    def act(self, t_s, qpos, policy_action):
        """The scripted action."""
        self.step += 1
        return self.action if self.begins <= self.step < self.ends else None

    def close(self):
        """Nothing to release."""


def test_takeover_and_return_keep_to_the_limits(fake_robot, fake_clock):
    """Guards against: a leap in velocity, acceleration or jerk where operator and policy want opposite directions."""
    recorder = ListRecorder()
    loop = make_loop(fake_robot, fake_clock, forward, recorder=recorder, operator=ScriptedOperator())
    statistics = loop.run(1.0)
    assert_within_limits(fake_robot)
    operated = [tick.intervention for tick in recorder.ticks]
    assert operated == [8 <= step < 14 for step in range(20)]
    assert statistics.operated == 6
    assert statistics.failure is None
    for tick in recorder.ticks:
        np.testing.assert_allclose(tick.action, BACK if tick.intervention else forward(0, None)[0], atol=1e-6)
        np.testing.assert_allclose(tick.policy_action, forward(0, None)[0], atol=1e-6)
    moved = fake_robot.commands[-1].joint_position_rad - fake_robot.commands[0].joint_position_rad
    assert np.abs(moved).max() > 0.01


@pytest.mark.parametrize("latency_s", [0.0, 0.045], ids=["fast policy", "slow policy"])
def test_a_plan_made_before_the_return_is_dropped(fake_robot, fake_clock, latency_s):
    """Guards against: after the return, the rest of a chunk that was predicted for where the robot was before."""
    script = lambda step, observation: np.tile([0.01 * step, 0, 0, 0, 0, 0, -1.0], (4, 1))  # noqa: E731
    loop = make_loop(
        fake_robot,
        fake_clock,
        script,
        latency_s=latency_s,
        recorder=(recorder := ListRecorder()),
        operator=ScriptedOperator(),
    )
    loop.executor.replan_every = 4
    statistics = loop.run(1.0)
    late = 0 if latency_s == 0 else 1
    assert recorder.ticks[14].action[0] == pytest.approx(0.01 * (14 - late))
    assert statistics.failure is None


@pytest.mark.parametrize(
    ("action", "reason"),
    [(np.zeros(3), r"operator: an action of shape \(3,\); expected \(7,\)"), (None, "operator: unplugged")],
    ids=["wrong width", "lost device"],
)
def test_an_operator_that_fails_stops_the_robot(fake_robot, fake_clock, action, reason):
    """Guards against: a robot that carries on with the last action of a device that is gone."""

    class Broken(ScriptedOperator):
        def act(self, t_s, qpos, policy_action):
            given = super().act(t_s, qpos, policy_action)
            if given is not None and action is None:
                raise OSError("unplugged")
            return action if given is not None else None

    loop = make_loop(fake_robot, fake_clock, forward, operator=Broken())
    loop.run(1.0)
    assert loop.stopped is not None
    assert re.fullmatch(reason, loop.stopped)
    assert_within_limits(fake_robot)
