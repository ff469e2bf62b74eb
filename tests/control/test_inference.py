"""The policy's thread: it never holds up the control loop, and its failures are heard."""

import threading
import time
from dataclasses import replace

import numpy as np
import pytest
from jsonargparse import Namespace

from robopolicy.cli.drivers import _steps_per_call
from robopolicy.client import ACTIONS_PER_CALL_KEY, PolicyClient
from robopolicy.components import ConfigError
from robopolicy.control.inference import SteppedInference, ThreadedInference
from robopolicy.control.robot import DriverError, RobotError
from robopolicy.control.robots.fake import FakeRobot
from robopolicy.control.stream import PolicyStream, ServedStream
from robopolicy.types import Observation
from tests.exporting import ARM, make_policy
from tests.serving import SPEC, running_server
from tests.waiting import PATIENCE_S, wait_until


class GatedStream:
    """Counts its frames; thinks until it is let go."""

    gripper_logit = None

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.frames = 0
        self.error: Exception | None = None

    def __call__(self, observation, prefix=None):
        """Count one."""
        self.gate.wait(PATIENCE_S)
        if self.error:
            raise self.error
        self.frames += 1
        return np.full((2, 3), float(self.frames))

    def reset(self) -> None:
        """Count from none."""
        self.frames = 0


@pytest.fixture
def stream() -> GatedStream:
    return GatedStream()


@pytest.fixture
def inference(panda, stream):
    made = ThreadedInference(FakeRobot(panda), stream, instruction="lift the red cube")
    yield made
    stream.gate.set()
    made.close()


def collect(inference, count: int = 1) -> list:
    chunks = []
    wait_until(lambda: chunks.extend(inference.finished()) or len(chunks) >= count)
    return chunks


def test_a_request_comes_back_as_a_chunk_with_what_it_was_made_from(inference):
    """Guards against: a chunk that nobody can date."""
    before_s = time.monotonic()
    inference.request(0.0)
    (chunk,) = collect(inference)
    assert chunk.actions.tolist() == [[1.0] * 3] * 2
    assert chunk.observation.instruction == "lift the red cube"
    assert before_s <= chunk.observation.stamp_s <= time.monotonic()


def test_a_busy_policy_misses_frames_and_holds_nobody_up(inference, stream):
    """Guards against: requests that queue up behind a slow policy, and are answered ever later."""
    stream.gate.clear()
    for _ in range(5):
        inference.request(0.0)
    assert inference.finished() == []
    assert stream.frames == 0, "a call waited for the policy"
    stream.gate.set()
    assert len(collect(inference)) == 1
    assert inference.missed == 4


def test_a_reset_drops_what_is_still_in_progress_and_empties_the_memory(inference, stream):
    """Guards against: the first chunk of an episode that belongs to the last one."""
    stream.gate.clear()
    inference.request(0.0)
    inference.reset()
    stream.gate.set()
    wait_until(lambda: not inference._busy.is_set())
    assert inference.finished() == []
    inference.request(0.0)
    (chunk,) = collect(inference)
    assert chunk.actions[0, 0] == 1.0


def test_an_error_of_the_policy_or_the_robot_is_raised_where_its_chunk_is_awaited(inference, stream):
    """Guards against: a thread that dies quietly."""
    stream.error = ConnectionError("server gone")
    inference.request(0.0)
    with pytest.raises(ConnectionError, match="server gone"):
        collect(inference)
    stream.error, inference.robot.lost = None, "camera unplugged"
    inference.request(0.0)
    with pytest.raises(RobotError, match="camera unplugged"):
        collect(inference)
    inference.robot.lost = None
    inference.request(0.0)
    assert len(collect(inference)) == 1


def test_a_camera_that_freezes_is_an_error_of_the_robot(panda, stream):
    """Guards against: an arm that is controlled from an image of where it was."""
    robot = FakeRobot(panda)
    observe, began_s = robot.observe, time.monotonic()
    robot.observe = lambda: replace(
        seen := observe(), obs={"front": np.zeros((4, 4, 3), np.uint8)}, stamp_s=began_s + 10 * (seen.stamp_s - began_s)
    )
    inference = ThreadedInference(robot, stream)
    inference.request(0.0)
    assert len(collect(inference)) == 1
    robot._qpos = robot.qpos() + 0.3
    time.sleep(0.06)
    inference.request(0.05)
    with pytest.raises(RobotError, match="camera 'front' is frozen: the same image"):
        collect(inference)
    inference.close()


def test_a_served_policy_is_told_the_observation_and_the_instruction_under_the_wires_names(panda):
    """Guards against: a policy behind the network that gets no instruction, or whose memory is not reset."""

    class Client:
        reconnects = 0

        def infer(self, obs):
            self.obs = obs
            return {"actions": np.zeros((2, 7))}

        def reset(self):
            self.obs = None

    client, robot = Client(), FakeRobot(panda)
    robot.instruction = "open the drawer"
    stream = ServedStream(client)
    assert stream(robot.observe()).shape == (2, 7)
    assert client.obs["prompt"] == "open the drawer"
    assert set(client.obs) == {"qpos", "gripper", "ee_pose", "prompt"}
    client.reconnects += 1
    with pytest.raises(ConnectionError, match="during the episode"):
        stream(robot.observe())
    ServedStream(client, keys=("qpos",))(robot.observe())
    assert set(client.obs) == {"qpos", "prompt"}, "images that nobody looks at would fill the network"
    stream.reset()
    assert client.obs is None
    ServedStream(client, keys=(), constants={"actions_per_call": 1})(robot.observe())
    assert client.obs == {"prompt": "open the drawer", "actions_per_call": 1}


@pytest.mark.parametrize("frame_stride", [1, 3])
def test_a_served_policy_answers_as_it_does_here(frame_stride):
    """Guards against: a memory fed at another spacing, or other gripper logits, because the policy is behind a network."""
    policy = make_policy(action=ARM)
    spec = replace(policy.spec, frame_stride=frame_stride)
    here, rng = PolicyStream(policy, frame_stride=frame_stride), np.random.default_rng(0)
    with running_server(policy, spec) as server, PolicyClient(port=server.port) as client:
        there = ServedStream(client, constants={ACTIONS_PER_CALL_KEY: 1})
        for tick in range(3 * policy.window * frame_stride):
            if tick in (0, 10):
                here.reset()
                there.reset()
            obs = {key: rng.normal(size=wanted.shape).astype(np.float32) for key, wanted in policy.obs.items()}
            seen = Observation(obs, "lift the red cube")
            np.testing.assert_allclose(there(seen), here(seen), atol=1e-6)
            assert there.gripper_logit is not None
            np.testing.assert_allclose(there.gripper_logit, here.gripper_logit, atol=1e-6)


def test_every_nth_step_is_observed_and_an_episode_begins_with_one(panda, stream):
    """Guards against: frames at another distance than in training, or a robot that waits at the start of an episode."""
    inference = SteppedInference(FakeRobot(panda), stream, every=3)
    chunks = []
    for step in range(7):
        inference.request(float(step))
        chunks.append(len(inference.finished()))
    inference.reset()
    for step in (7, 8):
        inference.request(float(step))
        chunks.append(len(inference.finished()))
    assert chunks == [1, 0, 0, 1, 0, 0, 1, 1, 0]
    assert stream.frames == 1, "the memory starts again"


@pytest.mark.parametrize("every", [0, 3, 8])
def test_a_spacing_that_the_memory_or_the_chunk_does_not_fit_is_refused(every):
    """Guards against: a memory with frames at a distance that it was never trained on."""
    spec = replace(SPEC, frame_stride=8, chunk=4)
    with pytest.raises(ConfigError, match=f"--actions-per-call {every}: the policy's chunks have 4 actions"):
        _steps_per_call(Namespace(actions_per_call=every), spec)
    assert _steps_per_call(Namespace(actions_per_call=4), spec) == 4


def test_an_error_of_a_robots_driver_names_the_robot(panda, stream):
    """Guards against: a reason to stop such as "KeyError: 'wrist'", which reads as an error of the policy."""
    robot = FakeRobot(panda)
    robot.observe = lambda: {}["wrist"]
    with pytest.raises(DriverError, match=r"panda: its driver \S+FakeRobot failed in observe\(\): KeyError: 'wrist'"):
        SteppedInference(robot, stream).request(0.0)
