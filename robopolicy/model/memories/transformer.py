"""A causal transformer over the window's frames, with GPT-2's architecture (Radford et al. 2019)."""

from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from robopolicy.components import Options, option, register, require
from robopolicy.model.memories.base import StreamingMemory
from robopolicy.model.streaming import MemoryState


@dataclass(frozen=True)
class TransformerOptions(Options):
    """Options of the memory `transformer`."""

    window: int = option(8, ">= 1")
    """W, frames of memory."""
    layers: int = option(2, ">= 1")
    """Blocks of attention and perceptron."""
    hidden: int = option(256, ">= 1")
    """H, width of the hidden vectors; a multiple of `heads`."""
    dropout: float = option(0.0, ">= 0 and < 1")
    """Probability of dropout after each attention and perceptron, in training."""
    heads: int = option(8, ">= 1")
    """Attention heads."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.hidden % self.heads == 0,
            f"--memory.hidden {self.hidden} must be a multiple of --memory.heads {self.heads}",
        )


@register("memory", "transformer", TransformerOptions)
class TransformerMemory(StreamingMemory):
    """Pre-norm blocks with learned position embeddings, counted from the oldest frame in the window; see `Memory`.

    The state is the last W pooled frames, and a step is one parallel pass over them. A sliding key-value cache would be
    faster but would not give the output of the window pass: the deeper layers' keys would still depend on frames that
    have left the window, and positions would be off.
    """

    def __init__(self, options: TransformerOptions, width: int) -> None:
        super().__init__()
        hidden = options.hidden
        self.history, self.window, self.output_width = "window", options.window, hidden
        self.width = width
        self.embed = nn.Linear(width, hidden)
        self.positions = nn.Parameter(0.02 * torch.randn(options.window, hidden))
        self.blocks = nn.ModuleList(_Block(options) for _ in range(options.layers))
        self.norm = nn.LayerNorm(hidden)

    def forward(self, pooled: Float[Tensor, "*batch window pooled"]) -> Float[Tensor, "*batch window hidden"]:
        """The hidden vector at every frame of a window; each frame attends to itself and those before it.

        Raises:
            ValueError: there are more frames than the window holds.
        """
        self.require_window(pooled)
        return self._attend(pooled, None)

    def step(
        self, frame: Float[Tensor, "*batch pooled"], state: MemoryState
    ) -> tuple[Float[Tensor, "*batch hidden"], MemoryState]:
        """See `Memory`; one pass over the window, which includes the new frame."""
        self.require_state(frame.shape[:-1], state)
        age = (state.age + 1).clamp(max=self.window)
        frames = torch.cat([state.tensors[0][0][..., 1:, :], frame.unsqueeze(-2)], dim=-2)
        hidden = self._attend(frames, age)[..., -1, :]
        return hidden, MemoryState(self.history, age, (frames.unsqueeze(0),))

    def state_shapes(self, batch: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
        """The window's frames (1, *B, W, P), newest last, of which the last `age` are real."""
        return ((1, *batch, self.window, self.width),)

    def _attend(self, frames: Tensor, age: Tensor | None) -> Tensor:
        """A pass over frames (*B, T, P), of which the last `age` (*B) are real; None: all are."""
        batch, count = frames.shape[:-2], frames.shape[-2]
        place = torch.arange(count, device=frames.device)
        visible = place[:, None] >= place
        if age is None:
            positions = self.positions[:count]
        else:
            first = (count - age).reshape(-1, 1)
            real = place >= first
            # Rows from before the episode may hold anything, NaN included, and attention weights of 0 don't stop a NaN.
            frames = frames.masked_fill(~real.reshape(*batch, count, 1), 0.0)
            positions = self.positions[(place - first).clamp(min=0)]
            # Frames that are not real attend to themselves: a softmax over nothing would be NaN.
            visible = (visible & real[:, None, :]) | (place[:, None] == place)
        hidden = self.embed(frames.reshape(-1, *frames.shape[-2:])) + positions
        for block in self.blocks:
            hidden = block(hidden, visible if visible.ndim == 2 else visible[:, None])
        return self.norm(hidden).reshape(*batch, count, self.output_width)


class _Block(nn.Module):
    """Causal self-attention, then an MLP, both residual and pre-norm."""

    def __init__(self, options: TransformerOptions) -> None:
        super().__init__()
        hidden = options.hidden
        self.heads = options.heads
        self.norm_1 = nn.LayerNorm(hidden)
        self.qkv = nn.Linear(hidden, 3 * hidden)
        self.out = nn.Linear(hidden, hidden)
        self.norm_2 = nn.LayerNorm(hidden)
        self.mlp = nn.Sequential(nn.Linear(hidden, 4 * hidden), nn.GELU("tanh"), nn.Linear(4 * hidden, hidden))
        self.dropout = nn.Dropout(options.dropout)

    def forward(self, hidden: Tensor, visible: Tensor) -> Tensor:
        q, k, v = rearrange(self.qkv(self.norm_1(hidden)), "b t (three h d) -> three b h t d", three=3, h=self.heads)
        attended = functional.scaled_dot_product_attention(q, k, v, attn_mask=visible)
        hidden = hidden + self.dropout(self.out(rearrange(attended, "b h t d -> b t (h d)")))
        return hidden + self.dropout(self.mlp(self.norm_2(hidden)))
