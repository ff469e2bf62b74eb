"""Multi-layer LSTM and GRU cells with the parameters and the arithmetic of torch's own."""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

WEIGHTS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
"""The parameters of a layer, in torch's order."""


class RecurrentCell(nn.RNNBase):
    """`layers` of LSTM or GRU; parameters are named, shaped and initialized as those of `nn.LSTM` and `nn.GRU`."""

    def __init__(
        self, cell: Literal["lstm", "gru"], width: int, hidden: int, *, layers: int, dropout: float = 0.0
    ) -> None:
        between_layers = dropout if layers > 1 else 0.0
        super().__init__(cell.upper(), width, hidden, num_layers=layers, batch_first=True, dropout=between_layers)
        self.cell = cell

    @property
    def state_count(self) -> int:
        """Tensors of a state: hidden and cell state of an LSTM, the hidden state of a GRU."""
        return 2 if self.cell == "lstm" else 1

    def layer_weights(self, layer: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """weight_ih, weight_hh, bias_ih and bias_hh of one layer."""
        # By name: torch's own list of the weights misses parametrizations and `functional_call`.
        weight_ih, weight_hh, bias_ih, bias_hh = (getattr(self, f"{name}_l{layer}") for name in WEIGHTS)
        return weight_ih, weight_hh, bias_ih, bias_hh

    def _weights(self) -> list[Tensor]:
        return [weight for layer in range(self.num_layers) for weight in self.layer_weights(layer)]

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
        options = (self._weights(), True, self.num_layers, self.dropout, self.training, False, True)
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
