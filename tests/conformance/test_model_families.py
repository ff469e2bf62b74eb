"""The shipped conformance kits, over every kind of the model's families; a new kind is covered by registering it."""

from dataclasses import replace
from functools import partial

import pytest
import torch

from robopolicy.components import component, kinds
from robopolicy.model.encoders import EncoderInputs
from robopolicy.model.texts import TextInputs, Vocabulary
from robopolicy.testing import action_head, encoder, memory, pooling
from robopolicy.testing import text as text_kit
from robopolicy.types import ArraySpec
from tests.making import make
from tests.tiny_backbones import save_backbone, save_sentence_model

WIDTH = 8


def checks(module):
    """The kit's checks; those that trace a graph take seconds each, and the exports' own tests trace the common kinds."""
    for check in module.CHECKS:
        marks = [pytest.mark.slow] if check.__name__.startswith("an_exported") else []
        yield pytest.param(check, marks=marks, id=check.__name__)


def small(family, kind, **wanted):
    """Those of the wanted options that the kind has."""
    known = component(family, kind).options.__dataclass_fields__
    return {name: value for name, value in wanted.items() if name in known}


def memories():
    for kind in kinds("memory"):
        histories = ["window", "carry"] if "history" in component("memory", kind).options.__dataclass_fields__ else [""]
        for history in histories:
            yield pytest.param(kind, {"history": history} if history else {}, id=f"{kind} {history}".strip())


@pytest.mark.parametrize(("kind", "history"), [*memories()])
@pytest.mark.parametrize("check", [*checks(memory)])
def test_every_memory_keeps_the_contract(kind, history, check):
    """Guards against: a memory whose three ways to be called give different numbers, or that confuses episodes."""
    torch.manual_seed(0)
    made = make("memory", kind, 5, **small("memory", kind, window=4, hidden=WIDTH, recurrent=WIDTH, heads=2), **history)
    for weight in made.parameters():
        torch.nn.init.normal_(weight, std=0.5)  # large enough that the past counts
    check(made, 5)


@pytest.mark.parametrize("kind", kinds("pooling"))
@pytest.mark.parametrize("latent", [1, 3])
@pytest.mark.parametrize("check", [*checks(pooling)])
def test_every_pooling_keeps_the_contract(kind, latent, check):
    """Guards against: padding tokens that steer the arm, and NaN from a maximum or mean over nothing."""
    torch.manual_seed(0)
    check(
        make("pooling", kind, WIDTH, **small("pooling", kind, latent=latent, heads=2)),
        latent if kind == "none" else 5,
        WIDTH,
    )


@pytest.mark.parametrize("kind", kinds("action_head"))
@pytest.mark.parametrize("check", [*checks(action_head)])
def test_every_action_head_keeps_the_contract(kind, check):
    """Guards against: losses that padding changes, or that don't train the decoded action."""
    torch.manual_seed(0)
    options = small("action_head", kind, chunk=3, widths=(WIDTH,))
    check(lambda action: make("action_head", kind, 16, action, **options), 16)


@pytest.mark.parametrize("kind", ["regression", "gmm", "discrete", "flow"])
@pytest.mark.parametrize(
    "check", [action_head.invalid_labels_have_no_influence, action_head.a_prefix_is_used_or_refused]
)
def test_a_head_trained_with_prefixes_keeps_the_contract(kind, check):
    """Guards against: random prefixes of one row that depend on how many rows follow it."""
    options = small("action_head", kind, chunk=3, prefix=2, widths=(WIDTH,))
    check(lambda action: make("action_head", kind, 16, action, **options), 16)


LOW_DIM = {"ee_pose": ArraySpec((7,)), "gripper": ArraySpec((1,))}
CUBES = {"cube_red": ArraySpec((3,)), "cube_blue": ArraySpec((3,))}
FRONT = {"front": ArraySpec((24, 32, 3), "uint8")}
TWO_CAMERAS = {**FRONT, "wrist": ArraySpec((17, 18, 3), "uint8")}
TOKENS = {"tokens": ArraySpec((5, 9))}
ENCODERS = {
    "auto": [(LOW_DIM, {}), (FRONT, {})],
    "conv": [(FRONT, {}), ({**LOW_DIM, **TWO_CAMERAS}, {"shared": False, "resize": (12, 16)})],
    "keys": [(LOW_DIM, {}), ({**LOW_DIM, **CUBES}, {"groups": {"cube": tuple(CUBES)}})],
    "pixels": [({**LOW_DIM, **TWO_CAMERAS}, {}), (FRONT, {"predict": 3})],
    "precomputed": [({**LOW_DIM, **TOKENS}, {}), (TOKENS, {})],
    "transformers": [({**LOW_DIM, **TWO_CAMERAS}, {"model": "siglip"}), (FRONT, {"model": "clip", "lora_rank": 2})],
}
"""Observations and options that kinds are tried with; any other kind is tried with the first observation that it accepts."""


def encoder_cases():
    for kind in kinds("encoder"):
        for obs, options in ENCODERS.get(kind, [(accepted(kind), {})]):
            yield pytest.param(kind, obs, options, id=f"{kind}, {', '.join([*obs, *options])}")


def accepted(kind):
    for obs in ({**LOW_DIM, **TWO_CAMERAS}, {**LOW_DIM, **TOKENS}):
        try:
            make("encoder", kind, EncoderInputs(obs, None, 0))
            return obs
        except ValueError:
            continue
    return LOW_DIM


@pytest.fixture
def models(tmp_path, monkeypatch):
    """Writes a tiny backbone of a kind; no test may look for a model on the hub."""
    pytest.importorskip("transformers", reason="the extra vlm isn't installed")
    pytest.importorskip("peft", reason="the extra vlm isn't installed")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    savers = {"sentence": save_sentence_model}
    return lambda kind: str(savers.get(kind, partial(save_backbone, kind))(tmp_path / kind))


@pytest.mark.parametrize("kind", [kind for kind in kinds("text") if kind != "none"])
@pytest.mark.parametrize("check", [*checks(text_kit)])
def test_every_text_model_keeps_the_contract(kind, check, request):
    """Guards against: instructions that read alike, and a missing one that reads like an instruction."""
    options, inputs = {}, text_kit.INPUTS
    if kind == "prompt":
        inputs = replace(inputs, model=request.getfixturevalue("models")("clip"))
    elif "model" in component("text", kind).options.__dataclass_fields__:
        options = {"model": request.getfixturevalue("models")("sentence")}
    check(lambda given: make("text", kind, given, **options), inputs)


@pytest.mark.parametrize(("kind", "obs", "options"), [*encoder_cases()])
@pytest.mark.parametrize("check", [*checks(encoder)])
def test_every_encoder_keeps_the_contract(kind, obs, options, check, request):
    """Guards against: tokens that depend on the batch, observations that are ignored, weights that are never trained."""
    if "model" in options:
        options = {**options, "model": request.getfixturevalue("models")(options["model"])}
    inputs = TextInputs(Vocabulary.of(encoder.INSTRUCTIONS), WIDTH, options.get("model"))
    torch.manual_seed(0)
    text = make("text", component("encoder", kind).options.default_text, inputs)

    def build(wanted):
        without_text = {**options, "groups": {}} if "groups" in options and wanted.text_width is None else options
        return make("encoder", kind, wanted, **small("encoder", kind, width=WIDTH, hidden=16), **without_text)

    check(encoder.EncoderCase(build, obs, lambda instructions: text(text.prepare(instructions))))
