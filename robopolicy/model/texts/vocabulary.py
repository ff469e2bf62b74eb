"""A small learned embedding; its vocabulary is stored with the policy."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor, nn

from robopolicy.components import register
from robopolicy.model.texts import PAD, UNKNOWN, TextInputs, TextTokens


@dataclass(frozen=True)
class VocabularyOptions:
    """The text model `vocabulary` has no options."""


@register("text", "vocabulary", VocabularyOptions)
class VocabularyText(nn.Module):
    """Learned word tokens: word and position embeddings, mixed by an MLP so that word order affects the sentence vector.

    The sentence vector is the mean over the words that distinguish the instructions. Words that all instructions share
    would dominate a plain mean, and an encoder that selects by it would make the same selection for every instruction
    before it has learned to distinguish them.
    """

    def __init__(self, options: VocabularyOptions, inputs: TextInputs) -> None:
        super().__init__()
        vocabulary, width = inputs.vocabulary, inputs.width
        self.vocabulary = vocabulary
        self.token_count = vocabulary.length
        self.embedding = nn.Embedding(len(vocabulary.words) + 2, width, padding_idx=PAD)
        self.position = nn.Parameter(torch.randn(vocabulary.length, width) * 0.5)
        self.mix = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))
        with torch.no_grad():
            # Training has no unknown words, so this row is never trained; a random vector would change the output arbitrarily.
            self.embedding.weight[UNKNOWN] = 0.0
        weights = vocabulary.weights or (1.0,) * len(vocabulary.words)
        self.word_weight = nn.Buffer(torch.tensor([0.0, 1.0, *weights]), persistent=False)

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
