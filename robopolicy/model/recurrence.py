"""The memory: pooled frames -> hidden vectors, over a window in training and frame by frame on the robot.

A `Recurrence` is called in three ways that agree at every frame:

    forward(pooled)         (*B, W, P) -> (*B, W, H)              a window from a zero state: training
    unroll(pooled, state)   (*B, T, P), state -> (*B, T, H), state    frames that go on from a state: truncated BPTT
    step(frame, state)      (*B, P), state -> (*B, H), state          one frame: on the robot
"""

from typing import Literal, Protocol, TypeAlias

from jaxtyping import Float
from torch import Tensor, nn

from robopolicy.model.cells import RecurrentCell
from robopolicy.model.old_packed import Precision, packable, packed_cell
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
from robopolicy.model.transformer import FrameTransformer

CellKind: TypeAlias = Literal["lstm", "gru", "transformer", "none"]


class Recurrence(Protocol):
    """What every memory offers; `tests/conformance/test_recurrence.py` holds each one to it."""

    output_width: int
    """H, the width of the hidden vectors."""
    history: History
    """The last W frames, one state for the whole episode, or the present frame only."""
    window: int
    """W, frames of memory where `history` is `window`."""

    def __call__(self, pooled: Tensor) -> Tensor:
        """Hidden vectors (*B, W, H) of pooled frames (*B, W, P), from a zero state."""
        ...

    def unroll(self, pooled: Tensor, state: MemoryState) -> tuple[Tensor, MemoryState]:
        """Hidden vectors (*B, T, H) of pooled frames (*B, T, P) that follow on `state`, and the state after them."""
        ...

    def step(self, frame: Tensor, state: MemoryState) -> tuple[Tensor, MemoryState]:
        """The hidden vector (*B, H) of one pooled frame (*B, P) that follows on `state`, and the state after it."""
        ...

    def initial_state(self, batch: tuple[int, ...]) -> MemoryState:
        """The state of episodes that have seen nothing."""
        ...

    def state_shapes(self, batch: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
        """The shapes of a state's tensors; a state of other shapes is refused."""
        ...


def make_recurrence(
    cell: CellKind,
    history: History,
    width: int,
    hidden: int,
    *,
    layers: int,
    window: int,
    dropout: float = 0.0,
    heads: int = 8,
) -> "RecurrentMemory | FrameTransformer | FrameMemory":
    """The memory of this cell and history.

    Args:
        cell: `lstm`, `gru`, `transformer` or `none`.
        history: `window`, `carry` or `none`.
        width: P, the width of a pooled frame.
        hidden: H, the width of the hidden vectors.
        layers: layers of the cell.
        window: W, frames of memory of `history="window"`.
        dropout: probability, between layers.
        heads: attention heads of the transformer.

    Raises:
        ValueError: the cell is unknown, or has no state to carry.
    """
    if history not in ("window", "carry", "none"):
        raise ValueError(f"history {history!r} is not known; choose window, carry or none")
    if min(layers, window, hidden) < 1:
        raise ValueError(f"layers {layers}, window {window}, hidden {hidden}: each must be at least 1")
    if cell in ("transformer", "none") and history == "carry":
        raise ValueError(f"cell {cell!r} has no state to carry; use history window or none, or cell lstm or gru")
    if cell in ("lstm", "gru"):
        return RecurrentMemory(cell, history, width, hidden, layers=layers, window=window, dropout=dropout)
    if cell == "transformer":
        frames = window if history == "window" else 1
        return FrameTransformer(history, width, hidden, layers=layers, window=frames, dropout=dropout, heads=heads)
    if cell == "none":
        return FrameMemory(history, width, hidden, window=window)
    raise ValueError(f"cell {cell!r} is not known; choose lstm, gru, transformer or none")


class RecurrentMemory(RecurrentCell):
    """An LSTM or GRU over the last W frames, over the whole episode, or over the present frame alone."""

    def __init__(
        self,
        cell: Literal["lstm", "gru"],
        history: History,
        width: int,
        hidden: int,
        *,
        layers: int,
        window: int,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(cell, width, hidden, layers=layers, dropout=dropout)
        self.history: History = history
        self.window = window
        self.output_width = hidden
        self.precision: Precision = "float32"

    def forward(self, pooled: Float[Tensor, "*batch window pooled"]) -> Float[Tensor, "*batch window hidden"]:
        """Every frame of a window, from a zero state; with `history="none"` each frame by itself.

        Raises:
            ValueError: more frames than the window holds.
        """
        if self.history == "none":
            return self.run(pooled.unsqueeze(-2))[0].squeeze(-2)
        require_window(self, pooled)
        return self.run(pooled)[0]

    def unroll(
        self, pooled: Float[Tensor, "*batch time pooled"], state: MemoryState
    ) -> tuple[Float[Tensor, "*batch time hidden"], MemoryState]:
        """Frames that follow on `state`: what truncated BPTT trains, and what a stream would have answered."""
        require_state(self, pooled.shape[:-2], state)
        if self.history == "none":
            return self.forward(pooled), state
        if self.history == "window":
            return unroll_steps(self, pooled, state)
        hidden, tensors = self.run(pooled, state.tensors)
        age = (state.age + pooled.shape[-2]).clamp(max=self.window)
        return hidden, MemoryState(self.history, age, tensors)

    def step(
        self, frame: Float[Tensor, "*batch pooled"], state: MemoryState
    ) -> tuple[Float[Tensor, "*batch hidden"], MemoryState]:
        """One frame of running episodes."""
        require_state(self, frame.shape[:-1], state)
        if self.history == "none":
            return self.run(frame.unsqueeze(-2))[0].squeeze(-2), state
        age = (state.age + 1).clamp(max=self.window)
        staggered = self.history == "window"
        if packable(self) and not (self.training and self.dropout):
            tensors = packed_cell(self, self.precision).step(frame, state.tensors, staggered)
        elif staggered:
            tensors = self.advance(frame[..., None, :], tuple(shift_in_zero(rows) for rows in state.tensors))
        else:
            tensors = self.advance(frame, state.tensors)
        newest = tensors[0][-1]
        return row_of_age(newest, age) if staggered else newest, MemoryState(self.history, age, tensors)

    def initial_state(self, batch: tuple[int, ...]) -> MemoryState:
        """Zeros: (layers, *B, W, H) with `window`, (layers, *B, H) with `carry`, nothing with `none`."""
        return zero_state(self, batch, self.history)

    def state_shapes(self, batch: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
        """Of the state's tensors: hidden and cell state of an LSTM, the hidden state of a GRU, nothing without history."""
        if self.history == "none":
            return ()
        rows = (self.window,) if self.history == "window" else ()
        return ((self.num_layers, *batch, *rows, self.hidden_size),) * self.state_count


class FrameMemory(nn.Module):
    """No memory: a perceptron on the present frame, Linear(P, P/2) - ReLU - Linear(P/2, H) as RoboVLMs' `FCDecoder`."""

    def __init__(self, history: History, width: int, hidden: int, *, window: int) -> None:
        super().__init__()
        self.history: History = history
        self.window = window
        self.output_width = hidden
        self.mlp = nn.Sequential(nn.Linear(width, max(width // 2, 1)), nn.ReLU(), nn.Linear(max(width // 2, 1), hidden))

    def forward(self, pooled: Float[Tensor, "*batch window pooled"]) -> Float[Tensor, "*batch window hidden"]:
        """Each frame by itself."""
        require_window(self, pooled)
        return self.mlp(pooled)

    def unroll(
        self, pooled: Float[Tensor, "*batch time pooled"], state: MemoryState
    ) -> tuple[Float[Tensor, "*batch time hidden"], MemoryState]:
        """Each frame by itself."""
        require_state(self, pooled.shape[:-2], state)
        return self.mlp(pooled), state

    def step(
        self, frame: Float[Tensor, "*batch pooled"], state: MemoryState
    ) -> tuple[Float[Tensor, "*batch hidden"], MemoryState]:
        """The frame by itself."""
        require_state(self, frame.shape[:-1], state)
        return self.mlp(frame), state

    def initial_state(self, batch: tuple[int, ...]) -> MemoryState:
        """Nothing but the batch's shape."""
        return zero_state(self, batch, "none")

    def state_shapes(self, batch: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
        """There are no tensors."""
        return ()
