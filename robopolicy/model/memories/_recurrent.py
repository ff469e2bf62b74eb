"""Shared parts of the memories `lstm` and `gru`."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from robopolicy.components import Options, option
from robopolicy.model.memories.base import StreamingMemory
from robopolicy.model.streaming import MemoryState, row_of_age, shift_in_zero

WEIGHTS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
"""The parameters of a layer, in torch's order."""


@dataclass(frozen=True)
class RecurrentOptions(Options):
    """Options of a recurrent memory."""

    window: int = option(8, ">= 1")
    """W, frames of memory."""
    history: Literal["window", "carry"] = "window"
    """window: the last W frames exactly; carry: one state for the whole episode."""
    layers: int = option(2, ">= 1")
    """Layers of the cell."""
    hidden: int = option(256, ">= 1")
    """H, width of the hidden vectors."""
    dropout: float = option(0.0, ">= 0 and < 1")
    """Probability of dropout between layers, in training."""


class RecurrentMemory(StreamingMemory, nn.RNNBase):
    """An LSTM or GRU over the last W frames, or over the whole episode; see `Memory`.

    Parameters are named, shaped and initialized as in `nn.LSTM` and `nn.GRU`, and the outputs are computed in the same way.
    """

    cell: ClassVar[Literal["lstm", "gru"]]

    def __init__(self, options: RecurrentOptions, width: int) -> None:
        dropout = options.dropout if options.layers > 1 else 0.0  # between layers
        super().__init__(self.cell.upper(), width, options.hidden, options.layers, batch_first=True, dropout=dropout)
        self.state_count = 2 if self.cell == "lstm" else 1
        """Number of tensors in a state: 2 for an LSTM (hidden and cell state), 1 for a GRU (hidden state)."""
        self.history, self.window, self.output_width = options.history, options.window, options.hidden

    def forward(self, pooled: Float[Tensor, "*batch window pooled"]) -> Float[Tensor, "*batch window hidden"]:
        """The hidden vector at every frame of a window, from a zero state.

        Raises:
            ValueError: there are more frames than the window holds.
        """
        self.require_window(pooled)
        return self.run(pooled)[0]

    def unroll(
        self, pooled: Float[Tensor, "*batch time pooled"], state: MemoryState
    ) -> tuple[Float[Tensor, "*batch time hidden"], MemoryState]:
        """See `Memory`."""
        if self.history == "window":
            return super().unroll(pooled, state)
        self.require_state(pooled.shape[:-2], state)
        hidden, tensors = self.run(pooled, state.tensors)
        age = (state.age + pooled.shape[-2]).clamp(max=self.window)
        return hidden, MemoryState(self.history, age, tensors)

    def step(
        self, frame: Float[Tensor, "*batch pooled"], state: MemoryState
    ) -> tuple[Float[Tensor, "*batch hidden"], MemoryState]:
        """See `Memory`; with a window all W staggered rows advance in one batched step on the newest frame."""
        self.require_state(frame.shape[:-1], state)
        age = (state.age + 1).clamp(max=self.window)
        if self.history == "carry":
            tensors = self.advance(frame, state.tensors)
            return tensors[0][-1], MemoryState(self.history, age, tensors)
        tensors = self.advance(frame[..., None, :], tuple(shift_in_zero(rows) for rows in state.tensors))
        return row_of_age(tensors[0][-1], age), MemoryState(self.history, age, tensors)

    def state_shapes(self, batch: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
        """Hidden (and an LSTM's cell) state: (layers, *B, W, H) with `window`, else (layers, *B, H)."""
        rows = (self.window,) if self.history == "window" else ()
        return ((self.num_layers, *batch, *rows, self.hidden_size),) * self.state_count

    def layer_weights(self, layer: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """weight_ih, weight_hh, bias_ih and bias_hh of one layer."""
        # By name: torch's own list of the weights misses parametrizations and `functional_call`.
        weight_ih, weight_hh, bias_ih, bias_hh = (getattr(self, f"{name}_l{layer}") for name in WEIGHTS)
        return weight_ih, weight_hh, bias_ih, bias_hh

    def run(self, frames: Tensor, state: tuple[Tensor, ...] | None = None) -> tuple[Tensor, tuple[Tensor, ...]]:
        """All frames (*B, T, P) one after another, from `state` (each (layers, *B, H)) or zero.

        Returns:
            The top layer's hidden vectors (*B, T, H), and the state after the last frame.
        """
        batch = frames.shape[:-2]
        flat = frames.reshape(-1, *frames.shape[-2:])
        if state is None:
            shape = (self.num_layers, len(flat), self.hidden_size)
            state = tuple(frames.new_zeros(shape) for _ in range(self.state_count))
        else:
            state = tuple(t.reshape(self.num_layers, -1, self.hidden_size) for t in state)
        weights = [weight for layer in range(self.num_layers) for weight in self.layer_weights(layer)]
        options = (weights, True, self.num_layers, self.dropout, self.training, False, True)
        if self.cell == "lstm":
            hidden, *final = torch.lstm(flat, state, *options)
        else:
            hidden, *final = torch.gru(flat, state[0], *options)
        final_state = tuple(t.reshape(self.num_layers, *batch, self.hidden_size) for t in final)
        return hidden.reshape(*batch, *hidden.shape[-2:]), final_state

    def advance(self, frame: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """One frame for every row of `state`, each tensor (layers, ..., H).

        `frame` (..., P) may be broadcast over the rows: its projection is computed once.
        """
        layers = []
        inputs = frame
        for layer in range(self.num_layers):
            update = lstm_update if self.cell == "lstm" else gru_update
            layers.append(update(inputs, tuple(t[layer] for t in state), *self.layer_weights(layer)))
            inputs = functional.dropout(layers[-1][0], self.dropout, self.training)
        return tuple(torch.stack(parts) for parts in zip(*layers, strict=True))


def lstm_update(
    inputs: Tensor, state: tuple[Tensor, ...], weight_ih: Tensor, weight_hh: Tensor, bias_ih: Tensor, bias_hh: Tensor
) -> tuple[Tensor, Tensor]:
    """One step of one LSTM layer, gates in the order i, f, g, o."""
    hidden, cell = state
    gates = functional.linear(inputs, weight_ih, bias_ih) + functional.linear(hidden, weight_hh, bias_hh)
    i, f, g, o = gates.chunk(4, dim=-1)
    cell = torch.sigmoid(f) * cell + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(cell), cell


def gru_update(
    inputs: Tensor, state: tuple[Tensor, ...], weight_ih: Tensor, weight_hh: Tensor, bias_ih: Tensor, bias_hh: Tensor
) -> tuple[Tensor]:
    """One step of one GRU layer, gates in the order r, z, n."""
    (hidden,) = state
    input_r, input_z, input_n = functional.linear(inputs, weight_ih, bias_ih).chunk(3, dim=-1)
    hidden_r, hidden_z, hidden_n = functional.linear(hidden, weight_hh, bias_hh).chunk(3, dim=-1)
    r, z = torch.sigmoid(input_r + hidden_r), torch.sigmoid(input_z + hidden_z)
    n = torch.tanh(input_n + r * hidden_n)
    return (n + z * (hidden - n),)
