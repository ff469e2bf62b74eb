"""The encoder `precomputed`: reads tokens that `robopolicy encode` stored in the demo file."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from robopolicy.components import ConfigError, Options, option, register, require
from robopolicy.model.encoders.base import EncoderInputs, Encoding, TokenEncoder, append_text, perceptron, with_sentence
from robopolicy.model.texts import TextTokens
from robopolicy.types import TOKEN_VALID_KEY, TOKENS_KEY


@dataclass(frozen=True)
class PrecomputedOptions(Options):
    """Options of the encoder `precomputed`."""

    width: int = option(128, ">= 1")
    """D, width of one token."""
    hidden: int = option(128, ">= 0")
    """Width of the perceptrons' hidden layer; 0: the file's tokens are passed on unchanged, without any other input."""

    default_text: ClassVar[str] = "vocabulary"
    reads_tokens: ClassVar[bool] = True


@register("encoder", "precomputed", PrecomputedOptions)
class PrecomputedEncoder(TokenEncoder):
    """A perceptron over each of the file's tokens, one token for proprioception, then the instruction's tokens.

    The sentence vector is added in the hidden layer, whose ReLU lets it switch tokens off.
    """

    def __init__(self, options: PrecomputedOptions, inputs: EncoderInputs) -> None:
        super().__init__()
        inputs.refuse_cameras("precomputed")
        require(
            TOKENS_KEY in inputs.obs,
            f"--encoder.kind precomputed needs the key {TOKENS_KEY!r} in the demos, which have: "
            f"{', '.join(inputs.obs)}; write it with `robopolicy encode`",
        )
        count, file_width = inputs.obs[TOKENS_KEY].shape
        widths, sentence, hidden = inputs.key_widths, inputs.text_width, options.hidden
        if hidden == 0 and (widths or sentence or inputs.text_tokens or options.width != file_width):
            raise ConfigError(
                f"--encoder.hidden 0 passes on tokens {file_width} wide and nothing else; set --encoder.width "
                f"{file_width}, --text.kind none and --data.obs_keys {TOKENS_KEY}, or --encoder.hidden >= 1"
            )
        self.keys = tuple(widths)
        self.token_width = options.width
        self.token_count = count + bool(widths) + inputs.text_tokens
        self.project = nn.Linear(file_width, hidden) if hidden else None
        self.condition = nn.Linear(sentence, hidden, bias=False) if sentence else None
        self.out = nn.Linear(hidden, options.width) if hidden else None
        proprio = sum(widths.values()) + (sentence or 0)
        self.proprio = perceptron(proprio, hidden, options.width) if widths else None

    def forward(self, obs: Mapping[str, Tensor], text: TextTokens | None) -> Encoding:
        """See `TokenEncoder`; without the mask's key among the observations, all of the file's tokens are valid."""
        valid = obs[TOKEN_VALID_KEY] > 0.5 if TOKEN_VALID_KEY in obs else None
        if self.project is None or self.out is None:
            return Encoding(obs[TOKENS_KEY], valid, predictions={})
        hidden = self.project(obs[TOKENS_KEY])
        if self.condition is not None and text is not None:
            hidden = hidden + self.condition(text.sentence)[..., None, :]
        tokens = self.out(functional.relu(hidden))
        if self.proprio is not None:
            values = torch.cat([obs[key] for key in self.keys], dim=-1)
            tokens = torch.cat([tokens, self.proprio(with_sentence(values, text))[..., None, :]], dim=-2)
            valid = None if valid is None else functional.pad(valid, (0, 1), value=True)
        return Encoding(*append_text(tokens, text, valid), predictions={})
