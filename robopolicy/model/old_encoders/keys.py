"""Low-dimensional observations: one token per key, and one that sees them together."""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn

from robopolicy.model.old_encoders.base import Encoding, TokenEncoder, append_text, perceptron, told
from robopolicy.model.text import TextTokens


class KeysEncoder(TokenEncoder):
    """A token per key, a token that sees them together, then the instruction's.

    Keys of equal width and of one name but for its last word, such as `cube_red` and `cube_blue`, are alike: the sentence
    chooses among them by attention, and the common token sees the chosen values beside all other keys. So what to do
    with an object is learned once, from the demos of all of them. The alike keys' own tokens come from one shared
    perceptron and fade where they are not chosen: a token per object for each instruction would remember the training
    scenes instead. A policy that is told nothing sees every key as it is. The loss term `choose` comes with the choice, and
    makes it reliable.
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
        self.token_width = width
        alike: dict[tuple[str, int], list[str]] = {}
        for key, d in key_widths.items():
            alike.setdefault((key.rpartition("_")[0] or key, d), []).append(key)
        self.groups = tuple(tuple(keys) for keys in alike.values() if len(keys) > 1) if text_width else ()
        grouped = {key for keys in self.groups for key in keys}
        self.single = tuple(key for key in key_widths if key not in grouped)
        sentence = text_width or 0
        self.networks = nn.ModuleList(perceptron(key_widths[key] + sentence, hidden, width) for key in self.single)
        self.shared = nn.ModuleList(perceptron(key_widths[keys[0]], hidden, width) for keys in self.groups)
        self.choosers = nn.ModuleList(Chooser(sentence, len(keys), choices) for keys in self.groups)
        chosen = sum(choices * key_widths[keys[0]] for keys in self.groups)
        inputs = chosen + sum(key_widths[key] for key in self.single)
        self.chosen_width = inputs if self.groups else 0
        self.together = perceptron(inputs + sentence, hidden, width)
        self.token_count = len(key_widths) + 1 + text_tokens

    def forward(self, obs: Mapping[str, Tensor], text: TextTokens | None) -> Encoding:
        """See `TokenEncoder`; the tokens of single keys come first, then those of alike keys."""
        values = [obs[key] for key in self.single]
        tokens = [
            network(told(value, text))[..., None, :] for value, network in zip(values, self.networks, strict=True)
        ]
        if text is not None:
            for keys, chooser, shared in zip(self.groups, self.choosers, self.shared, strict=True):
                alike = torch.stack([obs[key] for key in keys], dim=-2)
                weights = chooser(text.sentence)
                values.append((weights @ alike).flatten(-2))
                tokens.append(shared(alike) * weights.amax(dim=-2)[..., None])
        chosen = torch.cat(values, dim=-1)
        tokens.append(self.together(told(chosen, text))[..., None, :])
        return Encoding(*append_text(torch.cat(tokens, dim=-2), text), predictions={"chosen": chosen})


class Chooser(nn.Module):
    """The sentence picks among keys that are alike, a few times over: the cube, the plate.

    It starts undecided and without a bias, so that the first thing that can move it is a word that tells instructions
    apart; and it decides fast, since values still mixed invite the rest to remember the training scenes. But not at once:
    before the rest has learned to follow the mixed value, the gradient's sign is that of random weights, and half of all
    seeds would shut out the very object that is named.
    """

    SHARPNESS = 4.0
    learns_after = 200
    """Optimizer steps before these weights move."""

    def __init__(self, text_width: int, count: int, choices: int) -> None:
        super().__init__()
        self.choices = choices
        self.score = nn.Linear(text_width, choices * count, bias=False)
        nn.init.zeros_(self.score.weight)

    def forward(self, sentence: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch choices keys"]:
        """How much of each key is in each choice; sums to 1."""
        return (self.SHARPNESS * self.score(sentence)).unflatten(-1, (self.choices, -1)).softmax(dim=-1)
