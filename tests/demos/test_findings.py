"""What makes a demo unfit, and what is only worth knowing."""

import numpy as np
import pytest

from robopolicy.demos.actions import gripper_openings, opening_ends
from robopolicy.demos.findings import (
    KeySummary,
    action_findings,
    copied_share,
    demo_notes,
    demo_problems,
    holds_last_action,
    set_findings,
)
from robopolicy.types import ActionSpec, Demo

SPEC = ActionSpec(arm=2, gripper=1)


def a_demo(obs=None, actions=None):
    return Demo("demo_0", obs or {}, np.zeros((10, 3)) if actions is None else actions)


def test_even_clocks_are_no_problem():
    """Guards against: complaints about every file with timestamps."""
    times = np.arange(10) / 20
    assert list(demo_problems(a_demo({"stamp_s": times}), times, rate_hz=20.0)) == []


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        (np.r_[0:5, 5.9, 6:10] / 20, "timestamp is irregular: step 5 lasts"),
        (np.r_[0:5, 3, 6:10] / 20, "timestamp goes back, or stands still, at step 5"),
        (np.arange(10) / 10, "unequal clocks: a step lasts 0.05 s by the control rate, 0.1 s by timestamp"),
    ],
)
def test_clocks_that_stutter_turn_back_or_disagree_are_problems(times, expected):
    """Guards against: a dropped frame or a wrong rate, which shifts observations against actions."""
    assert any(expected in text for text in demo_problems(a_demo(), times, rate_hz=20.0))


def test_two_sensors_with_different_clocks_are_a_problem():
    """Guards against: a camera at half the rate that shows half-old images."""
    obs = {"camera_time": np.arange(10) / 10, "joint_time": np.arange(10) / 20}
    assert any("unequal clocks" in text for text in demo_problems(a_demo(obs), None, None))


def test_a_camera_that_stands_still_is_noted():
    """Guards against: frozen images, which teach the policy to ignore them."""
    frozen = np.zeros((10, 4, 4, 3), np.uint8)
    moving = np.arange(10, dtype=np.uint8)[:, None, None, None] + frozen
    assert [text.partition(":")[0] for text in demo_notes(a_demo({"front": frozen, "wrist": moving}))] == ["front"]


def test_constant_dimensions_missing_keys_and_shared_masks_are_found():
    """Guards against: faults that spoil a training run without an error message."""
    keys = {"pose": KeySummary.of(np.zeros((3, 2))), "extra": KeySummary.of(np.zeros((3, 2)))}
    for _ in range(4):
        keys["pose"].add(np.array([[1.0, 5.0], [2.0, 5.0]]))
    keys["extra"].add(np.array([[1.0, 2.0], [3.0, 4.0]]))
    masks = {"train": ["demo_0", "demo_1"], "valid": ["demo_1"]}
    found = {finding.text: finding.severity for finding in set_findings(keys, 4, {"lift": 3, None: 1}, masks)}
    assert found == {
        "pose: constant over all demos in dimension 1": "note",
        "extra is in 1 of 4 readable demos": "problem",
        "1 of 4 demos have no instruction": "note",
        "1 demos are in mask/train and in mask/valid: demo_1": "problem",
    }


def grasp(moves=True):
    arm = np.random.default_rng(0).uniform(-1, 1, (10, 2))
    return np.c_[arm, np.where(np.arange(10) < 5, -1, 1) if moves else -np.ones(10)]


def test_a_gripper_still_in_one_demo_of_many_is_that_demo_s_problem():
    """Guards against: a failed recording among good ones, which teaches not to grasp."""
    actions = {"demo_0": grasp(), "demo_1": grasp(moves=False), "demo_2": grasp()}
    assert [(f.severity, f.demo) for f in action_findings(actions, SPEC)] == [("problem", "demo_1")]


def test_a_gripper_that_no_demo_moves_is_only_noted():
    """Guards against: demos of a task without a gripper called wrong."""
    actions = {f"demo_{i}": grasp(moves=False) for i in range(3)}
    assert [f.severity for f in action_findings(actions, SPEC)] == ["note"]


def test_a_gripper_is_compared_with_demos_of_the_same_instruction():
    """Guards against: links of a chain that only touch, each called faulty."""
    actions = {f"demo_{i}": grasp(moves=i > 0) for i in range(4)}
    instructions = dict.fromkeys(actions, "lift the cube")
    assert [f.severity for f in action_findings(actions, SPEC, instructions)] == ["problem"]
    assert [f.severity for f in action_findings(actions, SPEC, {**instructions, "demo_0": "touch the cube"})] == [
        "note"
    ]


def test_repeated_actions_and_actions_beyond_the_bounds_are_noted():
    """Guards against: repeated actions (the copycat risk), and expert actions that a clamp would cut."""
    rows = np.c_[np.repeat([[0.5, 1.5], [0.2, -0.3]], 5, axis=0), np.r_[-np.ones(5), np.ones(5)]]
    texts = [finding.text for finding in action_findings({"demo_0": rows}, SPEC)]
    assert any("89% of the arm's actions merely repeat the one before" in text for text in texts)
    assert any("from -0.3 to 1.5, beyond [-1, 1]" in text for text in texts)


def test_absolute_targets_may_exceed_one():
    """Guards against: joint angles beyond 1 rad called a mistake."""
    rows = np.c_[np.linspace(-2, 2, 10), np.linspace(0, 3, 10), np.r_[-np.ones(5), np.ones(5)]]
    assert list(action_findings({"demo_0": rows}, ActionSpec(arm=2, gripper=1, kind="absolute"))) == []


def test_what_the_last_action_tells_is_all_or_nothing_at_the_extremes():
    """Guards against: a figure that is not 1 for a slow ramp, or not about 0 for noise."""
    ramp = np.linspace(0, 1, 500)[:, None] * np.ones((1, 3))
    noise = np.random.default_rng(0).normal(size=(500, 3))
    assert copied_share([ramp], SPEC) > 0.999
    assert copied_share([noise], SPEC) < 0
    assert copied_share([ramp], ActionSpec(arm=[], gripper=[0, 1, 2])) is None


def test_an_observation_that_holds_the_last_action_is_found():
    """Guards against: the previous action in view, which a policy then copies."""
    actions = grasp()
    obs = {
        "state": np.c_[np.zeros(10), np.r_[0, actions[:-1, 1]]],
        "pose": np.random.default_rng(1).normal(size=(10, 3)),
    }
    assert list(holds_last_action(a_demo(obs, actions))) == ["state"]


def test_rotations_that_jump_are_found_where_they_are():
    """Guards against: one pose with two far-apart values, without the columns that the user must declare."""
    half = np.linspace(0.2, 0.6, 8)
    turn = np.stack([np.sin(half), 0 * half, 0 * half, np.cos(half)], axis=1)
    flipped = np.where(np.arange(8)[:, None] < 4, turn, -turn)
    roll = (np.linspace(2.9, 3.4, 8) + np.pi) % (2 * np.pi) - np.pi
    obs = {"object": np.c_[half, flipped], "steady": turn, "rpy": np.stack([half, roll], axis=1)}
    gripper = np.c_[np.zeros((8, 3)), np.where(half < 0.4, -1.0, 1.0)]
    found = list(demo_notes(Demo("demo_0", obs, gripper)))
    assert [text.partition(";")[0] for text in found] == [
        "object[1:5]: a quaternion whose sign flips",
        "rpy[1:2]: an angle that jumps by a turn",
    ]
    assert all("--normalization.rotations" in text for text in found)


def gripper_demos(values: tuple[float, float]) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Actions that hold the first value and then the second, and an opening that is wide after the first."""
    rows = {f"demo_{n}": np.c_[np.random.default_rng(n).normal(size=(40, 2)), np.repeat(values, 20)] for n in range(3)}
    return rows, {name: np.repeat([[0.08], [0.0]], [22, 18], axis=0) for name in rows}


def test_a_gripper_that_opens_at_its_second_value_is_noted():
    """Guards against: a hand that closes where the demos opened, since -1 is usually open."""
    for values, opens in (((-1.0, 1.0), False), ((1.0, 0.0), True), ((0.0, 1.0), False)):
        rows, openings = gripper_demos(values)
        pair = (min(values), max(values))
        spec = ActionSpec(arm=2, gripper=1, gripper_values=[pair])
        notes = [
            finding.text for finding in action_findings(rows, spec, openings=openings) if "opens at" in finding.text
        ]
        assert len(notes) == opens
        assert not opens or notes[0].startswith(
            "the gripper (action 2) opens at 1 and closes at 0, by its measured opening"
        )


@pytest.mark.parametrize(
    ("ends", "values", "severity"),
    [((-1.0, 1.0), (0.0, 100.0), "note"), ((-1.0, 1.0), (0.0, 0.08), "note"), ((0.08, 0.0), (0.0, 0.5), "problem")],
)
def test_a_continuous_gripper_in_other_units_is_found(ends, values, severity):
    """Guards against: metres or percent executed as -1 .. 1."""
    rows = {"demo_0": np.c_[np.random.default_rng(0).normal(size=(40, 2)), np.linspace(*values, 40)]}
    spec = ActionSpec(arm=3, gripper=0, continuous_gripper=[2], continuous_gripper_values=[ends])
    (found,) = [finding for finding in action_findings(rows, spec) if "continuous gripper" in finding.text]
    assert found.severity == severity
    assert f"holds 0 .. {values[1]:g}; the action spec declares its ends as {ends[0]:g} and {ends[1]:g}" in found.text


def fingers(opening: np.ndarray) -> np.ndarray:
    """Positions (T, 2) of two fingers that mirror each other, as robosuite observes a Panda's."""
    return np.stack([opening / 2, -opening / 2], axis=1)


@pytest.mark.parametrize(
    ("obs", "ends"),
    [
        (lambda one, two: {"robot0_gripper_qpos": fingers(one)}, ("second", None)),
        (
            lambda one, two: {"robot0_gripper_qpos": fingers(one), "robot1_gripper_qpos": fingers(two)},
            ("second", "first"),
        ),
        (lambda one, two: {"gripper": np.stack([two, one], axis=1)}, ("second", "first")),
        (lambda one, two: {"left_gripper_width": one[:, None], "gripper_qvel": fingers(two)}, ("second", None)),
        (lambda one, two: {"gripper_position": np.stack([one, two], axis=1)}, None),
    ],
)
def test_each_gripper_is_compared_with_its_own_opening(obs, ends):
    """Guards against: a polarity that is found for one key named `gripper` alone, or read from the other hand's opening."""
    spec = ActionSpec(arm=0, gripper=2, gripper_values=[(0.0, 1.0), (0.0, 1.0)])
    rows, measured = [], []
    for seed in range(3):
        commands = np.random.default_rng(seed).integers(0, 2, (12, 2)).repeat(5, axis=0).astype(float)
        opening = np.concatenate([np.zeros((2, 2)), commands[:-2] * [1, -1] + [0, 1]]) * 0.08
        rows.append(commands)
        measured.append(gripper_openings(obs(*opening.T)))
    if ends is None:
        assert measured == [None] * 3
    else:
        assert opening_ends(rows, spec, measured) == ends


def test_joints_in_degrees_are_found_and_radians_are_not():
    """Guards against: demos of an arm in degrees, which a robot's first-target check refuses after hours of training."""
    turned = np.linspace([-3.0, 0.0, 3.0], [3.0, 6.28, -3.0], 20)
    spec = ActionSpec(arm=3, gripper=0, kind="absolute", space="joint_position")
    for scale, expected in ((1.0, []), (180 / np.pi, ["problem", "note"])):
        keys = {name: KeySummary.of(turned) for name in ("robot0_joint_pos", "robot0_joint_vel", "tcp")}
        for summary in keys.values():
            summary.add(turned * scale)
        found = [*action_findings({"demo_0": turned * scale}, spec), *set_findings(keys, 1, {"lift": 1}, {})]
        degrees = [finding for finding in found if "degrees" in finding.text]
        assert [finding.severity for finding in degrees] == expected
        assert all("reach 359.8 in dimension 0, 1, 2, more than a turn" in finding.text for finding in degrees)
    assert [finding.text.partition(":")[0] for finding in degrees] == ["actions", "robot0_joint_pos"]
