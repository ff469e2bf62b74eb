"""A causal transformer over the window's frames, as GPT-2 is built (Radford et al. 2019): the `transformer` cell.

Its state is the last W pooled frames; a tick is one parallel pass over them. A key-value cache that slides would not
be the window pass: deeper layers' keys would still hold what fell out of the window, and positions would be off.
"""

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from robopolicy.model.streaming import History, MemoryState, require_state, require_window, unroll_steps, zero_state


class FrameTransformer(nn.Module):
    """Pre-normalized blocks with learned positions, counted from the oldest frame in the window."""

    def __init__(
        self,
        history: History,
        width: int,
        hidden: int,
        *,
        layers: int,
        window: int,
        dropout: float = 0.0,
        heads: int = 8,
    ) -> None:
        super().__init__()
        if heads < 1 or hidden % heads:
            raise ValueError(
                f"{heads} attention heads do not divide the hidden width {hidden}; give a multiple, or other heads"
            )
        self.history: History = history
        self.window = window
        self.width = width
        self.output_width = hidden
        self.embed = nn.Linear(width, hidden)
        self.positions = nn.Parameter(0.02 * torch.randn(window, hidden))
        self.blocks = nn.ModuleList(_Block(hidden, heads, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(hidden)

    def forward(self, pooled: Float[Tensor, "*batch window pooled"]) -> Float[Tensor, "*batch window hidden"]:
        """Every frame of a window, each seeing those before it; with `history="none"` each frame by itself.

        Raises:
            ValueError: more frames than the window holds.
        """
        if self.history == "none":
            return self._attend(pooled.unsqueeze(-2), None).squeeze(-2)
        require_window(self, pooled)
        return self._attend(pooled, None)

    def unroll(
        self, pooled: Float[Tensor, "*batch time pooled"], state: MemoryState
    ) -> tuple[Float[Tensor, "*batch time hidden"], MemoryState]:
        """Frames that follow on `state`."""
        require_state(self, pooled.shape[:-2], state)
        if self.history == "none":
            return self.forward(pooled), state
        return unroll_steps(self, pooled, state)

    def step(
        self, frame: Float[Tensor, "*batch pooled"], state: MemoryState
    ) -> tuple[Float[Tensor, "*batch hidden"], MemoryState]:
        """One frame of running episodes: a pass over the frames that the window then holds."""
        require_state(self, frame.shape[:-1], state)
        if self.history == "none":
            return self._attend(frame.unsqueeze(-2), None).squeeze(-2), state
        age = (state.age + 1).clamp(max=self.window)
        frames = torch.cat([state.tensors[0][0][..., 1:, :], frame.unsqueeze(-2)], dim=-2)
        hidden = self._attend(frames, age)[..., -1, :]
        return hidden, MemoryState(self.history, age, (frames.unsqueeze(0),))

    def initial_state(self, batch: tuple[int, ...]) -> MemoryState:
        """An empty window: frames (1, *B, W, P), newest last, of which the last `age` are real."""
        return zero_state(self, batch, self.history)

    def state_shapes(self, batch: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
        """Of the state's tensors: one, or none without history."""
        return () if self.history == "none" else ((1, *batch, self.window, self.width),)

    def _attend(self, frames: Tensor, age: Tensor | None) -> Tensor:
        """A pass over frames (*B, T, P), of which the last `age` (*B) count; None: all."""
        batch, count = frames.shape[:-2], frames.shape[-2]
        place = torch.arange(count, device=frames.device)
        seen = place[:, None] >= place
        if age is None:
            positions = self.positions[:count]
        else:
            first = (count - age).reshape(-1, 1)
            real = place >= first
            frames = frames.masked_fill(~real.reshape(*batch, count, 1), 0.0)
            positions = self.positions[(place - first).clamp(min=0)]
            seen = (seen & real[:, None, :]) | (place[:, None] == place)
        hidden = self.embed(frames.reshape(-1, *frames.shape[-2:])) + positions
        for block in self.blocks:
            hidden = block(hidden, seen if seen.ndim == 2 else seen[:, None])
        return self.norm(hidden).reshape(*batch, count, self.output_width)


class _Block(nn.Module):
    """Causal self-attention and a perceptron, both residual."""

    def __init__(self, hidden: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.norm_1 = nn.LayerNorm(hidden)
        self.qkv = nn.Linear(hidden, 3 * hidden)
        self.out = nn.Linear(hidden, hidden)
        self.norm_2 = nn.LayerNorm(hidden)
        self.mlp = nn.Sequential(nn.Linear(hidden, 4 * hidden), nn.GELU("tanh"), nn.Linear(4 * hidden, hidden))
        self.dropout = nn.Dropout(dropout)

    def forward(self, hidden: Tensor, seen: Tensor) -> Tensor:
        q, k, v = rearrange(self.qkv(self.norm_1(hidden)), "b t (three h d) -> three b h t d", three=3, h=self.heads)
        attended = functional.scaled_dot_product_attention(q, k, v, attn_mask=seen)
        hidden = hidden + self.dropout(self.out(rearrange(attended, "b h t d -> b t (h d)")))
        return hidden + self.dropout(self.mlp(self.norm_2(hidden)))
