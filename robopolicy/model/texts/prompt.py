"""The text model `prompt`: the instruction as token ids of the encoder's own backbone."""

import logging
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor, nn

from robopolicy.components import ConfigError, register, require
from robopolicy.model.texts import TextInputs, TextTokens

LOG = logging.getLogger(__name__)
SPARE_TOKENS = 8
"""Tokens in addition to those of the longest training instruction, since a shorter text may need a few more tokens."""
END, IMAGES, ACTION, FIRST_CAMERA = -1, -2, -3, -4
"""Markers in place of token ids: beyond the end of a prompt, at all images, at the action tokens, and at the images of the
first camera; the markers of further cameras are the next lower numbers."""
MARKERS = {"{images}": IMAGES, "{action}": ACTION} | {f"{{image_{1 + n}}}": FIRST_CAMERA - n for n in range(9)}
"""Marks in a template -> markers; a template with images is tokenized without the tokenizer's special tokens."""


@dataclass(frozen=True)
class PromptOptions:
    """Options of the text model `prompt`."""

    template: str = "{instruction}"
    """The prompt that the backbone reads; `{instruction}` stands for the instruction, `{images}` for the images (by default
    before the prompt), or `{image_1}`, `{image_2}`, ... for those of each camera, and `{action}` for the learned tokens of
    `readout: action_token` (by default at the end)."""

    def __post_init__(self) -> None:
        _check_template(self.template, "--text.template")


class Prompter:
    """Converts instructions to token ids of a backbone's prompt.

    Args:
        model: local folder or hub name of the backbone.
        template: the prompt; see `PromptOptions.template`.
        token_count: tokens of every prompt, at most the backbone's limit; None: that limit.

    Raises:
        ConfigError: the backbone reads no text, or the template has no place for the instruction.
    """

    def __init__(self, model: str, template: str, token_count: int | None = None) -> None:
        from robopolicy.model.encoders._loading import load_tokenizer, prompt_facts

        _check_template(template, "--template")
        limit, whole = prompt_facts(model)
        if (marks := [mark for mark in MARKERS if mark in template]) and not whole:
            raise ConfigError(f"--template {template!r}: {model} reads images and prompt separately; remove {marks[0]}")
        self.model, self.template = model, template
        self.tokenizer = load_tokenizer(model)
        self.token_count = limit if token_count is None else min(token_count, limit)

    def numbers(self, instruction: str) -> list[int]:
        """Token ids of the whole prompt, with markers at the marks of the template."""
        special = {"add_special_tokens": False} if "{image" in self.template else {}
        numbers: list[int] = []
        for part in re.split(r"(\{images\}|\{action\}|\{image_\d\})", self.template):
            if part in MARKERS:
                numbers.append(MARKERS[part])
            elif part:
                numbers += self.tokenizer(part.replace("{instruction}", instruction), **special)["input_ids"]
                special = {"add_special_tokens": False}
        return numbers

    def prepare(self, instructions: Sequence[str | None]) -> Int[Tensor, "instructions words"]:
        """Token ids and markers, -1 beyond the end; None is read as an empty instruction."""
        ids = torch.full((len(instructions), self.token_count), END, dtype=torch.int64)
        for row, instruction in enumerate(instructions):
            numbers = self.numbers(instruction or "")
            if len(numbers) > self.token_count:
                LOG.warning(
                    "prompt of %d tokens cut off after %d, the number that this policy reads; lost: %r",
                    len(numbers),
                    self.token_count,
                    self._shown(numbers[self.token_count :]),
                )
            ids[row, : len(numbers)] = torch.tensor(numbers[: self.token_count], dtype=torch.int64)
        return ids

    def fit(self, instructions: Iterable[str]) -> None:
        """Set `token_count` to what the longest instruction needs plus `SPARE_TOKENS`, at most its current value."""
        longest = max(map(self.numbers, instructions), key=len, default=self.numbers(""))
        needed, limit = len(longest), self.token_count
        self.token_count = min(needed + SPARE_TOKENS, limit)
        if self.token_count < needed:
            LOG.warning(
                "the longest training instruction takes %d tokens; %s reads %d, the rest is cut off: %r",
                needed,
                self.model,
                limit,
                self._shown(longest[limit:]),
            )

    def _shown(self, numbers: Sequence[int]) -> str:
        return self.tokenizer.decode([number for number in numbers if number >= 0])


@register("text", "prompt", PromptOptions)
class PromptText(nn.Module):
    """Token ids of the prompt, a few more than the longest training instruction needs.

    Its `TextTokens.tokens` are the ids themselves, int64 (*B, words, 1), -1 beyond the end; the backbone embeds them.
    """

    def __init__(self, options: PromptOptions, inputs: TextInputs) -> None:
        super().__init__()
        if inputs.model is None:
            raise ConfigError(
                "--text.kind prompt needs an encoder with a backbone that reads it; give --encoder.kind transformers and "
                "--encoder.model, or another --text.kind"
            )
        self.prompter = Prompter(inputs.model, options.template)
        self.prompter.fit([inputs.vocabulary.longest])
        self.token_count = self.prompter.token_count

    def prepare(self, instructions: Sequence[str | None]) -> Int[Tensor, "instructions words"]:
        """See `Prompter.prepare`."""
        return self.prompter.prepare(instructions)

    def forward(self, prepared: Int[Tensor, "*batch words"]) -> TextTokens:
        """The token ids, their mask, and a sentence vector of width 0."""
        sentence = torch.zeros((*prepared.shape[:-1], 0), device=prepared.device)
        return TextTokens(prepared[..., None], prepared != END, sentence)


def _check_template(template: str, option: str) -> None:
    require(
        "{instruction}" in template,
        f"{option} {template!r} has no place for the instruction; write {{instruction}} in it",
    )
