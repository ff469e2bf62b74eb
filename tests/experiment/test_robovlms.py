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


def fine_tuned(backbone):
    """The backbone after its fine-tuning: other weights."""
    import transformers

    model = transformers.AutoModelForImageTextToText.from_pretrained(backbone)
    torch.manual_seed(7)
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
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
