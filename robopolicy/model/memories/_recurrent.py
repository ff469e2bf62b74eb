"""Shared parts of the kinds `lstm` and `gru`."""

from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from robopolicy.components import expect
from robopolicy.model.cells import RecurrentCell
from robopolicy.model.streaming import (
    History,
    MemoryState,
    require_state,
    require_window,
    row_of_age,
    shift_in_zero,
    unroll_steps,
    zero_state,
)


@dataclass(frozen=True)
class RecurrentOptions:
    """Options of a recurrent memory."""

    window: int = 8
    """W, frames of memory."""
    history: Literal["window", "carry"] = "window"
    """window: the last W frames exactly; carry: one state for the whole episode."""
    layers: int = 2
    """Layers of the cell."""
    hidden: int = 256
    """H, width of the hidden vectors."""
    dropout: float = 0.0
    """Probability of dropout between layers, in training."""

    def __post_init__(self) -> None:
        expect(self, "memory", ">= 1", "window", "layers", "hidden")
        expect(self, "memory", ">= 0 and < 1", "dropout")


class RecurrentMemory(RecurrentCell):
    """An LSTM or GRU over the last W frames, or over the whole episode; see `Memory`."""

    def __init__(self, cell: Literal["lstm", "gru"], options: RecurrentOptions, width: int) -> None:
        super().__init__(cell, width, options.hidden, layers=options.layers, dropout=options.dropout)
        self.history: History = options.history
        self.window = options.window
        self.output_width = options.hidden

    def forward(self, pooled: Float[Tensor, "*batch window pooled"]) -> Float[Tensor, "*batch window hidden"]:
        """The hidden vector at every frame of a window, from a zero state.

        Raises:
            ValueError: there are more frames than the window holds.
        """
        require_window(self, pooled)
        return self.run(pooled)[0]

    def unroll(
        self, pooled: Float[Tensor, "*batch time pooled"], state: MemoryState
    ) -> tuple[Float[Tensor, "*batch time hidden"], MemoryState]:
        """See `Memory`."""
        require_state(self, pooled.shape[:-2], state)
        if self.history == "window":
            return unroll_steps(self, pooled, state)
        hidden, tensors = self.run(pooled, state.tensors)
        age = (state.age + pooled.shape[-2]).clamp(max=self.window)
        return hidden, MemoryState(self.history, age, tensors)

    def step(
        self, frame: Float[Tensor, "*batch pooled"], state: MemoryState
    ) -> tuple[Float[Tensor, "*batch hidden"], MemoryState]:
        """See `Memory`; with a window all W staggered rows advance in one batched step on the newest frame."""
        require_state(self, frame.shape[:-1], state)
        age = (state.age + 1).clamp(max=self.window)
        if self.history == "carry":
            tensors = self.advance(frame, state.tensors)
            return tensors[0][-1], MemoryState(self.history, age, tensors)
        tensors = self.advance(frame[..., None, :], tuple(shift_in_zero(rows) for rows in state.tensors))
        return row_of_age(tensors[0][-1], age), MemoryState(self.history, age, tensors)

    def initial_state(self, batch: tuple[int, ...]) -> MemoryState:
        """Zeros: (layers, *B, W, H) with `window`, (layers, *B, H) with `carry`."""
        return zero_state(self, batch, self.history)

    def state_shapes(self, batch: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
        """Hidden and cell state of an LSTM, the hidden state of a GRU."""
        rows = (self.window,) if self.history == "window" else ()
        return ((self.num_layers, *batch, *rows, self.hidden_size),) * self.state_count
