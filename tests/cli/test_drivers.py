"""Whatever decides the actions, `robopolicy run` drives a robot by it: a folder, an export, a server."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from robopolicy.cli.drivers import Driver, _announced, driver_of, fitted
from robopolicy.cli.run import _parser, run
from robopolicy.components import ConfigError, values_of
from robopolicy.control.execution import execution_from
from robopolicy.control.inference import SteppedInference
from robopolicy.control.profile import read_profile
from robopolicy.control.robot_server import RobotServer
from robopolicy.control.robots.base import RobotContext
from robopolicy.control.robots.fake import FakeRobot
from robopolicy.control.robots.websocket import WebsocketRobot
from robopolicy.control.serving.mapping import KeyMapping
from robopolicy.demos.formats.act import aloha_action_spec
from robopolicy.experiment import save_policy
from robopolicy.experiment.opening import open_policy
from robopolicy.types import ActionSpec, ArraySpec, Observation, PolicySpec
from tests.exporting import ARM, make_policy
from tests.lockstep import LockstepClock
from tests.serving import SPEC, running_server

EXPORTED = Path(__file__).parent / "robot_export"
QUIET = ["--seconds", "0.6", "--deadline", "5", "--priority", "false"]


ARMS: dict[str, tuple[int, LockstepClock]] = {}
"""What `linked` connects to: port of the server, and the time of both ends."""


def linked(context: RobotContext) -> WebsocketRobot:
    """`--robot tests.cli.test_drivers:linked`: the arm behind its socket, on the arm's time."""
    port, clock = ARMS["arm"]
    robot = WebsocketRobot(port=port, timeout_s=60.0, clock=clock)
    robot.simulated_clock = clock  # type: ignore[attr-defined]
    return robot


@pytest.fixture
def arm(monkeypatch) -> Iterator[FakeRobot]:
    """An arm behind a socket, whose time passes for both ends alike; its address is `arm.address`."""
    clock = LockstepClock(sleepers=2)
    robot = FakeRobot(read_profile("panda"), clock=clock)
    with RobotServer(robot, port=0, deadline_s=10.0, clock=clock) as server:
        robot.address = f"ws://127.0.0.1:{server.port}"  # type: ignore[attr-defined]
        monkeypatch.setitem(ARMS, "arm", (server.port, clock))
        yield robot
        clock.leave()  # the control loop has ended; the server's brings the arm to rest


def saved(folder: Path, kind: str = "keys", **changes: object) -> str:
    given = {"action_head.chunk": 4} | {name.replace("__", "."): value for name, value in changes.items()}
    provenance = {"task": "lift", "control_dt": 0.05}
    return str(save_policy(make_policy(kind, action=ARM, changes=given), folder, provenance))


def driven(arguments: list[str], robot: FakeRobot, tmp_path: Path) -> dict:
    """The figures of a run in which the arm has moved."""
    figures, home = tmp_path / "run.json", robot.qpos().copy()
    assert run([*arguments, "--robot", f"{__name__}:linked", *QUIET, "--json", str(figures)]) == 0
    assert abs(robot.qpos() - home).max() > 1e-3
    results = json.loads(figures.read_text())
    assert results["stops"] == []
    assert results["steps"] >= 10
    assert results["missed_steps"] == results["idle"] == 0
    return results


def test_a_run_folder_drives_an_arm_over_the_network(arm, tmp_path):
    """Guards against: a trained run folder that can't drive an arm behind a socket."""
    driven([saved(tmp_path / "run"), "--instruction", "lift the red cube"], arm, tmp_path)


def test_an_exported_folder_drives_it_as_it_was_trained_to(arm, tmp_path):
    """Guards against: an export executed with settings that its training never saw."""
    driven([str(EXPORTED), "--instruction", "lift the red cube"], arm, tmp_path)
    driver = driver_of(_parser().parse_args([str(EXPORTED), "--robot", "sim"]))
    assert driver.execution.replan_every == 2
    changed = ["--robot", "sim", "--execution.kind", "ensemble", "--execution.ensemble_decay", "0.5"]
    changed_driver = driver_of(_parser().parse_args([str(EXPORTED), *changed]))
    assert values_of(changed_driver.execution) == {
        "kind": "ensemble",
        "replan_every": 1,
        "gripper_hysteresis": 0.0,
        "ensemble_decay": 0.5,
        "sample": False,
        "best_of": 1,
        "simulated_latency_steps": 0,
    }
    with pytest.raises(
        ConfigError, match=r"unknown option --execution\.ensemble_decay; the options of execution 'receding'"
    ):
        driver_of(_parser().parse_args([str(EXPORTED), "--robot", "sim", "--execution.ensemble_decay", "0.5"]))


def test_a_policy_behind_a_server_drives_it(arm, tmp_path):
    """Guards against: a policy that must run on the computer beside the arm."""
    policy = open_policy(EXPORTED)
    with running_server(policy, policy.spec) as server:
        driven(["--server", f"127.0.0.1:{server.port}", "--instruction", "lift the red cube"], arm, tmp_path)
        assert server.metrics.value("unused_keys_total") == 0  # qpos, which it doesn't look at, stays here


def test_a_policy_behind_a_server_is_driven_by_as_its_folder_is(tmp_path):
    """Guards against: other actions, or another way to execute them, because the policy is behind a network."""
    execution = {"execution.kind": "ensemble", "execution.replan_every": 3}
    made = make_policy(action=ARM, changes={"action_head.chunk": 4, "data.frame_stride": 3} | execution)
    save_policy(made, tmp_path / "run", {"control_dt": 0.05})
    policy = open_policy(tmp_path / "run")
    with running_server(policy, policy.spec, KeyMapping(instruction=("task",))) as server:
        here, there = (
            driver_of(_parser().parse_args([*words, "--robot", "sim"]))
            for words in ([str(tmp_path / "run")], ["--server", f"127.0.0.1:{server.port}"])
        )
        assert there.execution == here.execution == made.config.execution
        facts = [(spec.action, spec.observation, spec.chunk) for spec in (there.spec, here.spec)]
        assert facts[0] == facts[1]
        for tick in range(12):
            obs = {key: np.full(wanted.shape, 0.1 * tick, np.float32) for key, wanted in policy.obs.items()}
            seen = Observation(obs, "lift the red cube")
            np.testing.assert_allclose(there.stream(seen), here.stream(seen), atol=1e-6)


def test_a_served_policy_draws_its_chunks_on_the_server(tmp_path):
    """Guards against: sampling that gets lost on the way, or options accepted that a server does not follow."""
    changes = {"action_head.kind": "flow", "action_head.chunk": 4, "execution.sample": True}
    save_policy(make_policy(action=ARM, changes=changes), tmp_path / "run", {"control_dt": 0.05})
    policy = open_policy(tmp_path / "run")
    with running_server(policy, policy.spec) as server:
        words = ["--server", f"127.0.0.1:{server.port}", "--robot", "sim"]
        stream = driver_of(_parser().parse_args(words)).stream
        seen = Observation({key: np.zeros(wanted.shape, np.float32) for key, wanted in policy.obs.items()}, "lift")
        first = stream(seen)
        stream.reset()
        assert not np.array_equal(stream(seen), first)
        for option, value, message in (
            ("sample", "false", "the server draws its chunks, one at a time"),
            ("best_of", "4", "the server draws its chunks, one at a time"),
            ("kind", "rtc", "an exported or served policy continues none"),
        ):
            given = [f"--execution.{option}", value, *(["--execution.sample", "true"] if option == "kind" else [])]
            with pytest.raises(ConfigError, match=message):
                driver_of(_parser().parse_args([*words, *given]))


def test_an_exported_policy_refuses_executions_that_it_cannot_follow():
    """Guards against: real-time chunking or a choice of chunks that stops the robot at its second prediction."""
    for options, message in (
        (["--execution.kind", "rtc"], "an exported or served policy continues none"),
        (["--execution.sample", "true", "--execution.best_of", "4"], "an exported policy draws one chunk at a time"),
        (["--execution.sample", "true"], "of exported policies, only flow"),
    ):
        with pytest.raises(ConfigError, match=message):
            driver_of(_parser().parse_args([str(EXPORTED), "--robot", "sim", *options]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--server", "localhost"], "--server localhost: expected HOST:PORT"),
        (["--server", "PORT"], "doesn't declare the rate of its actions"),
    ],
)
def test_a_server_that_cannot_drive_a_robot_is_refused(arguments, message):
    """Guards against: actions executed at a rate that they were not meant for."""
    with running_server(spec=replace(SPEC, control_dt=None)) as server:
        words = [word.replace("PORT", f"127.0.0.1:{server.port}") for word in arguments]
        with pytest.raises(ConfigError, match=message):
            driver_of(_parser().parse_args([*words, "--robot", "sim"]))


def test_a_server_that_does_not_tell_of_its_policy_is_refused():
    """Guards against: a traceback for whoever points `run` at another kind of policy server."""
    with pytest.raises(
        ConfigError, match="--server gpu:8000 doesn't announce its policy's observation; expected a `robop"
    ):
        _announced({}, "gpu:8000")


def test_a_robot_that_lacks_what_the_policy_looks_at_is_refused_before_it_moves(arm, tmp_path):
    """Guards against: a camera that isn't plugged in, found out after the arm has gone home."""
    home = arm.qpos().copy()
    with pytest.raises(ConfigError, match=r"reads 'front', which robot ws://.* doesn't observe; it has: ee_pose"):
        run([saved(tmp_path / "pixels", "pixels"), "--robot", arm.address, *QUIET])
    assert (arm.qpos() == home).all()


@pytest.mark.slow
def test_a_pixel_policy_drives_the_simulated_arm(tmp_path, capsys):
    """Guards against: images of the simulator's process that are of another size than the policy's, or come too late."""
    options = ["--robot", "sim", "--task", "reach", "--command-hz", "100", "--seed", "3"]
    record, figures = tmp_path / "run.hdf5", tmp_path / "run.json"
    pixels = saved(tmp_path / "run", "pixels", memory__layers=1, memory__hidden=8)
    assert run([pixels, *options, *QUIET, "--record", str(record), "--json", str(figures)]) == 0
    from robopolicy.demos.hdf5 import DemoFile

    with DemoFile(record) as file:
        assert file.read("demo_0").obs["front"].shape[1:] == (16, 16, 3)
    assert json.loads(figures.read_text())["latency_ms"]["p50"] > 0
    assert "success   no" in capsys.readouterr().out


def test_what_a_policy_sees_is_fitted_to_the_robot(capsys):
    """Guards against: ALOHA's policy that is refused, images of a real camera that are, another arm's joints that are not."""
    seen: list[Observation] = []

    class Watching:
        gripper_logit = None

        def __call__(self, observation: Observation, prefix: object = None) -> np.ndarray:
            seen.append(observation)
            return np.zeros((4, 14))

        def reset(self) -> None:
            """Nothing is kept."""

    class Seeing(FakeRobot):
        def observe(self) -> Observation:
            found = super().observe()
            return Observation({**found.obs, "top": np.full((48, 64, 3), 9, np.uint8)}, None, found.stamp_s)

    pair, spec = read_profile("viperx_pair"), aloha_action_spec(14)
    observation = {"qpos": ArraySpec((14,)), "top": ArraySpec((24, 32, 3), "uint8")}
    driver = Driver(Watching(), PolicySpec(observation, spec, 4, 1), 0.02, execution_from({}))
    robot = Seeing(pair, 0.02)
    made = fitted(driver, robot, "pair")
    inference = SteppedInference(robot, made.stream, adapt=made.adapt)
    inference.request(0.0)
    np.testing.assert_allclose(seen[0].obs["qpos"][[0, 6, 13]], [pair.home_rad[0], 1.0, 1.0], atol=1e-6)
    assert seen[0].obs["top"].shape == (24, 32, 3)
    assert "qpos      passed to the policy in its action's 14 columns" in capsys.readouterr().out
    with pytest.raises(ConfigError, match=r"reads 'qpos' of shape \(9,\), robot pair observes \(12,\)"):
        fitted(replace(driver, spec=PolicySpec({"qpos": ArraySpec((9,))}, spec, 4, 1)), robot, "pair")
    with pytest.raises(
        ConfigError, match="the policy reads 'wrist', which robot pair doesn't observe; it has: gripper"
    ):
        fitted(replace(driver, spec=PolicySpec({"wrist": ArraySpec((9,))}, spec, 4, 1)), robot, "pair")


class Still:
    """Actions of zeros."""

    gripper_logit = None

    def __call__(self, observation: Observation, prefix: object = None) -> np.ndarray:
        """Four of them."""
        return np.zeros((4, 7))

    def reset(self) -> None:
        """Nothing is kept."""


def still(spec: ActionSpec, opens: object) -> Driver:
    policy = PolicySpec({}, spec, 4, 1, provenance={"gripper_opens": opens})
    return Driver(Still(), policy, 1 / spec.rate_hz, execution_from({}))


@pytest.mark.parametrize("opens", ["first", "second", None])
@pytest.mark.parametrize("profile_opens", ["first", "second"])
def test_a_gripper_that_opens_the_other_way_is_refused(opens, profile_opens):
    """Guards against: a hand that closes around nothing and opens where it should hold."""
    robot = FakeRobot(replace(read_profile("panda"), gripper_opens=profile_opens))
    spec = ActionSpec(arm=6, gripper=1, kind="delta", space="ee", rate_hz=20.0)

    driver = still(spec, opens)
    if opens in (None, profile_opens):
        assert fitted(driver, robot, "fake") is driver
        return
    value = {"first": "-1", "second": "1"}[opens]
    with pytest.raises(ConfigError, match=f"opens at {value}, its {opens} value; .* gripper_opens: {profile_opens}"):
        fitted(driver, robot, "fake")


def test_each_arm_s_gripper_is_checked_by_its_own_profile():
    """Guards against: two hands of which only the first is compared with the demos, or with the other's profile."""
    pair = read_profile("viperx_pair")
    left, right = pair.arms
    spec = ActionSpec(arm=4, gripper=0, continuous_gripper=(1, 3), arms={left: (0, 1), right: (2, 3)}, rate_hz=50.0)
    ends = [pair.arms[left].gripper_opens, "first" if pair.arms[right].gripper_opens == "second" else "second"]
    driver = still(spec, ends)
    with pytest.raises(
        ConfigError, match=rf"the gripper \(action 3\) opens at .*; the profile of {pair.arms[right].name}"
    ):
        fitted(driver, FakeRobot(pair), "pair")
    ends = [arm.gripper_opens for arm in pair.arms.values()]
    driver = still(spec, ends)
    assert fitted(driver, FakeRobot(pair), "pair") is driver
