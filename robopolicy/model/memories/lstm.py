"""A long short-term memory (Hochreiter and Schmidhuber 1997) of several layers; parameters and outputs as in `nn.LSTM`."""

from dataclasses import dataclass

from robopolicy.components import register
from robopolicy.model.memories._recurrent import RecurrentMemory, RecurrentOptions


@dataclass(frozen=True)
class LSTMOptions(RecurrentOptions):
    """Options of the memory `lstm`."""


@register("memory", "lstm", LSTMOptions)
class LSTMMemory(RecurrentMemory):
    """An LSTM over the last W frames, or over the whole episode."""

    cell = "lstm"
