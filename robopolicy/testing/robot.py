"""What every robot promises the control loop, one check per promise.

    from robopolicy.testing.robot import CHECKS

    @pytest.mark.parametrize("check", CHECKS)
    def test_my_robot_keeps_the_contract(check):
        with closing_robot() as robot:  # yours, at rest, away from its joint limits, its gripper partly open
            check(robot)

The checks move the last joint by 0.1 rad: try them on a simulated or fake arm first. A robot
without gripper passes the checks of grippers.
"""

import time
from typing import Any

import numpy as np

from robopolicy.control.robot import Robot, RobotError
from robopolicy.types import Command

SETTLE_S = 0.4
"""A motion has arrived when the joints did not move for that long [s]."""
MAX_SETTLE_S = 10.0
"""How long a motion may take to arrive after its last command [s]."""


def states_its_rates_and_limits(robot: Robot) -> None:
    """It has the members of `Robot`, a profile, and commands at least as often as actions."""
    assert isinstance(robot, Robot), f"{type(robot).__name__} lacks members of Robot"
    assert robot.control_dt >= robot.command_dt > 0, (
        f"expected control_dt >= command_dt > 0, got {robot.control_dt} and {robot.command_dt}"
    )
    assert len(robot.profile.joint_names) == robot.profile.joints, "the profile's joint names don't fit its joints"


def observes_its_joints_and_gripper(robot: Robot) -> None:
    """`observe` gives float32 `qpos` (joints,) [rad], and where it has them `gripper` (grippers,) [m] and the tool's pose (7,).

    The pose is `ee_pose`, or of several arms `<arm>_ee_pose`.
    """
    obs, profile = robot.observe().obs, robot.profile
    shapes: dict[str, tuple[int, ...]] = {"qpos": (profile.joints,)}
    shapes |= {"gripper": (profile.grippers,)} if profile.grippers else {}
    shapes |= {f"{name}_ee_pose" if name else "ee_pose": (7,) for name, arm, _, _ in profile.parts if arm.arm}
    for key, shape in shapes.items():
        assert key in obs, f"observe() gives no {key!r}; it gives: {', '.join(sorted(obs))}"
        assert obs[key].shape == shape, f"{key} has shape {obs[key].shape}, expected {shape}"
        assert obs[key].dtype == np.float32, f"{key} is {obs[key].dtype}, expected float32"
        assert np.isfinite(obs[key]).all(), f"{key} is not finite"
    difference = np.abs(np.asarray(robot.qpos()) - obs["qpos"]).max()
    assert difference < 1e-2, f"qpos() and observe() differ by {difference:.3g} rad at rest"


def stamps_observations_on_the_loops_clock(robot: Robot) -> None:
    """Stamps increase; each lies within the call, or before it by the delay of a sensor."""
    before_s = _now(robot)
    first = robot.observe().stamp_s
    _sleep(robot, 0.05)
    second = robot.observe().stamp_s
    assert before_s - 5.0 < first <= _now(robot), f"stamped {first - before_s:.3g} s from the call: another clock?"
    assert second > first, f"stamps must increase, got {first} and then {second}"


def follows_commands(robot: Robot) -> None:
    """A smooth stream of commands moves the commanded joint, and no other."""
    before = np.array(robot.qpos(), np.float64)
    move(robot, joint=-1, by_rad=0.1)
    expected = np.zeros_like(before)
    expected[-1] = 0.1
    turned = np.asarray(robot.qpos()) - before
    assert np.abs(turned - expected).max() < 5e-3, f"commanded {expected} rad, the joints moved {turned}"


def leaves_the_gripper_at_nan(robot: Robot) -> None:
    """A gripper opening of nan changes nothing: the gripper keeps what it holds."""
    before = robot.observe().obs.get("gripper", np.zeros(0))
    move(robot, joint=-1, by_rad=0.02, opening_m=np.nan)
    after = robot.observe().obs.get("gripper", np.zeros(0))
    assert (np.abs(after - before) < 2e-3).all(), f"the opening went from {before} to {after} m without a command"


def opens_the_gripper_as_commanded(robot: Robot) -> None:
    """An opening [m] is reached."""
    opening_m = robot.profile.openings_m * np.linspace(0.4, 0.6, robot.profile.grippers)
    move(robot, joint=-1, by_rad=0.02, opening_m=opening_m)
    found = robot.observe().obs.get("gripper", np.zeros(0))
    assert (np.abs(found - opening_m) < 2e-3).all(), f"commanded an opening of {opening_m} m, found {found} m"


def takes_no_command_after_stop(robot: Robot) -> None:
    """`stop` may be called twice; a command after it raises RobotError."""
    robot.stop()
    robot.stop()
    try:
        robot.command(Command(np.array(robot.qpos(), np.float64), np.nan, _now(robot)))
    except RobotError:
        return
    raise AssertionError("a command after stop() was taken; it must raise RobotError")


CHECKS = (
    states_its_rates_and_limits,
    observes_its_joints_and_gripper,
    stamps_observations_on_the_loops_clock,
    follows_commands,
    leaves_the_gripper_at_nan,
    opens_the_gripper_as_commanded,
    takes_no_command_after_stop,
)


def move(robot: Robot, joint: int, by_rad: float, seconds: float = 0.5, opening_m: Any = np.nan) -> None:
    """Stream commands that turn one joint smoothly, and wait until they have arrived."""
    start = np.array(robot.qpos(), np.float64)
    steps = round(seconds / robot.command_dt)
    began_s = _now(robot)
    target = start.copy()
    for step in range(1, steps + 4):
        share = min(step / steps, 1.0)
        target[joint] = start[joint] + by_rad * (1 - np.cos(np.pi * share)) / 2
        stamp_s = began_s + step * robot.command_dt
        robot.command(Command(target.copy(), opening_m, stamp_s))
        _sleep(robot, stamp_s - _now(robot))
    ends_s, moved_rad = _now(robot) + MAX_SETTLE_S, np.inf
    while moved_rad > 1e-4 and _now(robot) < ends_s:
        before = np.array(robot.qpos(), np.float64)
        _sleep(robot, SETTLE_S)
        moved_rad = np.abs(np.asarray(robot.qpos()) - before).max()


def _now(robot: Robot) -> float:
    clock = getattr(robot, "simulated_clock", None)
    return time.monotonic() if clock is None else clock.now()


def _sleep(robot: Robot, seconds: float) -> None:
    clock = getattr(robot, "simulated_clock", None)
    if clock is None:
        time.sleep(max(seconds, 0.0))
    else:
        clock.sleep_until(clock.now() + seconds)
