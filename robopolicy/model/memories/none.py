"""No memory: an MLP maps each frame separately, as RoboVLMs' `FCDecoder` does."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor, nn

from robopolicy.components import Options, option, register
from robopolicy.model.memories.base import StreamingMemory
from robopolicy.model.streaming import MemoryState


@dataclass(frozen=True)
class NoMemoryOptions(Options):
    """Options of the memory `none`."""

    hidden: int = option(256, ">= 1")
    """H, width of the hidden vectors."""


@register("memory", "none", NoMemoryOptions)
class NoMemory(StreamingMemory):
    """Linear(P, P/2) - ReLU - Linear(P/2, H) on the current frame; see `Memory`."""

    def __init__(self, options: NoMemoryOptions, width: int) -> None:
        super().__init__()
        self.history, self.window, self.output_width = "none", 1, options.hidden
        inner = max(width // 2, 1)
        self.mlp = nn.Sequential(nn.Linear(width, inner), nn.ReLU(), nn.Linear(inner, options.hidden))

    def forward(self, pooled: Float[Tensor, "*batch time pooled"]) -> Float[Tensor, "*batch time hidden"]:
        """Each frame is mapped separately."""
        return self.mlp(pooled)

    def unroll(
        self, pooled: Float[Tensor, "*batch time pooled"], state: MemoryState
    ) -> tuple[Float[Tensor, "*batch time hidden"], MemoryState]:
        """See `Memory`."""
        self.require_state(pooled.shape[:-2], state)
        return self.mlp(pooled), state

    def step(
        self, frame: Float[Tensor, "*batch pooled"], state: MemoryState
    ) -> tuple[Float[Tensor, "*batch hidden"], MemoryState]:
        """See `Memory`."""
        self.require_state(frame.shape[:-1], state)
        return self.mlp(frame), state

    def state_shapes(self, batch: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
        """None: the state has no tensors."""
        return ()
