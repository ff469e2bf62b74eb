"""Features of one's own process: arrays in, a policy that is served and driven by tokens out."""

from dataclasses import replace

import numpy as np
import pytest

from robopolicy.cli import main
from robopolicy.client import PolicyClient
from robopolicy.control.robots.fake import FakeRobot
from robopolicy.control.server import ServerLimits
from robopolicy.demos.hdf5 import DemoWriter
from robopolicy.experiment import load_policy
from robopolicy.types import ActionSpec
from tests.serving import running_server

COUNT, WIDTH = 5, 12


def write(path, make_demo, shapes):
    """Demos with tokens of these shapes (N, D), one each."""
    rng = np.random.default_rng(0)
    with DemoWriter(path, action_spec=ActionSpec(arm=6, gripper=1, kind="delta", space="ee", rate_hz=20.0)) as writer:
        for number, shape in enumerate(shapes):
            demo = make_demo(number)
            tokens = rng.normal(size=(len(demo), *shape)).astype(np.float16)
            writer.write(replace(demo, name=f"demo_{number}", tokens=tokens, obs={}))
    return path


@pytest.fixture(scope="module")
def trained(make_demo, tmp_path_factory):
    folder = tmp_path_factory.mktemp("own")
    file = write(folder / "demos.hdf5", make_demo, [(COUNT, WIDTH)] * 4)
    small = ["--max-steps", "2", "--memory.hidden", "8", "--memory.window", "3", "--data.batch_size", "4"]
    words = ["--data.files", str(file), "--encoder.kind", "precomputed", "--run-dir", str(folder / "run")]
    assert main(["train", *words, *small]) == 0
    return folder / "run"


def test_arrays_become_a_policy_that_is_served_tokens(trained):
    """Guards against: features that only `encode` can make."""
    policy = load_policy(trained)
    assert policy.spec.observation["tokens"].shape == (COUNT, WIDTH)
    seen = np.random.default_rng(1).normal(size=(6, COUNT, WIDTH)).astype(np.float32)
    state = policy.initial_state(1)
    one = ServerLimits(max_batch=1)
    with running_server(policy, policy.spec, limits=one) as server, PolicyClient("127.0.0.1", server.port) as client:
        for tokens in seen:
            expected, state = policy.act({"tokens": tokens[None], "instruction": "lift the red cube"}, state)
            found = client.infer({"tokens": tokens, "prompt": "lift the red cube"})["actions"]
            np.testing.assert_allclose(found, expected[0], atol=1e-6, rtol=0)


def test_a_robot_whose_observation_carries_tokens_is_driven(trained, monkeypatch, capsys):
    """Guards against: `run` that knows images and numbers only."""
    observe = FakeRobot.observe

    def with_tokens(robot):
        seen = observe(robot)
        return replace(seen, obs={**seen.obs, "tokens": np.ones((COUNT, WIDTH), np.float32)})

    words = ["run", str(trained), "--robot", "fake", "--seconds", "0.5", "--deadline", "20", "--priority", "false"]
    assert main(words) == 2
    assert "the policy reads 'tokens', which robot fake doesn't observe" in capsys.readouterr().err
    monkeypatch.setattr(FakeRobot, "observe", with_tokens)
    assert main([*words, "--instruction", "lift the red cube"]) in (0, 1)
    said = capsys.readouterr().out
    assert "stopped" not in said
    assert "policy    p50" in said


def test_tokens_are_listed_and_several_shapes_refused(make_demo, tmp_path, capsys):
    """Guards against: a batch of two widths, found by a traceback in the middle of a training."""
    same = write(tmp_path / "same.hdf5", make_demo, [(COUNT, WIDTH)] * 3)
    assert main(["check", str(same)]) in (0, 1)
    assert any(line.split()[:3] == ["tokens", "5", "x"] for line in capsys.readouterr().out.splitlines())
    mixed = write(tmp_path / "mixed.hdf5", make_demo, [(COUNT, WIDTH), (COUNT + 1, WIDTH), (COUNT, WIDTH)])
    assert main(["check", str(mixed)]) == 1
    assert "tokens" in capsys.readouterr().out
    other = write(tmp_path / "other.hdf5", make_demo, [(COUNT, WIDTH + 2)] * 3)
    for files in ([mixed], [same, other]):
        words = ["--data.files", *map(str, files), "--encoder.kind", "precomputed", "--run-dir", str(tmp_path / "run")]
        assert main(["train", *words]) == 2
        error = capsys.readouterr().err
        assert len(error.splitlines()) == 1
        assert "tokens" in error
