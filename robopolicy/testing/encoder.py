"""Conformance kit of encoders; each check takes an `EncoderCase`: a function that builds the encoder, and its observation."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from robopolicy.model.encoders import EncoderInputs, Encoding, TokenEncoder
from robopolicy.model.texts import TextInputs, TextTokens, Vocabulary
from robopolicy.model.texts.vocabulary import VocabularyOptions, VocabularyText
from robopolicy.testing._assert import (
    generator,
    random_like,
    require,
    require_close,
    require_equal,
    require_error,
    require_export,
    require_trained,
    seeded,
)
from robopolicy.types import ArraySpec

INSTRUCTIONS = ("lift the red cube", "lift the blue cube")
CAMERA = ArraySpec((16, 16, 3), "uint8")
TOLERANCE = 1e-5


def _learned_words(instructions: Sequence[str]) -> TextTokens:
    text = seeded(VocabularyText, VocabularyOptions(), TextInputs(Vocabulary.of(INSTRUCTIONS), 8)).eval()
    return text(text.prepare(instructions))


@dataclass(frozen=True)
class EncoderCase:
    """One encoder with an observation that it accepts."""

    make: Callable[[EncoderInputs], TokenEncoder]
    """Builds it."""
    obs: Mapping[str, ArraySpec]
    """What the policy sees."""
    read: Callable[[Sequence[str]], TextTokens] | None = None
    """The text model, applied to instructions; None: learned words, 8 wide."""

    def encoder(self, obs: Mapping[str, ArraySpec] | None = None, with_text: bool = True) -> TokenEncoder:
        """The encoder for `obs`, or this case's, of a policy with or without the instruction; always the same weights."""
        text = self.text(INSTRUCTIONS[:1])
        width, words = text.sentence.shape[-1], text.tokens.shape[-2]
        inputs = EncoderInputs(obs or self.obs, width if with_text else None, words if with_text else 0)
        return seeded(self.make, inputs).eval()

    def text(self, instructions: Sequence[str], lead: Sequence[int] | None = None) -> TextTokens:
        """Instructions with these batch axes; by default one axis."""
        with torch.no_grad():
            text = (self.read or _learned_words)(instructions)
        lead = (len(instructions),) if lead is None else tuple(lead)
        return TextTokens(*(part.reshape(*lead, *part.shape[1:]) for part in text))

    def frames(self, *lead: int, obs: Mapping[str, ArraySpec] | None = None, seed: int = 0) -> dict[str, Tensor]:
        """Random frames with these batch axes."""
        random, frames = generator(seed), {}
        for key, spec in (obs or self.obs).items():
            if spec.is_image:
                frames[key] = torch.randint(0, 256, (*lead, *spec.shape), generator=random, dtype=torch.uint8)
            else:
                frames[key] = random_like(random, *lead, *spec.shape)
        return frames


def tokens_have_the_declared_count_and_width(case: EncoderCase) -> None:
    """`token_count`, `token_width` and `prediction_widths` hold, with and without the instruction; all is finite."""
    for with_text in (True, False):
        encoder = case.encoder(with_text=with_text)
        for lead in ((), (2,), (2, 3)):
            text = case.text(INSTRUCTIONS[:1], (1,) * len(lead)) if with_text else None
            encoding = _encode(encoder, case.frames(*lead), text)
            expected = (*lead, encoder.token_count, encoder.token_width)
            require(
                tuple(encoding.tokens.shape) == expected,
                f"tokens of shape {tuple(encoding.tokens.shape)}; declared {expected}",
            )
            require(encoding.tokens.isfinite().all(), "tokens are not finite")
            if encoding.token_valid is not None:
                mask = encoding.token_valid
                require(
                    mask.shape == expected[:-1] and mask.dtype == torch.bool,
                    f"token_valid is {mask.dtype} {tuple(mask.shape)}; expected bool {expected[:-1]}",
                )
            widths = {name: value.shape[-1] for name, value in encoding.predictions.items()}
            require(
                widths == dict(encoder.prediction_widths),
                f"predictions of widths {widths}; declared {dict(encoder.prediction_widths)}",
            )


def a_frame_gives_the_same_tokens_in_any_batch(case: EncoderCase) -> None:
    """Tokens of a frame don't depend on the frames beside it, so that the robot sees what training saw."""
    encoder, frames = case.encoder(), case.frames(2, 3)
    together = _encode(encoder, frames, case.text(INSTRUCTIONS, (2, 1)))
    one = {key: value[1, 2] for key, value in frames.items()}
    alone = _encode(encoder, one, case.text(INSTRUCTIONS[1:], ()))
    require_close(alone.tokens, together.tokens[1, 2], TOLERANCE, "tokens of a single frame against one of a batch")
    if alone.token_valid is not None and together.token_valid is not None:
        require_equal(alone.token_valid, together.token_valid[1, 2], "mask of a single frame against one of a batch")


def eval_mode_is_deterministic(case: EncoderCase) -> None:
    """The same frame gives the same tokens each time in eval mode."""
    encoder, frames, text = case.encoder(), case.frames(2), case.text(INSTRUCTIONS)
    first, again = _encode(encoder, frames, text), _encode(encoder, frames, text)
    require_equal(first.tokens, again.tokens, "tokens of two calls")


def the_instruction_reaches_other_tokens_than_its_own(case: EncoderCase) -> None:
    """The instruction changes the image tokens; otherwise only the pooling could find the object that it names.

    An encoder that starts neutral, such as one with a gate at zero, may reach them by a gradient only.
    """
    encoder, frames = case.encoder(), case.frames(1)
    red, blue = (case.text([instruction]) for instruction in INSTRUCTIONS)
    others = case.encoder(with_text=False).token_count
    before, after = _encode(encoder, frames, red), _encode(encoder, frames, blue)
    if not red.tokens.is_floating_point():  # a prompt: the backbone embeds its tokens
        require(not torch.equal(before.tokens, after.tokens), "the prompt changes no token")
        return
    if (before.tokens[:, :others] - after.tokens[:, :others]).abs().max() > 1e-6:
        return
    sentence = red.sentence.clone().requires_grad_()
    encoder(frames, red._replace(sentence=sentence)).tokens[:, :others].square().sum().backward()
    reached = sentence.grad is not None and bool(sentence.grad.abs().max() > 0)
    require(reached, "the instruction changes none of the tokens that aren't its own")


def every_weight_is_trained(case: EncoderCase) -> None:
    """Each trainable weight gets a gradient from tokens or predictions."""
    encoder = case.encoder().train()
    encoding = encoder(case.frames(3), case.text([INSTRUCTIONS[0]] * 3))
    loss = encoding.tokens.square().sum()
    for prediction in encoding.predictions.values():
        loss = loss + prediction.square().sum()
    loss.backward()
    require_trained(encoder)


def every_observation_is_used_or_refused(case: EncoderCase) -> None:
    """Each key changes the tokens; one that the encoder can't use is refused when it is built, never ignored."""
    text = case.text(INSTRUCTIONS[:1])
    for added in ({}, {"extra_camera": CAMERA}, {"extra_key": ArraySpec((3,))}):
        obs = {**case.obs, **added}
        try:
            encoder = case.encoder(obs)
        except ValueError:
            require(added, "the encoder refuses the observation of its own case")
            continue
        frames, others = case.frames(1, obs=obs), case.frames(1, obs=obs, seed=1)
        before = _encode(encoder, frames, text).tokens
        for key in added or obs:
            after = _encode(encoder, {**frames, key: others[key]}, text).tokens
            require(not torch.equal(before, after), f"the key {key!r} is accepted, but changes no token")


def an_observation_without_its_input_is_refused(case: EncoderCase) -> None:
    """An encoder over nothing would train a policy that sees nothing."""
    inputs = EncoderInputs({}, None, 0)
    require_error(lambda: case.make(inputs), "an observation without keys")


def an_exported_encoder_equals_the_encoder(case: EncoderCase) -> None:
    """The graph, made for one batch size, gives the same tokens at another; skipped where `exportable` is False."""
    encoder = case.encoder()
    if not encoder.exportable:
        return
    example, other = ((case.frames(n), *case.text([INSTRUCTIONS[0]] * n)) for n in (2, 3))
    require_export(_PlainEncoder(encoder), example, other, (0, 0, 0, 0))


class _PlainEncoder(torch.nn.Module):
    """An encoder of plain tensors, which is what can be exported."""

    def __init__(self, encoder: TokenEncoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, frames: dict[str, Tensor], tokens: Tensor, valid: Tensor, sentence: Tensor) -> tuple[Tensor]:
        return (self.encoder(frames, TextTokens(tokens, valid, sentence)).tokens,)


def _encode(encoder: TokenEncoder, frames: Mapping[str, Tensor], text: Any) -> Encoding:
    with torch.no_grad():
        return encoder(frames, text)


CHECKS: tuple[Callable[[EncoderCase], None], ...] = (
    tokens_have_the_declared_count_and_width,
    a_frame_gives_the_same_tokens_in_any_batch,
    eval_mode_is_deterministic,
    the_instruction_reaches_other_tokens_than_its_own,
    every_weight_is_trained,
    every_observation_is_used_or_refused,
    an_observation_without_its_input_is_refused,
    an_exported_encoder_equals_the_encoder,
)
