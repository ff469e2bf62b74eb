"""Faults planted in demos, self-made and genuine, and what `check` finds in the genuine ones as they are."""

import re
import shlex
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import h5py
import numpy as np
import pytest

from robopolicy.cli import main
from robopolicy.demos.check import check_file
from robopolicy.demos.check_report import FileReport
from robopolicy.demos.drift import drift
from robopolicy.demos.edit_readers import rows_of
from robopolicy.demos.formats import action_spec_of, open_demos
from robopolicy.demos.packing import file_facts
from robopolicy.demos.writer import write_demo_file
from robopolicy.types import ActionSpec, Demo

SHARED = Path(__file__).parents[3] / "shared" / "demos"
GENUINE = pytest.mark.skipif(not SHARED.is_dir(), reason="the shared third-party demos are not on this machine")
SELF_MADE = ActionSpec(arm=6, gripper=1, kind="delta", space="ee", rate_hz=20.0)
DEMOS = 12
"""Demos of each source."""
ODD = 3
"""Place of the demo that a fault is planted in, where it is one alone."""


@dataclass(frozen=True)
class Source:
    """Demos to plant faults in."""

    demos: tuple[Demo, ...]
    spec: ActionSpec
    sensor: str
    """A low-dimensional key whose readings move with the robot."""
    camera: str | None = None


def self_made(count: int = 12) -> Source:
    """Reaching and grasping under a camera: smooth motion with some noise, never the same twice."""
    demos = []
    y, x = np.mgrid[:48, :64]
    scene = 90 + 40 * np.sin(x / 5) + 30 * np.cos(y / 4 + x / 9)
    for number in range(count):
        rng = np.random.default_rng(number)
        steps = int(rng.integers(60, 80))
        speed = np.sin(np.linspace(0.2, 3, steps))[:, None] * rng.uniform(-1, 1, 6)
        actions = np.clip(speed + rng.normal(0, 0.05, (steps, 6)), -1, 1)
        pose = 0.05 * np.cumsum(actions, axis=0) + rng.normal(0, 0.01, 6)
        closed = np.where(np.arange(steps) < steps - 20, -1.0, 1.0)
        frames = np.repeat(scene[None, :, :, None], steps, axis=0).repeat(3, axis=3)
        for step, (across, down) in enumerate(pose[:, :2]):
            row, column = int(20 + 12 * np.tanh(down)), int(28 + 20 * np.tanh(across))
            frames[step, row : row + 8, column : column + 8] = 250 - step
        half, axis = 0.3 + 0.5 * pose[:, 2] / np.ptp(pose[:, 2]), rng.dirichlet(np.ones(3)) ** 0.5
        obs = {
            "pose": pose,
            "quat": np.c_[np.sin(half)[:, None] * axis, np.cos(half)],
            "front": frames.clip(0, 255).astype(np.uint8),
            "stamp_s": np.arange(steps) / 20,
        }
        demos.append(Demo(f"demo_{number}", obs, np.c_[actions, closed], instruction="grasp"))
    return Source(tuple(demos), SELF_MADE, "pose", "front")


@cache
def source(name: str) -> Source:
    if name == "self-made":
        return self_made()
    with open_demos(SHARED / name) as reader:
        demos = tuple(reader.read(demo) for demo in reader.names[:DEMOS])
        spec = action_spec_of(reader)
    sensor = "qpos" if name == "act_transfer_cube" else "robot0_eef_pos"
    return Source(demos, spec, sensor, next((key for key, values in demos[0].obs.items() if values.ndim == 4), None))


def written(demos: Iterable[Demo], spec: ActionSpec, path: Path, masks: dict[str, list[str]] | None = None) -> Path:
    write_demo_file(path, file_facts(None, spec, {}), demos, masks or {})
    return path


Fault = Callable[[Source, Demo, int], Demo]
"""Changes the demo at this place, each one or only the one at `ODD`."""


def one(change: Callable[[Source, Demo], Demo]) -> Fault:
    return lambda given, demo, place: change(given, demo) if place == ODD else demo


def with_obs(demo: Demo, key: str, values: np.ndarray) -> Demo:
    return replace(demo, obs={**demo.obs, key: values})


def paused(given: Source, demo: Demo, at: int, steps: int) -> Demo:
    """The demo with a stretch of `steps` without motion after the step `at`."""
    rows = np.r_[: at + 1, np.full(steps, at), at + 1 : len(demo)]
    found = rows_of(demo, rows, {})
    if "stamp_s" in found.obs:
        found = with_obs(found, "stamp_s", np.arange(len(rows)) / 20)
    if given.spec.kind == "delta":
        found.actions[at + 1 : at + 1 + steps, list(given.spec.joint_columns)] = 0
    return found


def rate(given: Source) -> float:
    assert given.spec.rate_hz is not None
    return given.spec.rate_hz


def joined(demo: Demo, times: int) -> Demo:
    rows = np.concatenate([np.arange(len(demo))] * times)
    found = rows_of(demo, rows, {})
    return with_obs(found, "stamp_s", np.arange(len(rows)) / 20) if "stamp_s" in found.obs else found


def fast(given: Source) -> np.ndarray:
    rows = [demo.actions[:, list(given.spec.joint_columns)] for demo in given.demos]
    moved = rows if given.spec.kind == "delta" else [np.diff(values, axis=0) for values in rows]
    return np.percentile(np.abs(np.concatenate(moved)), 99, axis=0)


def spiked(given: Source, demo: Demo) -> Demo:
    actions = demo.actions.copy()
    actions[len(demo) // 2, given.spec.joint_columns[0]] += 20 * fast(given)[0]
    return replace(demo, actions=actions)


def trembling(given: Source, demo: Demo) -> Demo:
    actions, joints = demo.actions.copy(), list(given.spec.joint_columns)
    actions[:, joints] += (fast(given) * np.where(np.arange(len(demo)) % 2, 1, -1)[:, None]).astype(actions.dtype)
    return replace(demo, actions=actions)


def usual_range(given: Source) -> float:
    return float(np.median([np.ptp(demo.obs[given.sensor], axis=0).max() for demo in given.demos]))


def glitched(given: Source, demo: Demo) -> Demo:
    values = demo.obs[given.sensor].copy()
    values[len(demo) // 2, 1] += 3 * usual_range(given)
    return with_obs(demo, given.sensor, values)


def stuck(given: Source, demo: Demo, key: str, share: float) -> Demo:
    values, start = demo.obs[key].copy(), int(len(demo) * (1 - share) / 2)
    values[start : start + int(len(demo) * share)] = values[start]
    return with_obs(demo, key, values)


def offset(given: Source, demo: Demo, place: int) -> Demo:
    values = demo.obs[given.sensor].copy()
    values[:, 0] += 0.5 * usual_range(given) * place / len(given.demos)
    return with_obs(demo, given.sensor, values)


def dead_gripper(given: Source, demo: Demo) -> Demo:
    actions = demo.actions.copy()
    actions[:, [column for column, _, _ in given.spec.gripper_ends]] = actions[0, -1]
    return replace(demo, actions=actions)


def flipped(given: Source, demo: Demo) -> Demo:
    key = next(key for key in demo.obs if "quat" in key)
    values = demo.obs[key].copy()
    values[len(demo) // 2 :] *= -1
    return with_obs(demo, key, values)


def camera(given: Source) -> str:
    assert given.camera is not None
    return given.camera


def twin(given: Source, demo: Demo, place: int) -> Demo:
    if place != ODD:
        return demo
    other = given.demos[0]
    return replace(other, name=demo.name)


def moved_camera(given: Source, demo: Demo, place: int) -> Demo:
    key = camera(given)
    pixels = round(0.07 * demo.obs[key].shape[2] * place / len(given.demos))
    return with_obs(demo, key, np.roll(demo.obs[key], pixels, axis=2))


def dimmed(given: Source, demo: Demo, place: int) -> Demo:
    key = camera(given)
    return with_obs(demo, key, (demo.obs[key] * (1 - 0.2 * place / len(given.demos))).astype(np.uint8))


BOTH = ("self-made", "robosuite_lift_lowdim.hdf5")
CAMERAS = ("self-made", "robosuite_lift_image.hdf5")
JOINTS = ("self-made", "act_transfer_cube")
PLANTED: dict[str, tuple[Fault, str, str | None, tuple[str, ...]]] = {
    "a pause": (
        one(lambda g, d: paused(g, d, 15, round(2 * rate(g)))),
        r"nothing is commanded to move for [2-9].* s",
        "--trim-idle",
        (*BOTH, JOINTS[1]),
    ),
    "a late end": (
        one(lambda g, d: paused(g, d, len(d) - 1, 80)),
        r"nothing is commanded to move",
        "--trim-idle",
        BOTH,
    ),
    "a spike": (one(spiked), r"the actions jerk at step \d+", "--drop", (*BOTH, JOINTS[1])),
    "a tremor": (one(trembling), r"times as jerky as the other demos'", "--drop", (*BOTH, JOINTS[1])),
    "cut short": (
        one(lambda g, d: rows_of(d, np.arange(len(d) // 3), {})),
        r"steps, where the others have",
        "--drop",
        (*BOTH, JOINTS[1]),
    ),
    "two in one": (one(lambda g, d: joined(d, 3)), r"steps, where the others have", "--drop", BOTH),
    "a wrong reading": (one(glitched), r"a single reading is off by", "--drop", (*BOTH, JOINTS[1])),
    "other units": (
        one(lambda g, d: with_obs(d, g.sensor, d.obs[g.sensor] * 57.3)),
        r"in most demos it stays within",
        "--drop",
        (*BOTH, JOINTS[1]),
    ),
    "a stuck sensor": (
        one(lambda g, d: stuck(g, d, g.sensor, 0.7)),
        r"repeats one reading for .* s while the robot moves",
        "--drop",
        (*BOTH, JOINTS[1]),
    ),
    "a joint's offset": (offset, r"\[0\] drifts at the first step", "--drop-keys", (*BOTH, JOINTS[1])),
    "a frozen camera": (one(lambda g, d: stuck(g, d, camera(g), 1.0)), r"shows one image for", "--drop", CAMERAS),
    "a camera frozen for a while": (
        one(lambda g, d: stuck(g, d, camera(g), 0.7)),
        r"shows one image for",
        "--drop",
        (*CAMERAS, JOINTS[1]),
    ),
    "a black camera": (
        one(lambda g, d: with_obs(d, camera(g), 0 * d.obs[camera(g)])),
        r"shows one image for",
        "--drop",
        CAMERAS,
    ),
    "a camera that everyone froze": (
        lambda g, d, _: stuck(g, d, camera(g), 1.0),
        r"shows one image for",
        "--drop-keys",
        CAMERAS,
    ),
    "a camera that turns": (moved_camera, r"the background moves to the right by", "--drop-keys", CAMERAS),
    "a camera that dims": (dimmed, r"the brightness changes by -1\d%", "--drop-keys", CAMERAS),
    "a dead gripper": (
        one(dead_gripper),
        r"never moves; in most demos of the same instruction it does",
        "--drop",
        BOTH,
    ),
    "a twin": (twin, r"the same actions and observations as demo_0", "--drop", BOTH),
    "a missing key": (
        one(lambda g, d: replace(d, obs={key: v for key, v in d.obs.items() if key != g.sensor})),
        r" is in \d+ of \d+ readable demos",
        None,
        BOTH,
    ),
    "a quaternion's sign": (one(flipped), r"a quaternion whose sign flips", None, BOTH),
}
"""Fault -> what plants it, what `check` says, the option of `edit` that it proposes, and the demos it is planted in."""
CASES = [
    pytest.param(
        fault,
        where,
        id=f"{fault}, {where.partition('.')[0]}",
        marks=() if where == "self-made" else (GENUINE, pytest.mark.slow),
    )
    for fault, (_, _, _, places) in PLANTED.items()
    for where in places
]


@cache
def sound(where: str) -> set[tuple[str | None, str]]:
    """What is found in a source as it is."""
    with TemporaryDirectory() as folder:
        return texts(check_file(written(source(where).demos, source(where).spec, Path(folder) / "sound.hdf5")))


def texts(report: FileReport) -> set[tuple[str | None, str]]:
    return {(finding.demo, finding.text) for finding in report.findings}


@pytest.mark.parametrize(("fault", "where"), CASES)
def test_a_planted_fault_is_found_with_the_edit_that_removes_it(fault, where, tmp_path):
    """Guards against: a bad recording that is trained on, and a check that accuses the demos beside it."""
    given = source(where)
    change, expected, option, _ = PLANTED[fault]
    demos = [change(given, demo, place) for place, demo in enumerate(given.demos)]
    before = sound(where)
    report = check_file(written(demos, given.spec, tmp_path / "planted.hdf5"))
    found = [finding for finding in report.findings if re.search(expected, finding.text)]
    assert found, sorted(texts(report) - before)
    odd = given.demos[ODD].name
    if change.__name__ == "<lambda>" and option != "--drop-keys":
        assert {finding.demo for finding in found} <= {odd, None}
    new = {(finding.demo, finding.text) for finding in report.findings} - before
    if all(finding.demo == odd for finding in found):
        assert {name for name, _ in new} <= {odd, None}, "a sound demo is accused"
    commands = " ".join(report.edit_commands)
    assert option is None or f" {option} " in commands


@pytest.mark.parametrize("part", ["nan", "mask", "clock"])
def test_faults_of_a_file_are_found_beside(part, tmp_path):
    """Guards against: the older checks lost among the new ones."""
    given = source("self-made")
    names = [demo.name for demo in given.demos]
    masks = {"train": names, "valid": names[:2]} if part == "mask" else {}
    demos = list(given.demos)
    if part == "clock":
        stamps = demos[ODD].obs["stamp_s"].copy()
        stamps[30:] += 0.2
        demos[ODD] = with_obs(demos[ODD], "stamp_s", stamps)
    path = written(demos, given.spec, tmp_path / "a.hdf5", masks)
    if part == "nan":
        with h5py.File(path, "r+") as file:
            file["data/demo_3/obs/pose"][5, 2] = np.nan
    expected = {
        "nan": "every value must be finite",
        "mask": "are in mask/train and in mask/valid",
        "clock": "irregular",
    }
    report = check_file(path)
    assert [finding.demo for finding in report.problems if expected[part] in finding.text] == [
        None if part == "mask" else "demo_3"
    ]
    assert bool(report.edit_commands) == (part != "mask")


def test_sound_demos_are_accused_of_nothing(tmp_path):
    """Guards against: notes on every file, which nobody reads any more."""
    for seed, count in enumerate((8, 12, 40)):
        report = check_file(written(self_made(count).demos, SELF_MADE, tmp_path / f"{seed}.hdf5"))
        assert report.findings == []


def test_the_command_that_check_proposes_removes_the_finding(tmp_path, capsys):
    """Guards against: a proposal that `edit` refuses, or that leaves the fault."""
    given = source("self-made")
    demos = [paused(given, demo, 15, 40) if place == ODD else demo for place, demo in enumerate(given.demos)]
    demos[5] = spiked(given, demos[5])
    path = written(demos, given.spec, tmp_path / "a file.hdf5")
    report = check_file(path)
    assert main(["check", str(path)]) == 0
    assert f"edit     {report.edit_commands[0]}" in capsys.readouterr().out
    for command in report.edit_commands:
        words = shlex.split(command)
        assert main([*words[1:-1], str(tmp_path / f"{words[3]}.hdf5")]) == 0
    assert not any("jerk" in text for _, text in texts(check_file(tmp_path / "--drop.hdf5")))
    assert not any("commanded" in text for _, text in texts(check_file(tmp_path / "--trim-idle.hdf5")))


def test_what_drifts_is_told_from_what_varies():
    """Guards against: a drift seen in noise, and one hidden by a single odd demo."""
    rng = np.random.default_rng(0)
    assert not any(drift(rng.normal(size=count)) for count in (8, 20, 100) for _ in range(300))
    slope = np.linspace(0, 3, 30) + rng.normal(0, 0.5, 30)
    assert drift(slope) is not None
    assert drift(np.where(np.arange(30) < 15, 0.0, 1.0)) is not None, "a camera that was knocked once"
    slope[10] = 500
    assert drift(slope) is not None
    assert drift(np.zeros(20)) is None
    assert drift(np.arange(7.0)) is None


def human_demos() -> Iterable[Demo]:
    """The human demos, in robosuite's raw layout, with the simulator's states for observations."""
    with h5py.File(SHARED / "robosuite_1.4_raw_lift_human.hdf5") as file:
        for name in sorted(file["data"]):
            demo = file["data"][name]
            yield Demo(name, {"states": demo["states"][()][:, 1:]}, demo["actions"][()])


TRUE_FINDINGS = {
    "robosuite_lift_lowdim.hdf5": {(None, "of each demo, next_obs is not read")},
    "robosuite_lift_image.hdf5": set(),
    "robosuite_stack_lowdim.hdf5": {
        (None, "of each demo, next_obs is not read"),
        ("demo_8", "204 steps, where the others have 83 (2.5 times)"),
        ("demo_88", "253 steps, where the others have 83 (3 times)"),
    },
    "act_transfer_cube": {
        (
            None,
            "actions taken as ALOHA's: absolute joint targets at 50 Hz, continuous grippers in columns 6, 13; the files don't "
            "declare it",
        )
    },
    "human": {
        (None, "actions: constant over all demos in dimension 3, 4"),
        (None, "arm actions reach from -3.75 to 3.75, beyond [-1, 1]"),
        (None, "82% of the arm's actions merely repeat the one before; a policy may learn to copy"),
        ("demo_1", "nothing is commanded to move for 1.9 s from step 350; 8 such stretches"),
        ("demo_2", "nothing is commanded to move for 2.1 s from step 0; 5 such stretches"),
        ("demo_3", "nothing is commanded to move for 7.3 s from step 0; 4 such stretches"),
    },
}
"""The scripted stacker took three times as long where it dropped a cube; the human waits at the start and in between."""


@GENUINE
@pytest.mark.parametrize("name", TRUE_FINDINGS)
def test_of_the_genuine_files_what_is_true_is_found_and_no_more(name, tmp_path):
    """Guards against: a statistic that accuses sound demos of real tools."""
    path = SHARED / name
    if name == "human":
        spec = ActionSpec(arm=6, gripper=1, kind="delta", space="ee", rate_hz=20.0)
        path = written(human_demos(), spec, tmp_path / "human.hdf5")
    assert texts(check_file(path)) == TRUE_FINDINGS[name]


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_demos_of_a_few_steps_and_of_huge_numbers_are_compared_too(tmp_path, steps):
    """Guards against: a traceback, or a warning of NumPy, on a stranger's file."""
    given = source("self-made")
    demos = [rows_of(demo, np.arange(steps), {}) for demo in given.demos]
    demos[ODD] = with_obs(
        replace(demos[ODD], actions=demos[ODD].actions * 1e307), "pose", demos[ODD].obs["pose"] * 1e307
    )
    check_file(written(demos, ActionSpec(arm=7, gripper=0), tmp_path / "a.hdf5"))
    check_file(written(demos, ActionSpec(arm=0, gripper=0, constant=dict.fromkeys(range(7), 0.0)), tmp_path / "b.hdf5"))
