"""The contract of every `TokenEncoder`: observation and instruction in, tokens and their mask out."""

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from robopolicy.components import ConfigError, build, options_from
from robopolicy.model.encoders import EncoderInputs
from robopolicy.model.texts import TextInputs, Vocabulary
from robopolicy.model.texts.vocabulary import VocabularyOptions, VocabularyText
from robopolicy.types import ArraySpec

WIDTH = 12
VOCABULARY = Vocabulary.of(["lift the red cube", "lift the blue cube"])
LOW_DIM = {"ee_pose": ArraySpec((7,)), "gripper": ArraySpec((1,))}


@dataclass(frozen=True)
class Case:
    """One encoder and what it sees."""

    kind: str
    obs: dict[str, ArraySpec]
    options: dict[str, Any] = field(default_factory=dict)

    def make(self, with_text: bool) -> Any:
        """The encoder of a policy with or without the instruction."""
        options = {**self.options} if with_text else {k: v for k, v in self.options.items() if k != "groups"}
        inputs = EncoderInputs(self.obs, WIDTH if with_text else None, VOCABULARY.length if with_text else 0)
        return build(options_from("encoder", self.kind, {"width": WIDTH, "hidden": 16, **options}), inputs).eval()

    def frames(self, lead: tuple[int, ...]) -> dict[str, torch.Tensor]:
        """Random frames with these leading axes."""
        return {
            key: torch.randint(0, 256, (*lead, *spec.shape), dtype=torch.uint8)
            if spec.is_image
            else torch.randn(*lead, *spec.shape)
            for key, spec in self.obs.items()
        }


FRONT = ArraySpec((16, 16, 3), "uint8")
CUBES = {"cube_red": ArraySpec((3,)), "cube_blue": ArraySpec((3,))}
CASES = {
    "keys": Case("keys", LOW_DIM),
    "keys, a group": Case("keys", {**LOW_DIM, **CUBES}, {"groups": {"cube": tuple(CUBES)}}),
    "pixels": Case("pixels", {**LOW_DIM, "front": ArraySpec((24, 32, 3), "uint8"), "wrist": FRONT}),
    "pixels, one camera": Case("pixels", {"front": ArraySpec((84, 84, 3), "uint8")}),
    "pixels, a prediction": Case("pixels", {**LOW_DIM, "front": FRONT}, {"predict": 3}),
    "precomputed": Case("precomputed", {**LOW_DIM, "tokens": ArraySpec((5, 9))}),
    "precomputed alone": Case("precomputed", {"tokens": ArraySpec((5, 9))}),
    "auto": Case("auto", {**LOW_DIM, "front": FRONT}),
}


@pytest.fixture(params=CASES)
def case(request):
    torch.manual_seed(0)
    return CASES[request.param]


def text_of(instructions, lead=None):
    torch.manual_seed(1)
    model = VocabularyText(VocabularyOptions(), TextInputs(VOCABULARY, WIDTH))
    return model(model.prepare(instructions).reshape(*((len(instructions),) if lead is None else lead), -1))


@pytest.mark.parametrize("with_text", [True, False])
@pytest.mark.parametrize("lead", [(), (2,), (2, 3)])
def test_tokens_have_the_declared_count_and_width(case, with_text, lead):
    """The head is built from the declaration."""
    encoder = case.make(with_text)
    text = text_of(["lift the red cube"], lead=(1,) * len(lead)) if with_text else None
    encoding = encoder(case.frames(lead), text)
    assert encoding.tokens.shape == (*lead, encoder.token_count, encoder.token_width)
    assert encoder.token_width == WIDTH
    assert torch.isfinite(encoding.tokens).all()
    widths = {name: value.shape[-1] for name, value in encoding.predictions.items()}
    assert widths == dict(encoder.prediction_widths)
    if with_text:
        assert encoding.token_valid.shape == (*lead, encoder.token_count)
        assert encoding.token_valid.sum() == encoding.token_valid[..., 0].numel() * (
            encoder.token_count - VOCABULARY.length + 4
        )


def test_the_same_frame_gives_the_same_tokens_wherever_it_stands(case):
    """Tokens that depend on the batch make the robot see other tokens than training did."""
    encoder = case.make(True)
    frames = case.frames((2, 3))
    whole = encoder(frames, text_of(["lift the red cube", "lift the blue cube"], lead=(2, 1)))
    one = encoder({key: value[1, 2] for key, value in frames.items()}, text_of(["lift the blue cube"], lead=()))
    torch.testing.assert_close(whole.tokens[1, 2], one.tokens, atol=1e-5, rtol=1e-5)
    assert torch.equal(whole.token_valid[1, 2], one.token_valid)


def test_eval_mode_is_deterministic(case):
    """Noise at run time is a training device that was left on."""
    encoder = case.make(True)
    frames, text = case.frames((2,)), text_of(["lift the red cube", "lift the blue cube"])
    assert torch.equal(encoder(frames, text).tokens, encoder(frames, text).tokens)


def test_the_instruction_reaches_more_than_its_own_tokens(case):
    """Instruction tokens beside untouched vision tokens leave it to pooling to find the named object, which it can't."""
    encoder = case.make(True)
    frames = case.frames((1,))
    red, blue = (encoder(frames, text_of([f"lift the {color} cube"])) for color in ("red", "blue"))
    seen = encoder.token_count - VOCABULARY.length
    assert (red.tokens[:, :seen] - blue.tokens[:, :seen]).abs().max() > 1e-4


def test_every_parameter_learns(case):
    """A layer without gradient is dead weight, or a bug."""
    encoder = case.make(True).train()
    encoding = encoder(case.frames((3,)), text_of(["lift the red cube"] * 3))
    loss = encoding.tokens.square().sum() + sum(value.square().sum() for value in encoding.predictions.values())
    loss.backward()
    assert [name for name, parameter in encoder.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize(
    ("kind", "obs", "message"),
    [
        ("keys", {}, "give --data.obs_keys"),
        ("keys", {**LOW_DIM, "front": FRONT}, "can't use the camera 'front'; choose --encoder.kind pixels"),
        ("keys", {**LOW_DIM, "tokens": ArraySpec((5, 9))}, "can't use the key 'tokens'"),
        ("pixels", LOW_DIM, "give --data.cameras"),
        ("pixels", {"front": FRONT, "tokens": ArraySpec((5, 9))}, "can't use the key 'tokens'"),
        ("precomputed", LOW_DIM, "which have: ee_pose, gripper; write it with `robopolicy encode`"),
        ("precomputed", {"tokens": ArraySpec((5, 9)), "front": FRONT}, "can't use the camera 'front'"),
        ("transformers", LOW_DIM, "give --data.cameras"),
    ],
)
def test_an_observation_that_does_not_fit_is_refused(kind, obs, message):
    """Guards against: an encoder without its input, or one that silently ignores an observation."""
    with pytest.raises(ConfigError, match=message):
        build(options_from("encoder", kind, {}), EncoderInputs(obs, None, 0))


def test_auto_is_pixels_with_cameras_and_keys_without():
    """Guards against: one config for a family of files that can't be trained on those without cameras."""
    options = options_from("encoder", "auto", {"width": 8})
    assert type(build(options, EncoderInputs(LOW_DIM, None, 0))).__name__ == "KeysEncoder"
    assert type(build(options, EncoderInputs({**LOW_DIM, "front": FRONT}, None, 0))).__name__ == "PixelsEncoder"
