"""RoboVLMs checkpoints with their backbone: images in, the original's actions out."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

pytest.importorskip("transformers", reason="the extra vlm isn't installed")

from robopolicy.cli import main
from robopolicy.components import ConfigError
from robopolicy.experiment import load_policy
from robopolicy.experiment.robovlms import CheckpointOptions, convert_checkpoint
from robopolicy.model.encoders._loading import load_backbone
from robopolicy.model.robovlms import words_head
from tests.model.test_robovlms import Original, make_weights
from tests.tiny_backbones import save_backbone

WIDTH = 12
"""D of the checkpoint's head, and the hidden size of its backbone."""
WORDS = {"lift": 5, "the": 6, "red": 7, "cube": 9, "<end>": 4}


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """No test may look for a model on the hub."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def old_name(key):
    """A weight's name in the transformers release that RoboVLMs was written with."""
    key = key.removeprefix("model.")
    if key.startswith("lm_head."):
        return f"language_model.{key}"
    return key.replace("language_model.", "language_model.model.", 1) if key.startswith("language_model.") else key


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    """A tiny PaliGemma as it was before its fine-tuning."""
    return save_backbone("paligemma", tmp_path_factory.mktemp("models") / "paligemma", width=WIDTH)


@pytest.fixture(scope="module")
def tuned(backbone):
    return fine_tuned(backbone)


def fine_tuned(backbone, change=0.05):
    """The backbone after its fine-tuning: other weights."""
    import transformers

    model = transformers.AutoModelForImageTextToText.from_pretrained(backbone)
    torch.manual_seed(7)
    for parameter in model.parameters():
        parameter.data += change * torch.randn_like(parameter)
    return model.eval()


def write_checkpoint(path, tuned):
    """A file with the original's module layout, as DeepSpeed's converter writes it."""
    torch.manual_seed(3)
    state = {f"model.backbone.{old_name(key)}": value for key, value in tuned.state_dict().items()}
    state["model.action_token"] = torch.randn(WIDTH)
    state |= {f"model.act_head.{key}": value for key, value in make_weights("lstm").items()}
    torch.save({"state_dict": {f"_forward_module.{key}": value for key, value in state.items()}}, path)
    return path


@pytest.fixture(scope="module")
def checkpoint(tuned, tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint") / "robovlms.pt", tuned)


@torch.no_grad()
def original_token(model, pixels, numbers, action):
    """The action token's last hidden state: PaliGemma's tower, then one sequence of embeddings that all see each other."""
    embed = model.get_input_embeddings()
    first, words = embed(torch.tensor(numbers[:1])), embed(torch.tensor(numbers[1:]))
    seen = [model.model.get_image_features(image[None]).pooler_output[0] for image in pixels]
    sequence = torch.cat([first, *seen, words, action[None]])[None]
    mask = torch.zeros(1, 1, sequence.shape[1], sequence.shape[1])
    return model.model.language_model(inputs_embeds=sequence, attention_mask=mask).last_hidden_state[:, -1:]


def test_the_policy_acts_from_images_as_the_original_does(checkpoint, backbone, tuned, tmp_path):
    """Guards against: the backbone before its fine-tuning, a lost action token, or images and words in another order."""
    options = CheckpointOptions(
        window=4,
        arm_limit=0.5,
        backbone=str(backbone),
        template="<end>{images}{instruction}{action}",
        cameras=("wrist", "front"),
        image_size=16,
    )
    run = convert_checkpoint(checkpoint, tmp_path / "run", options)
    policy = load_policy(run, backbone="auto")
    assert policy.spec.cameras == ("wrist", "front")
    weights = make_weights("lstm")
    action = torch.load(checkpoint)["state_dict"]["_forward_module.model.action_token"]
    prepare = load_backbone(str(backbone), (16, 16)).images
    rng, state, tokens = np.random.default_rng(0), policy.initial_state(1), []
    words = ("lift", "the", "red", "cube")
    for _ in range(3):
        images = {key: rng.integers(0, 256, (1, 16, 16, 3), dtype=np.uint8) for key in policy.spec.cameras}
        seen = {**images, "instruction": " ".join(words)}
        rows, state = policy.act(seen, state)
        tokens.append(policy.tokens(seen)["tokens"])
        pixels = [prepare(torch.from_numpy(images[key]))[0] for key in policy.spec.cameras]
        expected = original_token(tuned, pixels, [WORDS[word] for word in ("<end>", *words)], action)
        torch.testing.assert_close(tokens[-1], expected, atol=1e-3, rtol=1e-3)  # float16
    arm, gripper = Original(weights)(torch.stack(tokens, dim=1))
    torch.testing.assert_close(rows[..., :6], 0.5 * arm[:, -1], atol=1e-5, rtol=0)
    assert torch.equal(rows[..., 6:] > 0, gripper[:, -1] > 0)


def test_a_converted_checkpoint_is_evaluated_in_the_simulator_from_images(checkpoint, backbone, tmp_path):
    """Guards against: a conversion that ends at tokens which nobody makes."""
    run, result = tmp_path / "run", tmp_path / "result.json"
    how = ["--window", "4", "--backbone", str(backbone), "--cameras", "front", "--image-size", "16", "--rate-hz", "20"]
    assert main(["convert", str(checkpoint), str(run), *how]) == 0
    where = ["--task", "lift", "--episodes", "2", "--num-envs", "2", "--json", str(result)]
    assert main(["eval", str(run), "--backbone", "auto", *where]) == 0
    assert json.loads(result.read_text())["episodes"] == 2


def test_a_checkpoint_without_a_backbone_takes_that_of_the_folder(checkpoint, backbone, tmp_path):
    """Guards against: weights that are neither the checkpoint's nor the folder's."""
    state = torch.load(checkpoint)["state_dict"]
    head = {key: value for key, value in state.items() if ".backbone." not in key}
    torch.save(head, tmp_path / "head.pt")
    how = CheckpointOptions(window=4, backbone=str(backbone), image_size=16)
    run = convert_checkpoint(tmp_path / "head.pt", tmp_path / "run", how)
    kept, there = (load_file(folder / "model.safetensors") for folder in (run / "backbone", backbone))
    assert all(torch.equal(kept[name], value) for name, value in there.items())


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("smolvlm", "is a smolvlm, whose prompt in RoboVLMs is not known here; give --template"),
        (None, "no model at"),
    ],
)
def test_a_backbone_that_cannot_be_used_is_one_line(kind, message, checkpoint, tmp_path, capsys):
    """Guards against: a traceback, or a prompt that is guessed."""
    folder = tmp_path / "nowhere" if kind is None else save_backbone(kind, tmp_path / kind)
    assert main(["convert", str(checkpoint), str(tmp_path / "run"), "--window", "4", "--backbone", str(folder)]) == 2
    shown = capsys.readouterr().err
    assert message in shown
    assert len(shown.splitlines()) == 1


def test_a_backbone_whose_weights_are_not_all_there_is_refused(checkpoint, backbone, tmp_path):
    """Guards against: layers with random weights, of which only a warning tells."""
    state = torch.load(checkpoint)["state_dict"]
    few = {key: value for key, value in state.items() if "layers.1." not in key}
    torch.save(few, tmp_path / "few.pt")
    with pytest.raises(ConfigError, match=r"holds no weights of .*layers\.1\."):
        convert_checkpoint(tmp_path / "few.pt", tmp_path / "run", CheckpointOptions(window=4, backbone=str(backbone)))


BINS = 16
"""Edges of the discrete decoder's bins; its words end 13 (3 special ones, and 10) before the tiny vocabulary's 32."""


@torch.no_grad()
def written_action(model, pixels, numbers):
    """The discrete decoder in plain torch: seven likeliest words; the prompt sees all of itself, a word what is before it."""
    embed = model.get_input_embeddings()
    seen = [model.model.get_image_features(image[None]).pooler_output[0] for image in pixels]
    prompt = torch.cat([embed(torch.tensor(numbers[:1])), *seen, embed(torch.tensor(numbers[1:]))])
    words = []
    for _ in range(7):
        sequence = torch.cat([prompt, embed(torch.tensor(words, dtype=torch.int64))])[None]
        blocked = torch.ones(sequence.shape[1], sequence.shape[1], dtype=torch.bool).triu(1)
        blocked[: len(prompt), : len(prompt)] = False
        mask = torch.zeros(blocked.shape).masked_fill(blocked, torch.finfo(torch.float32).min)[None, None]
        hidden = model.model.language_model(inputs_embeds=sequence, attention_mask=mask).last_hidden_state
        words.append(int((hidden[0, -1] @ model.lm_head.weight.T).argmax()))
    edges = np.linspace(-1, 1, BINS)
    centers = (edges[:-1] + edges[1:]) / 2
    action = centers[np.clip(32 - 3 - 10 - np.array(words) - 1, 0, BINS - 2)]
    action[-1] = 1 if action[-1] > 0 else -1
    return action


@pytest.fixture(scope="module")
def writer(backbone):
    """A backbone whose weights are so far from those before that it does not repeat one word."""
    return fine_tuned(backbone, 0.5)


@pytest.fixture(scope="module")
def discrete(writer, tmp_path_factory):
    """A checkpoint of the discrete decoder: the backbone alone."""
    path = tmp_path_factory.mktemp("discrete") / "discrete.pt"
    torch.save(
        {"state_dict": {f"model.backbone.{old_name(key)}": value for key, value in writer.state_dict().items()}}, path
    )
    return path


def test_the_words_of_the_discrete_decoder_become_its_actions(discrete, backbone, writer, tmp_path):
    """Guards against: another direction or offset of the bins, or prompts of a batch that disturb each other."""
    options = CheckpointOptions(
        arm_limit=0.5,
        backbone=str(backbone),
        template="<end>{images}{instruction}",
        cameras=("wrist", "front"),
        image_size=16,
        bins=BINS,
    )
    policy = load_policy(convert_checkpoint(discrete, tmp_path / "run", options), backbone="auto")
    prepare = load_backbone(str(backbone), (16, 16)).images
    rng, state, places = np.random.default_rng(0), policy.initial_state(2), set()
    instructions = ["lift the red cube", "lift cube"]
    for _ in range(8):
        images = {key: rng.integers(0, 256, (2, 16, 16, 3), dtype=np.uint8) for key in policy.spec.cameras}
        rows, state = policy.act({**images, "instruction": instructions}, state)
        for entry, instruction in enumerate(instructions):
            pixels = [prepare(torch.from_numpy(images[key][entry : entry + 1]))[0] for key in policy.spec.cameras]
            expected = written_action(writer, pixels, [4, *(WORDS[word] for word in instruction.split())])
            np.testing.assert_allclose(rows[entry, 0], expected * [*[0.5] * 6, 1], atol=1e-5)
            places |= set(expected[:6])
    assert len(places) > 3, "of the fifteen centers"


@pytest.mark.parametrize("place", [-1, 0, 7, 127, 128, 254, 255, 2048])
def test_every_place_becomes_the_center_of_its_bin(place):
    """Guards against: rounding among 256 bins, or a word outside of them that does not count as the outermost."""
    head = words_head(6, 256)
    tokens = torch.tensor([[float(place), 0.0]]).half().repeat(1, 7, 1).float()
    chunk, _ = head.step(tokens, head.initial_state(1))
    edges = np.linspace(-1, 1, 256)
    center = ((edges[:-1] + edges[1:]) / 2)[min(max(place, 0), 254)]
    np.testing.assert_allclose(chunk.arm[0, 0], [center] * 6, atol=1e-6)
    assert bool(chunk.gripper_logit > 0) == (place > 127)


def test_a_discrete_checkpoint_is_evaluated_or_refused_in_one_line(discrete, backbone, tmp_path, capsys):
    """Guards against: words that nothing writes in the simulator's loop, and a traceback without the backbone's folder."""
    run, result = tmp_path / "run", tmp_path / "result.json"
    assert main(["convert", str(discrete), str(run)]) == 2
    assert "actions are words of its language model; give --backbone" in capsys.readouterr().err
    how = ["--backbone", str(backbone), "--image-size", "16", "--rate-hz", "20", "--bins", str(BINS)]
    assert main(["convert", str(discrete), str(run), *how]) == 0
    where = ["--task", "lift", "--episodes", "2", "--num-envs", "2", "--json", str(result)]
    assert main(["eval", str(run), "--backbone", "auto", *where]) == 0
    assert json.loads(result.read_text())["episodes"] == 2
