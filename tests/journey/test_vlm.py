"""Every command of docs/vlm.md, on a tiny backbone, and a robot's client that sends images."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("transformers", reason="the extra vlm isn't installed")
pytest.importorskip("peft", reason="the extra vlm isn't installed")

from robopolicy.cli import main
from robopolicy.client import PolicyClient
from robopolicy.control.server import ServerLimits
from robopolicy.experiment import load_policy
from tests.experiment.test_backbone import frames_of, trained_on_tokens
from tests.serving import running_server
from tests.tiny_backbones import FAMILIES, save_backbone

PAGE = (Path(__file__).parents[2] / "docs" / "vlm.md").read_text()
COMMANDS = [
    line
    for block in re.findall(r"```\n(.*?)```", PAGE, flags=re.DOTALL)
    for line in block.splitlines()
    if line.startswith("robopolicy ")
]
SMALLER = {
    "collect": ["--episodes", "4", "--image-size", "16"],
    "train": ["--max-steps", "2", "--memory.hidden", "8", "--data.batch_size", "4"],
    "eval": ["--episodes", "2", "--num-envs", "2"],
    "run": ["--seconds", "1", "--deadline", "5"],
}
"""Options that override the page's, so that a command takes seconds."""


ONE = ServerLimits(max_batch=1)


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """No test may look for a model on the hub."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.mark.slow
@pytest.mark.parametrize("kind", FAMILIES)
def test_the_commands_of_the_page_work_one_after_another(kind, tmp_path, monkeypatch):
    """Guards against: a page whose commands fail, or a path from backbone to robot that breaks in the middle."""
    monkeypatch.chdir(tmp_path)
    save_backbone(kind, Path("vlm"))
    assert len(COMMANDS) >= 8
    for command in COMMANDS:
        verb, *words = shlex.split(command.removeprefix("robopolicy "))
        if verb != "serve":  # never ends; a client is served below
            assert main([verb, *words, *SMALLER.get(verb, [])]) in ((0, 1) if verb == "run" else (0,)), command


@pytest.mark.parametrize("kind", ["smolvlm"])
def test_a_client_is_served_from_images_as_from_tokens(kind, tiny_demos, tmp_path):
    """Guards against: a robot that sends images to a policy trained on tokens, refused or answered otherwise."""
    model = save_backbone(kind, tmp_path / "model")
    run = trained_on_tokens(tiny_demos, tmp_path / "made", model)
    stored, live = load_policy(run), load_policy(run, backbone=str(model))
    state = stored.initial_state(1)
    with running_server(live, live.spec, limits=ONE) as server, PolicyClient("127.0.0.1", server.port) as client:
        assert client.metadata["observation"]["front"] == {"shape": [16, 16, 3], "dtype": "uint8"}
        assert "tokens" not in client.metadata["observation"]
        for frame in frames_of(run, ("demo_0",))[:8]:
            seen = {key: value[0] for key, value in frame.items() if key in live.spec.observation}
            found = client.infer({**seen, "prompt": frame["instruction"][0]})["actions"]
            expected, state = stored.act(frame, state)
            np.testing.assert_allclose(found, expected[0], atol=1e-5, rtol=0)
    with running_server(stored, stored.spec, limits=ONE) as server, PolicyClient("127.0.0.1", server.port) as client:
        (frame,) = frames_of(run, ("demo_0",))[:1]
        sent = {key: value[0] for key, value in frame.items() if key in stored.spec.observation}
        found = client.infer({**sent, "prompt": frame["instruction"][0]})["actions"]
        expected, _ = stored.act(frame, stored.initial_state(1))
        np.testing.assert_array_equal(found, expected[0])
