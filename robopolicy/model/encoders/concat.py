"""The encoder `concat`: the low-dimensional keys, concatenated, through one MLP to one token."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from robopolicy.components import Options, option, register, require
from robopolicy.model.encoders.base import EncoderInputs, Encoding, TokenEncoder, perceptron, with_sentence
from robopolicy.model.statistics import Statistics
from robopolicy.model.texts import TextTokens

LOG = logging.getLogger(__name__)

PAIRS_PER_COLUMN = 4
"""Largest number of differences, as a multiple of the number of columns."""
LARGEST_RATIO = 3.0
"""Largest ratio of the standard deviations of two columns whose difference is taken."""


@dataclass(frozen=True)
class ConcatOptions(Options):
    """Options of the encoder `concat`."""

    width: int = option(256, ">= 1")
    """D, width of the token."""
    hidden: int = option(256, ">= 1")
    """Width of the hidden layers."""
    layers: int = option(2, ">= 1")
    """Linear layers, with ReLU between them."""
    differences: bool = False
    """Whether differences of columns with similar mean and spread, such as two positions along one axis, are also inputs."""

    default_text: ClassVar[str] = "vocabulary"


@register("encoder", "concat", ConcatOptions)
class ConcatEncoder(TokenEncoder):
    """All keys and the sentence vector, concatenated, through one MLP: the usual baseline of behavior cloning.

    There is one token, also with the instruction, so that every pooling passes it on unchanged. Constant columns need no
    special treatment: normalization maps them to 0.

    With `differences`, differences of columns are inputs too. The next action often depends on the position of the hand
    relative to the object and of the object relative to the goal, which a network does not learn from few demos of absolute
    positions.
    """

    differences: Tensor

    def __init__(self, options: ConcatOptions, inputs: EncoderInputs) -> None:
        super().__init__()
        inputs.refuse_cameras("concat")
        inputs.refuse_tokens("concat")
        widths = inputs.key_widths
        require(widths, "--encoder.kind concat needs at least one low-dimensional key; give --data.obs_keys")
        self.keys = tuple(widths)
        columns = sum(widths.values())
        pairs = min(PAIRS_PER_COLUMN * columns, columns * (columns - 1) // 2) if options.differences else 0
        self.register_buffer("differences", torch.zeros(pairs, columns) if pairs else None)
        if pairs and inputs.statistics is not None:
            statistics = [inputs.statistics[key] for key in self.keys]
            unit = torch.cat([inputs.units[key] for key in self.keys])
            self.differences.copy_(differences_of_similar(statistics, unit, pairs))
            used = int(self.differences.any(dim=1).sum())
            LOG.info("encoder   %d differences of columns with similar mean and spread are also inputs", used)
        columns += pairs + (inputs.text_width or 0)
        self.mlp = perceptron(columns, *[options.hidden] * (options.layers - 1), options.width)
        self.token_width, self.token_count = options.width, 1

    def forward(self, obs: Mapping[str, Tensor], text: TextTokens | None) -> Encoding:
        """See `TokenEncoder`."""
        values = torch.cat([obs[key] for key in self.keys], dim=-1)
        if self.differences is not None:
            values = torch.cat([values, functional.linear(values, self.differences)], dim=-1)
        return Encoding(self.mlp(with_sentence(values, text))[..., None, :], None, predictions={})


def differences_of_similar(statistics: Sequence[Statistics], unit: Tensor, count: int) -> Tensor:
    """Rows (count, d) that map the normalized columns to differences in the demos' units, each scaled to a variance of about 1.

    Two columns are similar if neither is constant, their standard deviations are within a factor of 3, and their means are at
    most the sum of their standard deviations apart. The `count` most similar pairs are used; unused rows are 0.

    Args:
        statistics: statistics of each key, in the order of their columns.
        unit: (d,) size of a change by 1 in each normalized column, in the demos' units.
        count: number of rows.
    """
    mean, std, constant = (
        torch.from_numpy(np.concatenate([getattr(each, name) for each in statistics]))
        for name in ("mean", "std", "constant")
    )
    std = std.masked_fill(constant, torch.nan)
    apart = (mean[:, None] - mean).abs() / (std[:, None] + std)
    unlike = torch.maximum(apart, torch.maximum(std[:, None] / std, std / std[:, None]) / LARGEST_RATIO)
    first, second = torch.tril_indices(len(std), len(std), -1)
    order = unlike[first, second].nan_to_num(torch.inf).argsort(stable=True)[:count]
    order = order[unlike[first, second][order] < 1]
    first, second, row = first[order], second[order], torch.arange(len(order))
    rows = torch.zeros(count, len(std))
    spread = (std[first] ** 2 + std[second] ** 2).sqrt().float()
    rows[row, first], rows[row, second] = unit[first] / spread, -unit[second] / spread
    return rows
