"""The memory `gated_lstm`: an MLP on the current frame, plus an LSTM over the past through a gate that starts closed."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from robopolicy.components import option, register
from robopolicy.model.memories._recurrent import RecurrentOptions
from robopolicy.model.memories.lstm import LSTMMemory, LSTMOptions
from robopolicy.model.streaming import MemoryState


@dataclass(frozen=True)
class GatedLSTMOptions(RecurrentOptions):
    """Options of the memory `gated_lstm`."""

    window: int = 10
    """W, frames of memory."""
    layers: int = 1
    """Layers of the LSTM."""
    recurrent: int = option(128, ">= 1")
    """Width of the LSTM; `hidden` is the width of the perceptron and of the hidden vectors."""


@register("memory", "gated_lstm", GatedLSTMOptions)
class GatedLSTM(nn.Module):
    """Hidden vectors are perceptron(frame) + gate * linear(LSTM); see `Memory`.

    The gate is one learned factor per column and starts at 0. So training starts with a memoryless policy, and opens the
    gate only where past frames lower the loss.
    """

    def __init__(self, options: GatedLSTMOptions, width: int) -> None:
        super().__init__()
        hidden = options.hidden
        self.output_width = hidden
        self.body = nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU())
        self.project = nn.Linear(width, options.recurrent)
        lstm = LSTMOptions(options.window, options.history, options.layers, options.recurrent, options.dropout)
        self.lstm = LSTMMemory(lstm, options.recurrent)
        self.history, self.window = self.lstm.history, self.lstm.window
        self.mix = nn.Linear(options.recurrent, hidden)
        self.gate = nn.Parameter(torch.zeros(hidden))

    def forward(self, pooled: Float[Tensor, "*batch window pooled"]) -> Float[Tensor, "*batch window hidden"]:
        """See `Memory`."""
        return self._join(pooled, self.lstm(self.project(pooled)))

    def unroll(
        self, pooled: Float[Tensor, "*batch time pooled"], state: MemoryState
    ) -> tuple[Float[Tensor, "*batch time hidden"], MemoryState]:
        """See `Memory`."""
        recalled, state = self.lstm.unroll(self.project(pooled), state)
        return self._join(pooled, recalled), state

    def step(
        self, frame: Float[Tensor, "*batch pooled"], state: MemoryState
    ) -> tuple[Float[Tensor, "*batch hidden"], MemoryState]:
        """See `Memory`."""
        recalled, state = self.lstm.step(self.project(frame), state)
        return self._join(frame, recalled), state

    def initial_state(self, batch: tuple[int, ...]) -> MemoryState:
        """The state of the LSTM."""
        return self.lstm.initial_state(batch)

    def state_shapes(self, batch: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
        """The shapes of the LSTM's state."""
        return self.lstm.state_shapes(batch)

    def _join(self, frames: Tensor, recalled: Tensor) -> Tensor:
        return self.body(frames) + self.gate * self.mix(recalled)
