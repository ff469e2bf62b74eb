"""One token from a frozen sentence model of the `transformers` package."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from robopolicy.components import ConfigError, register, require
from robopolicy.model.texts import TextInputs, TextTokens


@dataclass(frozen=True)
class SentenceOptions:
    """Options of the text model `sentence`."""

    model: str | None = None
    """A sentence model: a local folder, or a model name such as sentence-transformers/all-MiniLM-L6-v2."""


@register("text", "sentence", SentenceOptions)
class SentenceText(nn.Module):
    """A sentence model's last layer, averaged over the words and scaled to unit length, then a learned linear map.

    The sentence model is not part of the policy's weights: it is loaded by its name when the first instruction is prepared.
    """

    def __init__(self, options: SentenceOptions, inputs: TextInputs) -> None:
        super().__init__()
        require(options.model, "--text.kind sentence needs a model; give --text.model FOLDER_OR_NAME")
        self.model = options.model
        self.token_count = 1
        self.sentence_width = int(self._load("AutoConfig").hidden_size)
        self.project = nn.Linear(self.sentence_width, inputs.width)

    def prepare(self, instructions: Sequence[str | None]) -> Float[Tensor, "instructions sentence"]:
        """Frozen sentence vectors of unit length; 0 without an instruction."""
        vectors = torch.zeros(len(instructions), self.sentence_width)
        given = [row for row, instruction in enumerate(instructions) if instruction]
        if given:
            vectors[given] = self._embed([instructions[row] or "" for row in given])
        return vectors

    def forward(self, prepared: Float[Tensor, "*batch sentence"]) -> TextTokens:
        """The one token, its mask, and the token as the sentence vector."""
        valid = (prepared != 0).any(dim=-1, keepdim=True)
        sentence = torch.where(valid, self.project(prepared), 0.0)
        return TextTokens(sentence[..., None, :], valid, sentence)

    def _embed(self, instructions: Sequence[str]) -> Tensor:
        tokenizer, model = self._sentence_model
        words = tokenizer(list(instructions), padding=True, truncation=True, return_tensors="pt")
        with torch.no_grad():
            states = model(**words).last_hidden_state
        kept = words["attention_mask"][..., None].to(states.dtype)
        return nn.functional.normalize((states * kept).sum(dim=1) / kept.sum(dim=1), dim=-1)

    @cached_property
    def _sentence_model(self) -> tuple[Any, Any]:
        # A tuple hides the module from nn.Module, so that its weights are neither trained nor saved.
        return self._load("AutoTokenizer"), self._load("AutoModel").eval()

    def _load(self, part: str) -> Any:
        from robopolicy.model.encoders._loading import require_transformers

        try:
            return getattr(require_transformers(), part).from_pretrained(self.model, trust_remote_code=False)
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"--text.model {self.model} is neither a folder with a sentence model nor a model that is cached or can be "
                f"downloaded: {str(error).strip().splitlines()[0]}"
            ) from error
