"""The conformance kit of operators, one check for each requirement of the control loop.

A test of an operator:

from robopolicy.testing.operator import CHECKS

@pytest.mark.parametrize("check", CHECKS)
def test_my_operator_keeps_the_contract(check):
    context = OperatorContext(read_profile("panda"), ActionSpec(arm=6, gripper=1, kind="delta", space="ee"), 0.05)
    operator = MyOperator(context)  # its device is not touched yet
    check(operator, context, take_over=operator.device.press_the_button)
    operator.close()
"""

import statistics
import time
from collections.abc import Callable

import numpy as np

from robopolicy.control.operators.base import OperatorContext
from robopolicy.control.robot import Operator
from robopolicy.testing._assert import require

CALLS, LONGEST_S, PATIENCE_S = 20, 0.005, 5.0
"""Number of timed calls, largest median duration of one [s], and longest time until a takeover is noticed [s]."""


def has_act_and_close(operator: Operator, context: OperatorContext, take_over: Callable[[], object]) -> None:
    """It has the members of `Operator`."""
    require(isinstance(operator, Operator), f"{type(operator).__name__} lacks members of Operator: act and close")


def leaves_the_robot_to_the_policy_at_first(
    operator: Operator, context: OperatorContext, take_over: Callable[[], object]
) -> None:
    """Nobody has taken over before the device is touched, whatever the policy does."""
    for proposed in (None, np.zeros(context.action_spec.width)):
        require(_asked(operator, context, proposed) is None, "act() gives an action before anybody took over")


def never_waits(operator: Operator, context: OperatorContext, take_over: Callable[[], object]) -> None:
    """`act` returns at once, since the commands of the control loop wait for it."""
    taken_s = []
    for _ in range(CALLS):
        began_s = time.perf_counter()
        _asked(operator, context, None)
        taken_s.append(time.perf_counter() - began_s)
    median_s = statistics.median(taken_s)
    require(median_s < LONGEST_S, f"act() takes {1e3 * median_s:.1f} ms; expected less than {1e3 * LONGEST_S:.0f} ms")


def gives_rows_of_the_policys_actions(
    operator: Operator, context: OperatorContext, take_over: Callable[[], object]
) -> None:
    """After taking over, actions are finite and have the policy's columns, with or without an action of the policy."""
    take_over()
    ends_s, width = time.monotonic() + PATIENCE_S, context.action_spec.width
    while (action := _asked(operator, context, None)) is None:
        require(time.monotonic() < ends_s, f"act() gave no action within {PATIENCE_S:g} s of taking over")
    for given in (action, _asked(operator, context, np.zeros(width))):
        row = np.asarray(given, np.float64)
        require(row.shape == (width,), f"an action of shape {row.shape}; expected ({width},)")
        require(bool(np.isfinite(row).all()), f"the action {given} is not finite")


def _asked(operator: Operator, context: OperatorContext, proposed: np.ndarray | None) -> np.ndarray | None:
    return operator.act(time.monotonic(), np.asarray(context.profile.home_rad, np.float64), proposed)


CHECKS = (
    has_act_and_close,
    leaves_the_robot_to_the_policy_at_first,
    never_waits,
    gives_rows_of_the_policys_actions,
)
"""Each takes an operator that has not been touched, its context, and what makes it take over."""
