"""Low-dimensional observations: one token per key, and one for what the instruction names among them."""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn

from robopolicy.model.encoders.base import Encoding, TokenEncoder, append_text, perceptron, told
from robopolicy.model.text import TextTokens


class KeysEncoder(TokenEncoder):
    """One small perceptron per key over (value, sentence vector), a token for the named keys, then the instruction's.

    Keys of one name but for its last word, and of equal width, such as `cube_red` and `cube_blue`, are alike: the sentence chooses among them by attention,
    and one perceptron sees the chosen values beside all other keys. So what to do with an object is learned once, from
    the demos of all of them, and not once per object.
    """

    def __init__(
        self,
        key_widths: Mapping[str, int],
        width: int,
        hidden: int,
        text_width: int | None,
        text_tokens: int,
        choices: int = 2,
    ) -> None:
        """Args: d of each key, D, hidden width, width of the sentence vector (None: untold), its tokens, named objects."""
        super().__init__()
        if not key_widths:
            raise ValueError("encoder keys needs at least one low-dimensional observation key; give --data.obs_keys")
        self.keys = tuple(key_widths)
        self.token_width = width
        self.networks = nn.ModuleList(perceptron(d + (text_width or 0), hidden, width) for d in key_widths.values())
        alike: dict[tuple[str, int], list[str]] = {}
        for key, d in key_widths.items():
            alike.setdefault((key.rpartition("_")[0] or key, d), []).append(key)
        self.groups = tuple(tuple(keys) for keys in alike.values() if len(keys) > 1) if text_width else ()
        self.choosers = nn.ModuleList(Chooser(text_width or 0, len(keys), choices) for keys in self.groups)
        grouped = {key for keys in self.groups for key in keys}
        self.single = tuple(key for key in self.keys if key not in grouped)
        chosen = sum(choices * key_widths[keys[0]] for keys in self.groups)
        inputs = chosen + sum(key_widths[key] for key in self.single) + (text_width or 0)
        self.named = perceptron(inputs, hidden, width) if self.groups else None
        self.token_count = len(self.keys) + bool(self.groups) + text_tokens

    def forward(self, obs: Mapping[str, Tensor], text: TextTokens | None) -> Encoding:
        """See `TokenEncoder`."""
        tokens = [network(told(obs[key], text)) for key, network in zip(self.keys, self.networks, strict=True)]
        if self.named is not None and text is not None:
            values = [obs[key] for key in self.single]
            for keys, chooser in zip(self.groups, self.choosers, strict=True):
                values.append(chooser(torch.stack([obs[key] for key in keys], dim=-2), text.sentence))
            tokens.append(self.named(told(torch.cat(values, dim=-1), text)))
        return Encoding(*append_text(torch.stack(tokens, dim=-2), text), predictions={})


class Chooser(nn.Module):
    """The sentence picks among values that are alike, a few times over: the cube, the plate."""

    def __init__(self, text_width: int, count: int, choices: int) -> None:
        super().__init__()
        self.choices = choices
        self.score = nn.Linear(text_width, choices * count)

    def forward(
        self, values: Float[Tensor, "*batch keys d"], sentence: Float[Tensor, "*text width"]
    ) -> Float[Tensor, "*batch chosen"]:
        """The weighted mean of the values for each choice, side by side."""
        weights = self.score(sentence).unflatten(-1, (self.choices, -1)).softmax(dim=-1)
        return (weights @ values).flatten(-2)
