"""Low-dimensional observations: one token per key."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from robopolicy.model.encoders.base import Encoding, TokenEncoder, append_text, perceptron, told
from robopolicy.model.text import TextTokens


class KeysEncoder(TokenEncoder):
    """One small perceptron per key over (value, sentence vector), then the instruction's tokens.

    The hidden layer's ReLU lets the instruction switch an object's token off, so that pooling by max keeps the named one.
    """

    def __init__(
        self, key_widths: Mapping[str, int], width: int, hidden: int, text_width: int | None, text_tokens: int
    ) -> None:
        """Args: d of each key, D, hidden width, width of the sentence vector (None: untold), instruction tokens."""
        super().__init__()
        if not key_widths:
            raise ValueError("encoder keys needs at least one low-dimensional observation key; give --data.obs_keys")
        self.keys = tuple(key_widths)
        self.token_width = width
        self.token_count = len(self.keys) + text_tokens
        self.networks = nn.ModuleList(perceptron(d + (text_width or 0), hidden, width) for d in key_widths.values())

    def forward(self, obs: Mapping[str, Tensor], text: TextTokens | None) -> Encoding:
        """See `TokenEncoder`."""
        tokens = [network(told(obs[key], text)) for key, network in zip(self.keys, self.networks, strict=True)]
        return Encoding(*append_text(torch.stack(tokens, dim=-2), text), predictions={})
