"""The contract of every `TokenEncoder`: observation and instruction in, tokens and their mask out."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch

from robopolicy.config import EncoderConfig
from robopolicy.model.encoders import make_encoder
from robopolicy.model.text import Vocabulary, VocabularyText
from robopolicy.types import ArraySpec

WIDTH = 12
VOCABULARY = Vocabulary.of(["lift the red cube", "lift the blue cube"])
LOW_DIM = {"ee_pose": ArraySpec((7,)), "gripper": ArraySpec((1,))}


@dataclass(frozen=True)
class Case:
    """One encoder and what it sees."""

    kind: str
    obs: dict[str, ArraySpec]
    targets: dict[str, ArraySpec]

    def make(self, told: bool) -> Any:
        """The encoder, with or without an instruction."""
        config = EncoderConfig(kind=self.kind, width=WIDTH, hidden=16)
        return make_encoder(config, self.obs, VOCABULARY.length if told else 0, self.targets).eval()

    def frames(self, lead: tuple[int, ...]) -> dict[str, torch.Tensor]:
        """Random frames with these leading axes."""
        return {
            key: torch.randint(0, 256, (*lead, *spec.shape), dtype=torch.uint8)
            if spec.is_image
            else torch.randn(*lead, *spec.shape)
            for key, spec in self.obs.items()
        }


CASES = {
    "keys": Case("keys", LOW_DIM, {}),
    "keys, alike": Case("keys", {**LOW_DIM, "cube_red": ArraySpec((3,)), "cube_blue": ArraySpec((3,))}, {}),
    "pixels": Case(
        "pixels", {**LOW_DIM, "front": ArraySpec((24, 32, 3), "uint8"), "wrist": ArraySpec((16, 16, 3), "uint8")}, {}
    ),
    "pixels, one camera": Case("pixels", {"front": ArraySpec((84, 84, 3), "uint8")}, {}),
    "pixels, where": Case(
        "pixels", {**LOW_DIM, "front": ArraySpec((16, 16, 3), "uint8")}, {"target_pos": ArraySpec((3,))}
    ),
    "precomputed": Case("precomputed", {**LOW_DIM, "tokens": ArraySpec((5, 9))}, {}),
    "precomputed alone": Case("precomputed", {"tokens": ArraySpec((5, 9))}, {}),
}


@pytest.fixture(params=CASES)
def case(request):
    torch.manual_seed(0)
    return CASES[request.param]


def text_of(instructions, lead=None):
    torch.manual_seed(1)
    model = VocabularyText(VOCABULARY, WIDTH)
    return model(model.prepare(instructions).reshape(*((len(instructions),) if lead is None else lead), -1))


@pytest.mark.parametrize("told", [True, False])
@pytest.mark.parametrize("lead", [(), (2,), (2, 3)])
def test_tokens_have_the_declared_count_and_width(case, told, lead):
    """The head is built from the declaration."""
    encoder = case.make(told)
    text = text_of(["lift the red cube"], lead=(1,) * len(lead)) if told else None
    encoding = encoder(case.frames(lead), text)
    assert encoding.tokens.shape == (*lead, encoder.token_count, encoder.token_width)
    assert encoder.token_width == WIDTH
    assert torch.isfinite(encoding.tokens).all()
    if told:
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
        ("keys", {"front": ArraySpec((8, 8, 3), "uint8")}, "give --data.obs_keys"),
        ("pixels", LOW_DIM, "give --data.cameras"),
        ("precomputed", LOW_DIM, "which have: ee_pose, gripper; write it with `robopolicy encode`"),
    ],
)
def test_an_encoder_without_its_input_is_refused(kind, obs, message):
    """An encoder over nothing trains a policy that is blind."""
    with pytest.raises(ValueError, match=message):
        make_encoder(EncoderConfig(kind=kind), obs, 0)
