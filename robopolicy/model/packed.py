"""Frozen copies of memories and action heads, with weights laid out for the CPU's matrix units: streaming without gradients.

oneDNN multiplies a few rows by a weight matrix at more than twice the rate of `linear` if the matrix is stored in oneDNN's
blocked layout (see `PackedLinear`). `freeze` makes such a copy once; the copy does not follow later changes of the original.

The staggered rows of a window memory (W partial states per episode, one for each frame at which a window may begin) are
advanced in tiles, so that the products stay large for a batch of episodes, too. Compared with running each window again from
its frames, this is 1.26 times as fast at 64 episodes and 0.96 to 1.10 times as fast at 1024, and it does not store
frames (`eval/bench_head.py`).
"""

import copy
from typing import get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from robopolicy.model.memories._recurrent import RecurrentMemory
from robopolicy.model.memories.base import StreamingMemory
from robopolicy.model.packed_linear import PackedLinear, Precision
from robopolicy.model.streaming import MemoryState, row_of_age

TILE_ROWS = 256
"""Rows advanced together: few enough for their gates to stay in the cache, enough for full matrix speed."""
_PACKS = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")


def freeze(module: nn.Module, precision: Precision = "float32") -> nn.Module:
    """A copy of a memory or action head with the same interface, with packed weights and without gradients.

    The copy is in eval mode, has no trainable parameters and does not follow later changes of the original. If weights can't
    be packed (on a GPU, or a CPU without oneDNN) it is a plain copy, in float32 only.

    Args:
        module: a memory or an action head.
        precision: arithmetic of its matrix products: `float32` (equal to the original except for rounding), `bf16` or `int8`.

    Raises:
        ValueError: the precision is unknown, or this CPU or the module's device can't compute it.
    """
    require_precision(precision, module)
    if not _packable(module):
        return copy.deepcopy(module).eval().requires_grad_(False)
    return _pack(module, precision).eval()


def require_precision(precision: str, module: nn.Module | None = None) -> None:
    """Refuse a precision that is unknown or can't be computed here; see `freeze`."""
    if precision not in get_args(Precision):
        raise ValueError(f"precision {precision!r} is unknown; choose one of {', '.join(get_args(Precision))}")
    if precision == "bf16" and not bf16_runs():
        raise ValueError("precision bf16: this CPU has no instructions for bfloat16; use float32 or int8")
    if precision != "float32" and not (_PACKS if module is None else _packable(module)):
        raise ValueError(f"precision {precision} needs float32 weights on a CPU, and PyTorch with oneDNN; use float32")


def bf16_runs() -> bool:
    """Whether this CPU has instructions for bfloat16."""
    return _PACKS and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def _packable(module: nn.Module) -> bool:
    weight = next(module.parameters())
    return _PACKS and weight.device.type == "cpu" and weight.dtype == torch.float32


class FrozenRecurrent(StreamingMemory):
    """An LSTM or GRU memory with packed weights, which processes one frame at a time; see `Memory`."""

    def __init__(self, memory: RecurrentMemory, precision: Precision) -> None:
        super().__init__()
        self.history, self.window, self.output_width = memory.history, memory.window, memory.output_width
        self.state_count = memory.state_count
        self.precision = precision
        self.lstm = memory.cell == "lstm"
        self.layers = memory.num_layers
        self.input = nn.ModuleList()
        self.hidden = nn.ModuleList()
        for layer in range(self.layers):
            weight_ih, weight_hh, bias_ih, bias_hh = memory.layer_weights(layer)
            if self.lstm:
                weight_ih, weight_hh, bias_ih = (_scaled_g(w) for w in (weight_ih, weight_hh, bias_ih + bias_hh))
                bias_hh = None
            single = self.history == "carry" or self.window == 1
            # The first layer's inputs are frames: unbounded, unlike hidden states, and one per episode rather than per row.
            self.input.append(PackedLinear(weight_ih, bias_ih, precision, layer > 0, single or layer == 0))
            self.hidden.append(PackedLinear(weight_hh, bias_hh, precision, True, single))

    @torch.no_grad()
    def step(self, frame: Tensor, state: MemoryState) -> tuple[Tensor, MemoryState]:
        """See `Memory`."""
        self.require_state(frame.shape[:-1], state)
        staggered = self.history == "window"
        rows = self.window if staggered else 1
        old = [t.reshape(self.layers, -1, rows, self.output_width) for t in state.tensors]
        new = [torch.empty(t.shape) for t in old]
        frames = frame.reshape(-1, frame.shape[-1])
        episodes = max(1, TILE_ROWS // rows)
        if len(frames) <= episodes:
            self._advance_tile(frames, old, new)
        else:
            for start in range(0, len(frames), episodes):
                tile = slice(start, start + episodes)
                self._advance_tile(frames[tile], [t[:, tile] for t in old], [t[:, tile] for t in new])
        tensors = tuple(t.view(before.shape) for t, before in zip(new, state.tensors, strict=True))
        age = (state.age + 1).clamp(max=self.window)
        newest = tensors[0][-1]
        if staggered and age.numel() == 1:  # the same as `row_of_age`, with fewer torch calls
            newest = newest.select(-2, int(age) - 1).clone()
        elif staggered:
            newest = row_of_age(newest, age)
        return newest, MemoryState(self.history, age, tensors)

    def state_shapes(self, batch: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
        """See the original memory."""
        rows = (self.window,) if self.history == "window" else ()
        return ((self.layers, *batch, *rows, self.output_width),) * self.state_count

    def _advance_tile(self, frames: Tensor, old: list[Tensor], new: list[Tensor]) -> None:
        """Fill `new` (layers, episodes, rows, H) from `old`; staggered rows shift by one and row 0 starts from zero."""
        start = old
        if self.history == "window":
            start = [functional.pad(t, (0, 0, 1, -1)) for t in old]  # drops the oldest row, and puts a zero row first
        befores, afters = (zip(*(t.flatten(1, 2).unbind() for t in tensors), strict=True) for tensors in (start, new))
        below = frames
        for project, recur, before, after in zip(self.input, self.hidden, befores, afters, strict=True):
            inputs, shared = project(below), len(before[0]) // len(below)
            if not self.lstm:
                inputs = inputs.repeat_interleave(shared, dim=0) if 1 < len(inputs) < len(before[0]) else inputs
                _gru_into(inputs, recur(before[0]), before[0], after[0])
            elif 1 < len(inputs) < len(before[0]):  # all rows of an episode share the newest frame's projection
                gates = recur(before[0])
                gates.unflatten(0, (-1, shared)).add_(inputs[:, None])
                _lstm_into(gates, before[1], *after)
            else:
                _lstm_into(recur(before[0], plus=inputs), before[1], *after)
            below = after[0]


def _pack(module: nn.Module, precision: Precision) -> nn.Module:
    """A copy with its own weights, in which every LSTM, GRU and linear layer is packed."""
    if isinstance(module, RecurrentMemory):
        return FrozenRecurrent(module, precision)
    if type(module) is nn.Linear:
        return PackedLinear(module.weight, module.bias, precision)
    if module.__class__ is nn.Sequential and len(module._modules) == 1:
        return _pack(next(module.children()), precision)
    packed = copy.copy(module)
    packed._parameters = {
        name: None if weight is None else nn.Parameter(weight.detach().clone(), requires_grad=False)
        for name, weight in module._parameters.items()
    }
    packed._buffers = {name: None if t is None else t.detach().clone() for name, t in module._buffers.items()}
    packed._modules = {
        name: None if child is None else _pack(child, precision) for name, child in module._modules.items()
    }
    return packed


def _scaled_g(weight: Tensor) -> Tensor:
    """LSTM weights or biases with the rows of gate g multiplied by -2, so that one sigmoid serves all four gates.

    tanh(x) = 1 - 2 sigmoid(-2x), and torch's sigmoid is several times faster than its tanh.
    """
    i, f, g, o = weight.detach().chunk(4)
    return torch.cat([i, f, -2 * g, o])


def _lstm_into(gates: Tensor, cell_before: Tensor, hidden: Tensor, cell: Tensor) -> None:
    """Write the new hidden and cell state; `gates` (..., 4H), with gate g multiplied by -2, is overwritten."""
    i, f, g, o = gates.sigmoid_().chunk(4, dim=-1)
    torch.addcmul(i, i, g, value=-2, out=cell).addcmul_(f, cell_before)
    torch.mul(cell, -2, out=hidden).sigmoid_()
    torch.addcmul(o, o, hidden, value=-2, out=hidden)


def _gru_into(inputs: Tensor, recurrent: Tensor, before: Tensor, hidden: Tensor) -> None:
    """Write the new hidden state from the two projections (..., 3H); `recurrent` is overwritten."""
    width = before.shape[-1]
    r, z = recurrent[..., : 2 * width].add_(inputs[..., : 2 * width]).sigmoid_().chunk(2, dim=-1)
    n = torch.addcmul(inputs[..., 2 * width :], r, recurrent[..., 2 * width :]).tanh_()
    torch.sub(before, n, out=hidden).mul_(z).add_(n)
