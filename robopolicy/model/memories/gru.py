"""Gated recurrent units (Cho et al. 2014) in several layers, with the parameters and outputs of `nn.GRU`."""

from dataclasses import dataclass

from robopolicy.components import register
from robopolicy.model.memories._recurrent import RecurrentMemory, RecurrentOptions


@dataclass(frozen=True)
class GRUOptions(RecurrentOptions):
    """Options of the memory `gru`."""


@register("memory", "gru", GRUOptions)
class GRUMemory(RecurrentMemory):
    """A GRU over the last W frames, or over the whole episode."""

    cell = "gru"
