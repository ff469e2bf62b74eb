"""Learned queries attend to the tokens."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robopolicy.components import register
from robopolicy.model.poolings._attending import AttendingOptions, AttendingPooling, attend


@dataclass(frozen=True)
class AttentionOptions(AttendingOptions):
    """Options of the pooling `attention`."""


@register("pooling", "attention", AttentionOptions)
class AttentionPooling(AttendingPooling):
    """Learned queries, one per latent vector, attend to the tokens (multi-head, pre-norm); see `Pooling`."""

    def __init__(self, options: AttentionOptions, width: int) -> None:
        super().__init__(options, width)
        self.queries = nn.Parameter(torch.randn(options.latent, width) * width**-0.5)
        self.norm = nn.LayerNorm(width)
        self.key_value = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)

    def latent_vectors(self, tokens: Tensor, valid: Tensor | None) -> Tensor:
        """See `AttendingPooling`."""
        queries = self.queries.expand(tokens.shape[0], -1, -1)  # `len` would fix the batch size in an exported graph
        return self.out(attend(queries, self.key_value(self.norm(tokens)), self.heads, valid))
