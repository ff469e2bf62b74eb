"""Vision-language backbones as token encoder, on tiny randomly initialized models saved to disk."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

pytest.importorskip("transformers", reason="the extra vlm isn't installed")
pytest.importorskip("peft", reason="the extra vlm isn't installed")

from robopolicy.components import ConfigError
from robopolicy.experiment import DemoFacts, ExperimentConfig, build_policy, load_policy, save_policy
from robopolicy.model.encoders import EncoderInputs
from robopolicy.model.encoders._backbones import Reading
from robopolicy.model.encoders._loading import load_backbone
from robopolicy.model.encoders._tokens import FrameTokens
from robopolicy.model.inputs import checked_inputs
from robopolicy.model.statistics import Statistics
from robopolicy.model.texts import TextInputs, Vocabulary
from robopolicy.model.texts.prompt import SPARE_TOKENS
from robopolicy.training.objective import Objective, batch_text
from robopolicy.types import ActionSpec, ArraySpec, Batch
from tests.making import make
from tests.small_runs import SMALL
from tests.tiny_backbones import FAMILIES, SUCCESSORS, VISION_ONLY, save_backbone

OBS = {
    "front": ArraySpec((20, 24, 3), "uint8"),
    "wrist": ArraySpec((16, 16, 3), "uint8"),
    "pose": ArraySpec((3,)),
}


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """No test may look for a model on the hub."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request, tmp_path_factory):
    """A tiny model of each kind."""
    return str(save_backbone(request.param, tmp_path_factory.mktemp("models") / request.param))


def make_prompt(folder, *instructions, template="what should the robot do to {instruction}?"):
    vocabulary = Vocabulary.of(instructions or ("lift the red cube",))
    return make("text", "prompt", TextInputs(vocabulary, 8, folder), template=template)


def make_encoder(folder, lora_rank=0, with_text=True):
    torch.manual_seed(0)
    text = make_prompt(folder)
    inputs = EncoderInputs(OBS, 8 if with_text else None, text.token_count if with_text else 0)
    return make("encoder", "transformers", inputs, model=folder, width=8, hidden=8, lora_rank=lora_rank), text


def frames(*lead):
    torch.manual_seed(1)
    return {
        key: torch.randint(0, 256, (*lead, *spec.shape), dtype=torch.uint8) if spec.is_image else torch.randn(*lead, 3)
        for key, spec in OBS.items()
    }


def prompt(text, *instructions):
    return text(text.prepare(instructions))


def test_tokens_have_the_declared_shape_and_a_mask(folder):
    """Guards against: a head built for another count and width than the encoder declares."""
    encoder, text = make_encoder(folder)
    tokens, valid, _ = encoder.eval()(frames(2), prompt(text, "lift the red cube", "lift"))
    assert tokens.shape == (2, encoder.token_count, encoder.token_width)
    assert valid.shape == tokens.shape[:-1]
    assert int(valid[0].sum()) == int(valid[1].sum()) + 3, "three more words are three more real tokens"
    assert torch.isfinite(tokens).all()


def test_leading_axes_do_not_change_the_numbers(folder):
    """Guards against: a window encoded otherwise than its frames one by one, so that streaming differs from training."""
    encoder, text = make_encoder(folder)
    encoder.eval()
    words = text.prepare(["lift the cube"])
    flat = encoder(frames(6), text(words))
    nested = {key: values.reshape(2, 3, *values.shape[1:]) for key, values in frames(6).items()}
    windowed = encoder(nested, text(words[:, None]))
    torch.testing.assert_close(windowed.tokens.flatten(0, 1), flat.tokens, atol=1e-5, rtol=1e-5)


def test_instruction_and_images_both_change_the_tokens(folder):
    """Guards against: a backbone that ignores either."""
    encoder, text = make_encoder(folder)
    encoder.eval()
    seen = frames(1)
    base = encoder(seen, prompt(text, "lift the red cube")).tokens
    other_words = encoder(seen, prompt(text, "lift the blue cube")).tokens
    other_image = encoder(seen | {"front": 255 - seen["front"]}, prompt(text, "lift the red cube")).tokens
    assert (base - other_words).abs().max() > 1e-4
    assert (base - other_image).abs().max() > 1e-4


def test_padding_of_the_prompt_changes_no_real_token(folder):
    """Guards against: tokens of a frame that change beside a longer instruction."""
    encoder, text = make_encoder(folder)
    encoder.eval()
    alone = encoder(frames(2), prompt(text, "lift"))
    numbers = text.prepare(["lift"])
    numbers = numbers[:, : int((numbers >= 0).sum())]
    short = encoder(frames(2), text(numbers))
    torch.testing.assert_close(alone.tokens[alone.token_valid], short.tokens[short.token_valid], atol=1e-5, rtol=1e-5)


def test_without_instruction_there_are_image_tokens_only(folder):
    """Guards against: an unconditioned baseline that gets an empty prompt."""
    encoder, _ = make_encoder(folder, with_text=False)
    tokens, valid, _ = encoder(frames(2), None)
    assert tokens.shape[1] == encoder.token_count
    assert bool(valid.all())


def test_a_frozen_backbone_gets_no_gradient_and_stays_out_of_the_weights(folder):
    """Guards against: gigabytes in every checkpoint, and a frozen backbone that is trained."""
    encoder, text = make_encoder(folder)
    encoder.train()(frames(1), prompt(text, "lift")).tokens.square().sum().backward()
    assert all(parameter.grad is None for parameter in encoder.backbone.parameters())
    assert encoder.project.weight.grad is not None
    assert not encoder.backbone.training
    state = encoder.state_dict()
    assert not any(name.startswith("backbone.") for name in state)
    encoder.load_state_dict(state)


def test_lora_s_gradient_reaches_the_backbone_and_only_its_adapters(folder):
    """Guards against: fine-tuning that trains nothing."""
    encoder, text = make_encoder(folder, lora_rank=2)
    encoder.train()(frames(1), prompt(text, "lift the red cube")).tokens.square().sum().backward()
    moved = {name for name, p in encoder.backbone.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert moved
    assert all("lora_B" in name for name in moved), "A has no gradient yet, since B starts at zero"
    assert any("visual" in name or "vision" in name for name in moved), "the images' side is adapted"
    assert any("language" in name or "text" in name for name in moved), "and the words' side"
    state = encoder.state_dict()
    assert all("lora_" in name for name in state if name.startswith("backbone."))
    changed = {name: value + 1 if "lora_B" in name else value for name, value in state.items()}
    other, _ = make_encoder(folder, lora_rank=2)
    other.load_state_dict(changed)
    words = prompt(text, "lift")
    assert (other.eval()(frames(1), words).tokens - encoder.eval()(frames(1), words).tokens).abs().max() > 1e-4


def test_a_backbone_in_float32_runs_under_bfloat16_autocast(folder):
    """Guards against: a training on a GPU that stops at its first step, since images and words have different types there."""
    encoder, text = make_encoder(folder, lora_rank=2)
    with torch.autocast("cpu", torch.bfloat16):
        tokens = encoder.train()(frames(1), prompt(text, "lift the red cube")).tokens
    tokens.float().square().sum().backward()
    expected = encoder.eval()(frames(1), prompt(text, "lift the red cube")).tokens
    torch.testing.assert_close(tokens.float(), expected, atol=0.1, rtol=0.1)


def test_another_model_has_another_identity(folder, tmp_path):
    """Guards against: tokens of one backbone fed to a policy trained on another's."""
    import transformers

    model = transformers.AutoModel.from_pretrained(folder)
    next(model.parameters()).data += 1
    shutil.copytree(folder, tmp_path / "other")
    model.save_pretrained(tmp_path / "other")
    one, other = (load_backbone(where, (16, 16)).identity for where in (folder, str(tmp_path / "other")))
    assert one["kind"] == other["kind"]
    assert one["weights"] != other["weights"]


def test_images_are_prepared_as_the_model_s_own_processor_does(tmp_path):
    """Guards against: another mean or scale than in pre-training, which weakens the backbone."""
    import transformers
    from PIL import Image

    folder = str(save_backbone("clip", tmp_path / "clip"))
    image = torch.randint(0, 256, (1, 37, 53, 3), dtype=torch.uint8)
    mean, std = [0.4, 0.5, 0.6], [0.2, 0.25, 0.3]
    processor = transformers.CLIPImageProcessor(
        size={"height": 16, "width": 16}, do_center_crop=False, image_mean=mean, image_std=std
    )
    theirs = processor(Image.fromarray(image[0].numpy()), return_tensors="np")["pixel_values"]
    ours = load_backbone(folder, (37, 53)).images(image).numpy()
    assert np.abs(ours - theirs).max() < 0.05, "bicubic on floats instead of rounded bytes"


@pytest.mark.parametrize("kind", [*SUCCESSORS, *VISION_ONLY])
def test_other_models_are_read_by_what_their_config_has(kind, tmp_path):
    """Guards against: a list of model names that refuses each successor, or reads one without its images or its words."""
    made = FrameTokens(
        str(save_backbone(kind, tmp_path / kind)),
        {"front": (20, 24), "wrist": (16, 16)},
        instructions=["lift the red cube"],
    )
    torch.manual_seed(1)
    seen = {key: torch.randint(0, 256, (3, *size, 3), dtype=torch.uint8) for key, size in made.image_sizes.items()}
    words = made.prompts(["lift the red cube"])
    tokens, valid = made(seen, words)
    assert tokens.shape == (3, *made.shape)
    assert bool(torch.isfinite(tokens).all())
    alone, _ = made({key: images[1:2] for key, images in seen.items()}, words)
    torch.testing.assert_close(alone[0], tokens[1], atol=2e-3, rtol=2e-3)
    assert (made(seen | {"wrist": 255 - seen["wrist"]}, words)[0] - tokens).abs().max() > 1e-3
    if kind not in VISION_ONLY:
        assert (made(seen, made.prompts(["lift the blue cube"]))[0] - tokens).abs().max() > 1e-3
        assert int(valid[0].sum()) == made.shape[0] - SPARE_TOKENS


def test_a_vision_model_reads_no_prompt(tmp_path):
    """Guards against: a tokenizer that is looked for where the model has none, and a failure that names neither."""
    folder = str(save_backbone("dinov2", tmp_path / "dinov2"))
    with pytest.raises(ConfigError, match=r"dinov2 model, which reads no prompt; give --text\.kind vocabulary"):
        make_prompt(folder)
    with pytest.raises(ConfigError, match="readout last of a dinov2, which reads no text; expected all or mean"):
        load_backbone(folder, (16, 16), Reading("last"))
    with pytest.raises(ConfigError, match=r"layer 5 of a backbone with 2 layers; expected 0 .. 2"):
        load_backbone(folder, (16, 16), Reading("all", 5))


def test_a_prompt_is_as_long_as_the_training_instructions_need(folder):
    """Guards against: a constant length that cuts long instructions and wastes time on short ones."""
    short, long = make_prompt(folder, "lift"), make_prompt(folder, "lift the red cube", "lift " * 9)
    assert long.token_count == short.token_count + 8
    assert int((long.prepare(["lift " * 9]) >= 0).sum()) == long.token_count - SPARE_TOKENS


def test_a_prompt_that_is_too_long_is_cut_and_logged(folder, caplog):
    """Guards against: a silent cut that drops the object's name from a long instruction."""
    text = make_prompt(folder, template="{instruction}")
    assert text.prepare(["lift the cube " * 20]).shape == (1, text.token_count)
    assert f"prompt of 60 tokens cut off after {4 + SPARE_TOKENS}" in caplog.text


def test_a_prompt_is_no_longer_than_the_backbone_reads(folder, caplog):
    """Guards against: positions that the backbone doesn't have."""
    instruction = "lift the red cube " * 30
    text = make_prompt(folder, instruction)
    assert text.token_count == 64
    assert "reads 64, the rest is cut off" in caplog.text
    encoder = make("encoder", "transformers", EncoderInputs(OBS, 8, 64), model=folder, width=8, hidden=8)
    assert encoder(frames(1), prompt(text, instruction)).tokens.shape[1] == encoder.token_count


@pytest.mark.parametrize(
    ("model", "message"),
    [(None, "give --encoder.model"), ("nowhere/such-a-model", "no model at 'nowhere/such-a-model'")],
)
def test_a_model_that_can_t_be_loaded_is_refused_in_one_line(model, message):
    """Guards against: a traceback from the hub client that hides the typo."""
    with pytest.raises(ConfigError, match=message):
        make("encoder", "transformers", EncoderInputs(OBS, None, 0), model=model)


INSTRUCTIONS = ("lift the red cube", "lift the blue cube")


def a_policy(folder, lora_rank=2):
    backbone = {"encoder.kind": "transformers", "encoder.model": folder, "encoder.lora_rank": lora_rank}
    config = ExperimentConfig().change(SMALL | backbone | {"pooling.kind": "attention"})
    rng = np.random.default_rng(0)
    torch.manual_seed(0)
    facts = DemoFacts(
        ActionSpec(arm=2, gripper=1),
        OBS,
        Vocabulary.of(INSTRUCTIONS),
        obs_statistics={"pose": Statistics.of(rng.normal(size=(20, 3)))},
        action_statistics=Statistics.of(rng.uniform(-1, 1, size=(20, 3))),
    )
    return build_policy(config, facts).eval()


def a_batch(instructions=INSTRUCTIONS):
    return Batch(
        obs=frames(2, 3),
        instruction_id=torch.tensor([0, 1]),
        instructions=instructions,
        target=torch.rand(2, 3, 2, 3).round(),
        action_valid=torch.ones(2, 3, 2, dtype=torch.bool),
        frame_valid=torch.ones(2, 3, dtype=torch.bool),
    )


def test_a_policy_trains_through_the_backbone_on_what_it_was_told(folder):
    """Guards against: words that don't reach the model that can read them, or a loss that doesn't reach its adapters."""
    policy = a_policy(folder).train()
    batch = a_batch()
    objective = Objective(policy.config.losses, policy)
    objective(policy, batch)[0]["loss"].backward()
    moved = {name for name, p in policy.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    adapters = {name for name in moved if "backbone" in name}
    assert adapters
    assert all("lora_B" in name for name in adapters)
    assert any("language" in name or "text" in name for name in adapters), "the words' side learns too"
    assert {name for name, p in policy.named_parameters() if p.requires_grad} >= moved
    swapped = replace(batch, instructions=INSTRUCTIONS[::-1])
    assert objective(policy.eval(), swapped)[0]["loss"] != objective(policy, batch)[0]["loss"]


def test_told_in_the_loop_as_in_training(folder):
    """Guards against: a rollout that prompts the backbone otherwise than training did."""
    policy, batch = a_policy(folder), a_batch()
    with torch.no_grad():
        encoding = policy.encode(checked_inputs(batch.obs, policy.obs, policy.device), batch_text(policy, batch))
        pooled = policy.head.pool(encoding.tokens, encoding.token_valid)
        hidden, _ = policy.head.memory.unroll(pooled, policy.initial_state(2))
        expected = policy.action_normalizer.to_rows(policy.head.action_head.decode(hidden[:, -1]))
    state = policy.initial_state(2)
    for t in range(3):
        seen = {key: value[:, t] for key, value in batch.obs.items()}
        rows, state = policy.act({**seen, "instruction": list(INSTRUCTIONS)}, state)
    torch.testing.assert_close(rows, expected, atol=1e-5, rtol=1e-5)


def test_a_policy_on_a_backbone_is_saved_without_it_and_acts_the_same_when_loaded(tmp_path):
    """Guards against: adapters lost with the backbone's weights, or a backbone saved with every checkpoint."""
    policy = a_policy(str(save_backbone("siglip", tmp_path / "siglip")))
    for name, parameter in policy.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    save_policy(policy, tmp_path / "run")
    assert not any("embeddings" in name for name in load_file(tmp_path / "run" / "policy.safetensors"))
    loaded = load_policy(tmp_path / "run")
    seen = {**frames(2), "instruction": list(INSTRUCTIONS)}
    actions, _ = policy.act(seen, policy.initial_state(2))
    torch.testing.assert_close(loaded.act(seen, loaded.initial_state(2))[0], actions, atol=1e-6, rtol=0)
