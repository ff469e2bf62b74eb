"""A base class of memories: what follows from `step` and `state_shapes`."""

import torch
from torch import Tensor, nn

from robopolicy.model.streaming import History, MemoryState


class StreamingMemory(nn.Module):
    """A memory defined by `step` and `state_shapes`; see `Memory`. Subclasses set the three attributes.

    `forward` and `unroll` take frames one by one; a subclass that has a faster way overrides them.
    """

    history: History
    """See `Memory`."""
    window: int
    """See `Memory`."""
    output_width: int
    """See `Memory`."""

    def state_shapes(self, batch: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
        """See `Memory`."""
        raise NotImplementedError

    def step(self, frame: Tensor, state: MemoryState) -> tuple[Tensor, MemoryState]:
        """See `Memory`."""
        raise NotImplementedError

    def forward(self, pooled: Tensor) -> Tensor:
        """See `Memory`."""
        self.require_window(pooled)
        return self.unroll(pooled, self.initial_state(pooled.shape[:-2]))[0]

    def unroll(self, pooled: Tensor, state: MemoryState) -> tuple[Tensor, MemoryState]:
        """See `Memory`."""
        hidden = []
        for frame in pooled.unbind(dim=-2):
            latest, state = self.step(frame, state)
            hidden.append(latest)
        return torch.stack(hidden, dim=-2), state

    def initial_state(self, batch: tuple[int, ...]) -> MemoryState:
        """The state before the first frame, zeros on the device and in the dtype of the memory's weights."""
        weight = next(self.parameters(), torch.empty(0))  # a frozen copy has no parameters; it is on the CPU in float32
        age = torch.zeros(batch, dtype=torch.int64, device=weight.device)
        return MemoryState(self.history, age, tuple(weight.new_zeros(shape) for shape in self.state_shapes(batch)))

    def require_window(self, pooled: Tensor) -> None:
        """Refuse more frames (*B, T, P) than the memory's window with ValueError."""
        if self.history == "window" and pooled.shape[-2] > self.window:
            raise ValueError(
                f"{pooled.shape[-2]} frames in a window of {self.window}; "
                "cut windows from the pooled frames, or go through them with unroll"
            )

    def require_state(self, batch: torch.Size, state: MemoryState) -> None:
        """Refuse a state of another memory, or of other episodes than those (*B) that the frames belong to."""
        if torch.compiler.is_compiling():  # pyright: ignore[reportPrivateImportUsage]
            return  # sizes are symbols while a graph is traced
        if batch != state.age.shape:
            raise ValueError(
                f"frames of a batch {tuple(batch)}, but a state of {state.batch_shape} episodes; "
                "give initial_state the batch's shape"
            )
        expected = self.state_shapes(state.batch_shape)
        if tuple(t.shape for t in state.tensors) != expected:
            found = [tuple(t.shape) for t in state.tensors]
            raise ValueError(
                f"a state (history {state.history!r}) with tensors of shapes {found} is not of this memory; expected "
                f"history {self.history!r} with {list(expected)}; begin with the initial_state of the same head"
            )
