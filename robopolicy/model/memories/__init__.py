"""Memories: they map pooled frames to hidden vectors, over a window in training and frame by frame on the robot.

`Cls(options, width)` builds a memory for pooled frames `width` = P columns wide. It is called in three ways that agree
at every frame:

    forward(pooled)         (*B, T, P) -> (*B, T, H)                  from a zero state: training on windows
    unroll(pooled, state)   (*B, T, P), state -> (*B, T, H), state    frames that continue from a state: truncated BPTT
    step(frame, state)      (*B, P), state -> (*B, H), state          one frame: on the robot

`robopolicy.testing.memory` checks this contract.
"""

from typing import Protocol, runtime_checkable

from torch import Tensor

from robopolicy.model.streaming import History, MemoryState


@runtime_checkable
class Memory(Protocol):
    """Interface of every memory, which is an `nn.Module`.

    The state is a value that the caller holds. Each of its tensors has shape (k, *B, ...): axis 0 belongs to the memory
    (its layers, or 1), then come the batch axes, then any axes of the memory's own. A matrix-valued state of `heads`
    matrices fits as (layers, *B, heads, d, d).
    """

    output_width: int
    """H, the width of the hidden vectors."""
    history: History
    """`window`: the last W frames exactly; `carry`: one state for the whole episode; `none`: the current frame only."""
    window: int
    """W, the frames of one window; 1 where `history` is `none`."""

    def __call__(self, pooled: Tensor) -> Tensor:
        """Hidden vectors (*B, T, H) of pooled frames (*B, T, P) from a zero state.

        Raises:
            ValueError: T > W with `history` `window`.
        """
        ...

    def unroll(self, pooled: Tensor, state: MemoryState) -> tuple[Tensor, MemoryState]:
        """Hidden vectors (*B, T, H) of pooled frames (*B, T, P) that continue from `state`, and the state after them.

        Raises:
            ValueError: the state belongs to another memory, or to a batch of another shape.
        """
        ...

    def step(self, frame: Tensor, state: MemoryState) -> tuple[Tensor, MemoryState]:
        """The hidden vector (*B, H) of one pooled frame (*B, P) that continues from `state`, and the state after it.

        `state` itself is not changed. Raises the same errors as `unroll`.
        """
        ...

    def initial_state(self, batch: tuple[int, ...]) -> MemoryState:
        """The state of a batch of episodes (any number of axes) that have not seen a frame."""
        ...

    def state_shapes(self, batch: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
        """The shapes of a state's tensors; a state with other shapes is refused."""
        ...
