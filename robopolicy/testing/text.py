"""The conformance kit of text models; each check takes a function that builds one from `TextInputs`, and those inputs.

A model that embeds tokens itself returns floats of the encoder's width; one whose tokens the encoder's backbone embeds
(`prompt`) returns token numbers, int64 (*B, words, 1), and is checked for less.
"""

from collections.abc import Callable
from typing import TypeAlias

import torch

from robopolicy.model.texts import Text, TextInputs, TextTokens, Vocabulary
from robopolicy.testing._assert import module_of, require, require_close, require_equal, require_trained, seeded

INSTRUCTIONS = ("put the red cube on the blue plate", "put the blue cube on the red plate", "open the drawer")
"""The first two hold the same words in another order."""
INPUTS = TextInputs(Vocabulary.of(INSTRUCTIONS), 8)
"""Those of an encoder without a backbone, with tokens 8 wide."""
TOLERANCE = 1e-5
Make: TypeAlias = Callable[[TextInputs], Text]
"""Builds the text model."""


def tokens_have_the_declared_shape(make: Make, inputs: TextInputs = INPUTS) -> None:
    """`token_count` tokens, their mask and one sentence vector for each instruction, for any leading axes."""
    text = _made(make, inputs)
    prepared = text.prepare(INSTRUCTIONS)
    require(prepared.ndim == 2 and len(prepared) == 3, f"prepare gives {tuple(prepared.shape)}; expected (3, n)")
    for lead in ((), (3,), (1, 3)):
        found = text(prepared[0] if lead == () else prepared.reshape(*lead, -1))
        expected = (*lead, text.token_count, inputs.width if _embeds(found) else 1)
        require(tuple(found.tokens.shape) == expected, f"tokens {tuple(found.tokens.shape)}; expected {expected}")
        mask = found.valid
        require(mask.dtype == torch.bool, f"the mask is {mask.dtype}; expected bool")
        require(tuple(mask.shape) == expected[:-1], f"mask {tuple(mask.shape)}; expected {expected[:-1]}")
        width = inputs.width if _embeds(found) else 0
        require(tuple(found.sentence.shape) == (*lead, width), f"sentence {tuple(found.sentence.shape)}")


def an_instruction_reads_the_same_in_any_batch(make: Make, inputs: TextInputs = INPUTS) -> None:
    """The tokens of an instruction do not depend on the other instructions of the batch, and are the same each time."""
    text = _made(make, inputs)
    together = _read(text, INSTRUCTIONS)
    for row, instruction in enumerate(INSTRUCTIONS):
        alone = _read(text, (instruction,))
        require_close(alone.tokens[0].float(), together.tokens[row].float(), TOLERANCE, "tokens alone and in a batch")
        require_equal(alone.valid[0], together.valid[row], "mask alone and in a batch")
        require_close(alone.sentence[0], together.sentence[row], TOLERANCE, "sentence vector alone and in a batch")


def instructions_differ(make: Make, inputs: TextInputs = INPUTS) -> None:
    """Other words, or the same words in another order, give other tokens and another sentence vector."""
    read = _read(_made(make, inputs), INSTRUCTIONS)
    for other in (1, 2):
        require(not torch.equal(read.tokens[0], read.tokens[other]), f"the tokens of {_pair(other)} are equal")
        if _embeds(read):
            near = (read.sentence[0] - read.sentence[other]).abs().max() < 1e-6
            require(not near, f"the sentence vectors of {_pair(other)} are equal")


def no_instruction_is_masked(make: Make, inputs: TextInputs = INPUTS) -> None:
    """None and the empty string give the same: no valid token and a sentence vector of 0."""
    read = _read(_made(make, inputs), (None, "", INSTRUCTIONS[0]))
    require_equal(read.tokens[0], read.tokens[1], "tokens of None against those of ''")
    require(bool(read.valid[2].any()), "no token of an instruction is valid")
    if _embeds(read):
        require(not read.valid[:2].any(), "a token is valid without an instruction")
        require_equal(read.sentence[:2], torch.zeros_like(read.sentence[:2]), "sentence vector without an instruction")


def any_instruction_is_read(make: Make, inputs: TextInputs = INPUTS) -> None:
    """Unknown words, other scripts and long texts give finite tokens and no error."""
    read = _read(_made(make, inputs), ("fold a towel", "抓住红色方块", "again and " * 200))
    require(bool(read.tokens.float().isfinite().all() and read.sentence.isfinite().all()), "tokens are not finite")


def every_weight_is_trained(make: Make, inputs: TextInputs = INPUTS) -> None:
    """Each trainable weight gets a gradient from the tokens or the sentence vector."""
    text = _made(make, inputs)
    read = text(text.prepare(INSTRUCTIONS))
    if not _embeds(read):
        return
    (read.tokens.square().sum() + read.sentence.square().sum()).backward()
    require_trained(module_of(text))


def _made(make: Make, inputs: TextInputs) -> Text:
    text = seeded(make, inputs)
    module_of(text).eval()
    return text


def _read(text: Text, instructions: tuple[str | None, ...]) -> TextTokens:
    with torch.no_grad():
        return text(text.prepare(instructions))


def _embeds(read: TextTokens) -> bool:
    return read.tokens.is_floating_point()


def _pair(other: int) -> str:
    return f"{INSTRUCTIONS[0]!r} and {INSTRUCTIONS[other]!r}"


CHECKS: tuple[Callable[..., None], ...] = (
    tokens_have_the_declared_shape,
    an_instruction_reads_the_same_in_any_batch,
    instructions_differ,
    no_instruction_is_masked,
    any_instruction_is_read,
    every_weight_is_trained,
)
