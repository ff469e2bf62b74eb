"""Tokens that a backbone wrote into the demo file ahead of time."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from robopolicy.model.old_encoders.base import Encoding, TokenEncoder, append_text, perceptron, told
from robopolicy.model.text import TextTokens


class PrecomputedEncoder(TokenEncoder):
    """A perceptron over each of the file's tokens, one token for proprioception, then the instruction's tokens.

    As in `KeysEncoder`, the sentence vector enters the hidden layer, whose ReLU lets it switch tokens off.
    """

    def __init__(
        self,
        key: str,
        tokens: int,
        tokens_width: int,
        key_widths: Mapping[str, int],
        width: int,
        hidden: int,
        text_width: int | None,
        text_tokens: int,
        mask_key: str = "token_valid",
    ) -> None:
        """Args: the tokens' key, their N and D, d of each low-dimensional key, then as for `KeysEncoder`, and the mask's key.

        Observations without that key are all valid. With `hidden` 0 the file's tokens go to the head as they are, alone.
        """
        super().__init__()
        self.key, self.mask_key, self.keys = key, mask_key, tuple(key_widths)
        self.token_width = width
        self.token_count = tokens + bool(key_widths) + text_tokens
        self.project = nn.Linear(tokens_width, hidden) if hidden else None
        if hidden == 0 and (key_widths or text_width or width != tokens_width):
            raise ValueError(
                f"encoder precomputed with --encoder.hidden 0 hands on tokens {tokens_width} wide and nothing else; "
                f"set --encoder.width {tokens_width}, --encoder.instruction false and --data.obs_keys {key}"
            )
        self.ask = nn.Linear(text_width, hidden, bias=False) if text_width else None
        self.out = nn.Linear(hidden, width) if hidden else None
        inputs = sum(key_widths.values()) + (text_width or 0)
        self.proprio = perceptron(inputs, hidden, width) if key_widths else None

    def forward(self, obs: Mapping[str, Tensor], text: TextTokens | None) -> Encoding:
        """See `TokenEncoder`."""
        valid = obs[self.mask_key] > 0.5 if self.mask_key in obs else None
        if self.project is None or self.out is None:
            return Encoding(obs[self.key], valid, predictions={})
        hidden = self.project(obs[self.key])
        if self.ask is not None and text is not None:
            hidden = hidden + self.ask(text.sentence)[..., None, :]
        tokens = self.out(functional.relu(hidden))
        if self.proprio is not None:
            values = torch.cat([obs[key] for key in self.keys], dim=-1)
            tokens = torch.cat([tokens, self.proprio(told(values, text))[..., None, :]], dim=-2)
            valid = None if valid is None else functional.pad(valid, (0, 1), value=True)
        return Encoding(*append_text(tokens, text, valid), predictions={})
