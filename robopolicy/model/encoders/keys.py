"""The encoder `keys`: one token per low-dimensional key, and one common token computed from all keys."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from robopolicy.components import ConfigError, Options, option, register, require
from robopolicy.model.encoders.base import EncoderInputs, Encoding, TokenEncoder, append_text, perceptron, with_sentence
from robopolicy.model.texts import TextTokens


@dataclass(frozen=True)
class KeysOptions(Options):
    """Options of the encoder `keys`."""

    width: int = option(128, ">= 1")
    """D, width of one token."""
    hidden: int = option(128, ">= 1")
    """Width of the hidden layer of the MLPs."""
    groups: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Group name -> interchangeable keys, such as {"object": ["cube_red", "cube_green"]}; the instruction selects from them."""
    choices: int = option(2, ">= 1")
    """Number of selections from each group, such as the object to lift and the one to put it on."""

    default_text: ClassVar[str] = "vocabulary"

    def __post_init__(self) -> None:
        super().__post_init__()
        seen: set[str] = set()
        for name, keys in self.groups.items():
            require(len(keys) >= 2, f"--encoder.groups {name!r} has {len(keys)} keys; a group has two or more")
            twice = sorted(key for key in {*keys} if key in seen or list(keys).count(key) > 1)
            require(not twice, f"--encoder.groups names the key {', '.join(map(repr, twice))} twice; name each once")
            seen.update(keys)


@register("encoder", "keys", KeysOptions)
class KeysEncoder(TokenEncoder):
    """One token per key, one common token computed from all keys, then the instruction's tokens.

    Among the keys of a group, the instruction's sentence vector selects by attention. The common token is computed from
    the selected values and all ungrouped keys, so the policy learns once how to handle an object, from the demos of all
    objects. The tokens of grouped keys come from one MLP per group and are scaled by the key's attention weight: separate
    networks for every object would let the policy memorize the training scenes.

    Predictions, for the auxiliary loss `linear_action`, which makes the selection reliable: `selected`, the input of the
    common token; `sentence`, the sentence vector; per group `keys_<group>` (*B, keys, width) and, per selection,
    `choice_<n>_<group>` (*B, keys), the attention weight of each key.
    """

    def __init__(self, options: KeysOptions, inputs: EncoderInputs) -> None:
        super().__init__()
        inputs.refuse_cameras("keys")
        inputs.refuse_tokens("keys")
        widths = inputs.key_widths
        require(widths, "--encoder.kind keys needs at least one low-dimensional key; give --data.obs_keys")
        _check_groups(options.groups, inputs)
        width, hidden, sentence = options.width, options.hidden, inputs.text_width or 0
        self.token_width = width
        self.token_count = len(widths) + 1 + inputs.text_tokens
        self.groups = tuple(tuple(keys) for keys in options.groups.values())
        self.group_names = tuple(options.groups)
        grouped = {key for keys in self.groups for key in keys}
        self.single = tuple(key for key in widths if key not in grouped)
        self.networks = nn.ModuleList(perceptron(widths[key] + sentence, hidden, width) for key in self.single)
        self.shared = nn.ModuleList(perceptron(widths[keys[0]], hidden, width) for keys in self.groups)
        self.selectors = nn.ModuleList(Selector(sentence, len(keys), options.choices) for keys in self.groups)
        selected = sum(options.choices * widths[keys[0]] for keys in self.groups)
        common = selected + sum(widths[key] for key in self.single)
        self.prediction_widths = {"selected": common, "sentence": sentence} if self.groups else {}
        for name, keys in options.groups.items():
            self.prediction_widths[f"keys_{name}"] = widths[keys[0]]
            self.prediction_widths |= {f"choice_{choice}_{name}": len(keys) for choice in range(options.choices)}
        self.together = perceptron(common + sentence, hidden, width)

    def forward(self, obs: Mapping[str, Tensor], text: TextTokens | None) -> Encoding:
        """See `TokenEncoder`; tokens of ungrouped keys come first, then those of groups, then the common token."""
        values = [obs[key] for key in self.single]
        tokens, predictions = [], {}
        for value, network in zip(values, self.networks, strict=True):
            tokens.append(network(with_sentence(value, text))[..., None, :])
        if text is not None:
            predictions["sentence"] = text.sentence
            for name, keys, selector, shared in zip(
                self.group_names, self.groups, self.selectors, self.shared, strict=True
            ):
                instances = torch.stack([obs[key] for key in keys], dim=-2)
                weights = selector(text.sentence)
                values.append((weights @ instances).flatten(-2))
                tokens.append(shared(instances) * weights.amax(dim=-2)[..., None])
                predictions[f"keys_{name}"] = instances
                predictions |= {f"choice_{choice}_{name}": share for choice, share in enumerate(weights.unbind(-2))}
        common = torch.cat(values, dim=-1)
        tokens.append(self.together(with_sentence(common, text))[..., None, :])
        predictions = predictions | {"selected": common} if self.groups else {}
        return Encoding(*append_text(torch.cat(tokens, dim=-2), text), predictions)


class Selector(nn.Module):
    """Attention of the sentence vector over the keys of a group, `choices` times: for example the cube and the plate.

    The weights start at zero and there is no bias, so that all keys start with equal attention weights, and only words
    that distinguish instructions change them. The softmax has a low temperature, so that the selection becomes definite
    early: while it still averages over keys, the rest of the network starts to memorize the training scenes. The weights
    are frozen for the first `freeze_steps`: until the rest of the network has learned to use the averaged value, the sign
    of the gradient is random, and with half of all seeds the selector would suppress the object that is named.
    """

    SHARPNESS = 4.0
    """Inverse temperature of the softmax."""
    freeze_steps = 200
    """Optimizer steps before these weights start to change."""

    def __init__(self, text_width: int, count: int, choices: int) -> None:
        super().__init__()
        self.choices = choices
        self.score = nn.Linear(text_width, choices * count, bias=False)
        nn.init.zeros_(self.score.weight)

    def forward(self, sentence: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch choices keys"]:
        """The attention weight of each key in each selection; they sum to 1 over the keys."""
        return (self.SHARPNESS * self.score(sentence)).unflatten(-1, (self.choices, -1)).softmax(dim=-1)


def _check_groups(groups: Mapping[str, tuple[str, ...]], inputs: EncoderInputs) -> None:
    widths = inputs.key_widths
    require(
        not groups or inputs.text_width,
        "--encoder.groups needs the instruction, which selects among the keys of a group; this policy does not read it: "
        "use demos with instructions and --text.kind vocabulary, or drop the groups",
    )
    for name, keys in groups.items():
        for key in keys:
            require(
                key in widths,
                f"--encoder.groups {name!r}: the key {key!r} is not among the policy's keys: {', '.join(widths)}; "
                "add it to --data.obs_keys or drop it from the group",
            )
        if len({widths[key] for key in keys}) > 1:
            found = ", ".join(f"{key} {widths[key]}" for key in keys)
            raise ConfigError(f"--encoder.groups {name!r}: keys of one group must have one width, got {found}")
