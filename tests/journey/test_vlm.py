"""Every command of docs/vlm.md, on a tiny backbone, and a robot's client that sends images."""

import os
import re
import shlex
import shutil
import struct
import subprocess
import venv
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("transformers", reason="the extra vlm isn't installed")
pytest.importorskip("peft", reason="the extra vlm isn't installed")

from robopolicy.cli import main
from robopolicy.client import PolicyClient, pack, unpack
from robopolicy.control.server import ServerLimits
from robopolicy.demos.formats import open_demos
from robopolicy.experiment import load_policy, read_provenance
from robopolicy.training.encode import EncodeOptions, encode_file
from tests.experiment.test_backbone import frames_of, trained_on_tokens
from tests.experiment.test_robovlms import WIDTH, fine_tuned, write_checkpoint
from tests.journey.test_docs import FENCE
from tests.serving import running_server
from tests.tiny_backbones import FAMILIES, save_backbone

PAGE = (Path(__file__).parents[2] / "docs" / "vlm.md").read_text()
COMMANDS = [
    line
    for fence in FENCE.finditer(PAGE)
    if not fence["language"]
    for line in fence["text"].splitlines()
    if line.startswith("robopolicy ")
]
SMALLER = {
    "convert": ["--image-size", "16"],
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
    paligemma = save_backbone("paligemma", Path("paligemma-3b-pt-224"), width=WIDTH)
    write_checkpoint(Path("robovlms.ckpt"), fine_tuned(paligemma))
    file, config = re.search(r'```yaml title="(\S+)"\n(.*?)```', PAGE, flags=re.DOTALL).groups()
    Path(file).write_text(config)
    assert len(COMMANDS) == 15
    for command in COMMANDS:
        verb, *words = shlex.split(command.removeprefix("robopolicy "))
        if "robots.yaml" in words:  # another robot's demos
            shutil.copy("lift.hdf5", "ur5.hdf5")
            shutil.copy("lift.tokens.hdf5", "ur5.tokens.hdf5")
        if verb != "serve":  # never ends; a client is served below
            assert main([verb, *words, *SMALLER.get(verb, [])]) in ((0, 1) if verb == "run" else (0,)), command


QUICK = "smolvlm"
KINDS = [
    kind if kind == QUICK else pytest.param(kind, marks=pytest.mark.slow)
    for kind in (*FAMILIES, "dinov2", "siglip2", "qwen2_vl", "idefics3")
]


@pytest.fixture(scope="module", params=KINDS)
def made(request, tiny_demos, tmp_path_factory):
    """A tiny backbone, and a run folder trained on its tokens."""
    folder = tmp_path_factory.mktemp(request.param)
    model = save_backbone(request.param, folder / "model")
    run = trained_on_tokens(tiny_demos, folder / "made", model, **{"data.obs_keys": ["ee_pose"]})
    return model, run


def message(frame, spec):
    """One frame as a client sends it."""
    seen = {key: value[0] for key, value in frame.items() if key in spec.observation}
    return seen | ({"prompt": frame["instruction"][0]} if spec.instruction else {})


def test_clients_that_send_images_and_tokens_are_answered_alike(made):
    """Guards against: a robot that sends images to a policy trained on tokens, refused or answered otherwise."""
    model, run = made
    stored, live = load_policy(run), load_policy(run, backbone=str(model))
    state = stored.initial_state(1)
    with (
        running_server(live, live.spec, limits=ONE) as server,
        PolicyClient("127.0.0.1", server.port) as images,
        PolicyClient("127.0.0.1", server.port) as tokens,
    ):
        assert images.metadata["observation"]["front"] == {"shape": [16, 16, 3], "dtype": "uint8"}
        assert "tokens" not in images.metadata["observation"]
        assert "tokens" in images.metadata["optional"]
        for frame in frames_of(run, ("demo_0",)):
            expected, state = stored.act(frame, state)
            for client, spec in ((images, live.spec), (tokens, live.token_spec)):
                found = client.infer(message(frame, spec))["actions"]
                np.testing.assert_allclose(found, expected[0], atol=1e-5, rtol=0)
            if frame["ends"][0]:
                state = stored.initial_state(1)
                images.reset()
                tokens.reset()


@pytest.fixture(scope="module")
def openpi_python(tmp_path_factory):
    """An interpreter with openpi's own client: the one that ROBOPOLICY_OPENPI_PYTHON names, or a new environment."""
    if named := os.environ.get("ROBOPOLICY_OPENPI_PYTHON"):
        return named
    folder = tmp_path_factory.mktemp("openpi")
    venv.create(folder, with_pip=True)
    packages = ["openpi-client", "typing_extensions", "numpy<2"]
    done = subprocess.run([folder / "bin" / "python", "-m", "pip", "install", "--quiet", *packages], check=False)
    if done.returncode:
        pytest.skip("openpi-client can't be installed here")
    return str(folder / "bin" / "python")


@pytest.mark.slow
def test_openpis_own_client_that_sends_images_is_served(made, openpi_python):
    """Guards against: images as openpi's client packs them, refused or answered otherwise than the stored tokens."""
    model, run = made
    stored, live = load_policy(run), load_policy(run, backbone=str(model))
    state, peer = stored.initial_state(1), Path(__file__).parents[2] / "eval" / "openpi_peer.py"
    with running_server(live, live.spec, limits=ONE) as server:
        words = [openpi_python, "-I", str(peer), "drive", str(server.port), "1"]
        with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as client:

            def send(values):
                data = pack(values)
                client.stdin.write(struct.pack("<I", len(data)) + data)
                client.stdin.flush()

            answered = 0
            for frame in frames_of(run, ("demo_0",)):
                expected, state = stored.act(frame, state)
                send(message(frame, live.spec))
                (length,) = struct.unpack("<I", client.stdout.read(4))
                found = unpack(client.stdout.read(length))
                np.testing.assert_allclose(found, expected[0, 0], atol=1e-5, rtol=0)
                answered += 1
                if frame["ends"][0]:
                    state = stored.initial_state(1)
                    send(None)
            client.stdin.close()
    assert answered >= 50


def test_what_run_executes_is_what_the_stored_tokens_give(made, tmp_path):
    """Guards against: a robot driven by other tokens than those that `encode` makes of the same images."""
    model, run = made
    record = tmp_path / "record.hdf5"
    options = ["--robot", "sim", "--task", "lift", "--realtime", "false", "--command-hz", "200", "--seconds", "2.5"]
    assert main(["run", str(run), "--backbone", "auto", *options, "--record", str(record)]) in (0, 1)
    stored = load_policy(run)
    length = read_provenance(run)["token_encoder"]["prompt_tokens"]
    encode_file(record, str(model), EncodeOptions(cameras=("front",), prompt_tokens=length or None))
    with open_demos(record) as file:
        demo = file.read(file.names[0])
    assert len(demo) >= 45
    state, largest = stored.initial_state(1), 0.0
    for t in range(len(demo)):
        frame = {key: value[t][None] for key, value in demo.obs.items()} | {"tokens": demo.tokens[t][None]}
        frame["token_valid"] = np.asarray(demo.attributes["token_valid"])[None]
        rows, state = stored.act({**frame, "instruction": demo.instruction}, state)
        largest = max(largest, float(np.abs(rows[0, 0].numpy() - demo.actions[t]).max()))
    assert largest <= 1e-5
