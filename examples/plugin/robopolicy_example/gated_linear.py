"""The memory `gated_linear`: a gated linear recurrence whose state is a matrix for each head."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from robopolicy.components import Options, option, register, require
from robopolicy.model.memories.base import StreamingMemory
from robopolicy.model.streaming import MemoryState, row_of_age, shift_in_zero


@dataclass(frozen=True)
class GatedLinearOptions(Options):
    """Options of the memory `gated_linear`."""

    window: int = option(8, ">= 1")
    """W, frames of memory."""
    history: Literal["window", "carry"] = "window"
    """window: the last W frames exactly; carry: one state for the whole episode."""
    layers: int = option(1, ">= 1")
    """Recurrent layers."""
    hidden: int = option(128, ">= 1")
    """H, width of the hidden vectors; a multiple of `heads`."""
    heads: int = option(4, ">= 1")
    """State matrices of each layer, each H / heads square."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.hidden % self.heads == 0,
            f"--memory.hidden {self.hidden} must be a multiple of --memory.heads {self.heads}",
        )


@register("memory", "gated_linear", GatedLinearOptions)
class GatedLinear(StreamingMemory):
    """Layers of S <- f S + (1 - f) k v', read out as q' S; see `robopolicy.model.memories.Memory`.

    The state is (layers, *B, heads, d, d) with `carry`. With `window` it is (layers, *B, W, heads, d, d): row k has seen the
    last k+1 frames, so that the output is that of the recurrence from zero over the last W frames.
    """

    def __init__(self, options: GatedLinearOptions, width: int) -> None:
        super().__init__()
        self.history = options.history
        self.window = options.window
        self.output_width = options.hidden
        self.embed = nn.Linear(width, options.hidden)
        self.layers = nn.ModuleList(_Layer(options.hidden, options.heads) for _ in range(options.layers))
        self.norm = nn.LayerNorm(options.hidden)

    def forward(self, pooled: Tensor) -> Tensor:
        """Hidden vectors (*B, T, H) of pooled frames (*B, T, P), from a zero state: one row where `step` advances W."""
        self.require_window(pooled)
        matrices = pooled.new_zeros(self._shape(tuple(pooled.shape[:-2])))
        outputs = []
        for frame in pooled.unbind(dim=-2):
            hidden, matrices = self._advance(frame, matrices)
            outputs.append(hidden)
        return torch.stack(outputs, dim=-2)

    def step(self, frame: Tensor, state: MemoryState) -> tuple[Tensor, MemoryState]:
        """The hidden vector (*B, H) of one frame (*B, P), and the state after it."""
        self.require_state(frame.shape[:-1], state)
        age = (state.age + 1).clamp(max=self.window)
        if self.history == "carry":
            hidden, matrices = self._advance(frame, state.tensors[0])
        else:
            rows, matrices = self._advance(frame[..., None, :], shift_in_zero(state.tensors[0], row_axes=3))
            hidden = row_of_age(rows, age)
        return hidden, MemoryState(self.history, age, (matrices,))

    def state_shapes(self, batch: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
        """One tensor of matrices."""
        return (self._shape((*batch, self.window) if self.history == "window" else batch),)

    def _shape(self, lead: tuple[int, ...]) -> tuple[int, ...]:
        heads = self.layers[0].heads
        width = self.output_width // heads
        return (len(self.layers), *lead, heads, width, width)

    def _advance(self, frame: Tensor, matrices: Tensor) -> tuple[Tensor, Tensor]:
        """One frame (*B, P) through all layers: hidden vectors (*B, H), and the matrices after it."""
        hidden, after = self.embed(frame), []
        for layer, before in zip(self.layers, matrices, strict=True):
            hidden, matrix = layer(hidden, before)
            after.append(matrix)
        return self.norm(hidden), torch.stack(after)


class _Layer(nn.Module):
    """One recurrent layer, residual."""

    def __init__(self, hidden: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.project = nn.Linear(hidden, 3 * hidden + heads)
        self.out = nn.Linear(hidden, hidden)

    def forward(self, inputs: Tensor, matrix: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs (*B, H) and matrices (*B, heads, d, d) -> outputs (*B, H) and the matrices afterwards."""
        width = inputs.shape[-1]
        query, key, value, gate = self.project(inputs).split([width, width, width, self.heads], dim=-1)
        query, key, value = (part.unflatten(-1, (self.heads, -1)) for part in (query, key, value))
        keep = torch.sigmoid(gate + 2.0)[..., None, None]  # biased to remember
        # A key of length 1 and a convex mixture bound the state, however long the episode.
        written = functional.normalize(key, dim=-1)[..., :, None] * value[..., None, :]
        matrix = keep * matrix + (1 - keep) * written
        read = (query[..., None, :] @ matrix).flatten(-3)
        return inputs + self.out(read), matrix
