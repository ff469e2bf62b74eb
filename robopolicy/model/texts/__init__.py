"""Text models: they map an instruction to tokens.

`Cls(options, inputs)` builds a text model, or None for a policy without the instruction. Strings and weights are
handled separately: `prepare` converts instructions to one tensor (word ids, token ids or sentence vectors), which can be
cached and passed to an exported graph; `forward` maps this tensor to tokens.
"""

import logging
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from math import log
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

LOG = logging.getLogger(__name__)
PAD, UNKNOWN = 0, 1
MIN_LENGTH = 8
"""Least number of words read from an instruction, even if all training instructions are shorter."""


class TextTokens(NamedTuple):
    """The instruction as the encoders receive it."""

    tokens: Float[Tensor, "*batch words width"]
    """One token per word; for the kind `prompt`, the backbone's token ids, int64 (*B, words, 1)."""
    valid: Bool[Tensor, "*batch words"]
    """False beyond the end of the instruction, and everywhere without an instruction."""
    sentence: Float[Tensor, "*batch width"]
    """One vector for the whole instruction, which depends on the order of the words; 0 without an instruction."""


@runtime_checkable
class Text(Protocol):
    """Interface of every text model, which is an `nn.Module`."""

    token_count: int
    """Number of tokens per instruction, padding included; the same for all instructions."""

    def prepare(self, instructions: Sequence[str | None]) -> Tensor:
        """One row of numbers per instruction (instructions, n); None and the empty string are no instruction."""
        ...

    def __call__(self, prepared: Tensor) -> TextTokens:
        """Tokens of prepared rows (*B, n)."""
        ...


@dataclass(frozen=True)
class Vocabulary:
    """The words of the training instructions; number 0 is padding and 1 any other word."""

    words: tuple[str, ...]
    """Known words, each once; the first has number 2."""
    length: int
    """Number of words read from an instruction; further words are cut off, and each is logged once."""
    weights: tuple[float, ...] = ()
    """How well each word distinguishes the instructions: log(instructions / instructions with the word), so 0 for a word in
    all of them; empty: all 1."""
    longest: str = ""
    """The training instruction with the most characters."""
    _reported: set[str] = field(default_factory=set, repr=False, compare=False)

    @classmethod
    def of(cls, instructions: Iterable[str]) -> "Vocabulary":
        """The vocabulary of these training instructions."""
        unique = sorted(set(instructions))
        sentences = {tuple(split_words(instruction)) for instruction in unique}
        words = sorted({word for sentence in sentences for word in sentence})
        occurrences = [sum(word in sentence for sentence in sentences) for word in words]
        weights = tuple(log(len(sentences) / count) for count in occurrences)
        length = max([MIN_LENGTH, *map(len, sentences)])
        return cls(tuple(words), length, weights, max(unique, key=len, default=""))

    def extended(self, other: "Vocabulary") -> "Vocabulary":
        """This vocabulary extended by the words of another one; new words have weight 1, as unknown words have."""
        new = tuple(word for word in other.words if word not in self.words)
        weights = (*self.weights, *(1.0 for _ in new)) if self.weights else ()
        longest = max(self.longest, other.longest, key=len)
        return Vocabulary((*self.words, *new), max(self.length, other.length), weights, longest)

    def encode(self, instructions: Sequence[str | None]) -> Int[Tensor, "instructions words"]:
        """Word numbers of each instruction, padded with 0; None is all padding."""
        number = {word: place for place, word in enumerate(self.words, start=2)}
        ids = torch.full((len(instructions), self.length), PAD, dtype=torch.int64)
        for row, instruction in enumerate(instructions):
            words = split_words(instruction or "")
            self._report([word for word in words if word not in number], "is not in the training instructions: unknown")
            self._report(words[self.length :], f"comes after the {self.length} words that this policy reads: cut off")
            known = [number.get(word, UNKNOWN) for word in words[: self.length]]
            ids[row, : len(known)] = torch.tensor(known, dtype=torch.int64)
        return ids

    def _report(self, words: Iterable[str], why: str) -> None:
        for word in words:
            if word not in self._reported:
                self._reported.add(word)
                LOG.warning("instruction word %r %s", word, why)


@dataclass(frozen=True)
class TextInputs:
    """The inputs from which a text model is built, besides its options."""

    vocabulary: Vocabulary
    """The words of the training instructions."""
    width: int
    """D, token width of the encoder and so of the text model."""
    model: str | None = None
    """Folder or model name of the encoder's backbone; None if it has none."""


def split_words(instruction: str) -> list[str]:
    """Lower-case words and numbers, punctuation dropped."""
    return re.findall(r"\w+", instruction.lower())
