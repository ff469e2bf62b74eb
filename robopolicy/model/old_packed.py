"""Weights laid out for the CPU's matrix units, for streaming without gradients.

oneDNN multiplies a few rows by a weight matrix at more than twice the rate of `linear` once the matrix is stored in its own
blocked order. Such copies are made when they are first needed and made anew when the weights have changed; nothing of this
is seen outside, and no module holds it.

Staggered rows are advanced in tiles, so that a batch of episodes runs at the rate of large products too. Against running
the windows again it took 1.26 times less time at 64 episodes, and between 0.96 and 1.10 times at 1024; it needs no frames
kept (`eval/bench_head.py`).
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Generic, Literal, TypeAlias, TypeVar
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from robopolicy.model.cells import RecurrentCell

Precision: TypeAlias = Literal["float32", "bf16", "int8"]

TILE_ROWS = 256
"""Rows advanced together: few enough for their gates to stay in the cache, enough for full matrix speed."""
PACKED_ROWS = 16
"""The row count that oneDNN lays a matrix out for; laid out for a single row it is slower, even for a single row."""
FLOAT32_SIZE = 1 << 16
"""Matrices of fewer entries stay float32 at any precision: they cost next to nothing, and one of them is the output."""
_PACKS = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")


def packable(module: nn.Module) -> bool:
    """True where the packed path may stand in for the module: on the CPU, in float32, with no gradient or graph to record."""
    tracing = torch.compiler.is_compiling() or torch.jit.is_tracing()  # pyright: ignore[reportPrivateImportUsage]
    if torch.is_grad_enabled() or tracing or torch.is_autocast_enabled("cpu"):
        return False
    weight = next(module.parameters())
    return weight.device.type == "cpu" and weight.dtype == torch.float32 and _PACKS


def bf16_runs() -> bool:
    """True where this CPU has instructions for bfloat16."""
    return _PACKS and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def unbounded(precision: Precision) -> Precision:
    """What `precision` means for inputs that aren't bounded as hidden states are: `int8` is bfloat16 there, where that runs."""
    if precision == "int8":
        return "bf16" if bf16_runs() else "float32"
    return precision


class PackedLinear(nn.Module):
    """x W^T + b in float32, from a packed copy of W.

    `bf16` rounds W, x and the result to 8 bits of mantissa; `int8` rounds W to 8 bits with a scale per row of it, and x,
    which must lie in [-1, 1] as hidden states do, to steps of 1/127.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, precision: Precision) -> None:
        super().__init__()
        self.precision: Precision = precision if weight.numel() >= FLOAT32_SIZE else "float32"
        weight = weight.detach().contiguous()
        self.outputs = len(weight)
        self.bias = None if bias is None else bias.detach().clone()
        if self.precision == "int8":
            self.scale = (weight.abs().amax(dim=1) / 127).clamp(min=1e-12)
            self.zero = torch.zeros(len(weight), dtype=torch.int32)
            rounded = (weight / self.scale[:, None]).round().to(torch.int8)
            self.weight = torch.ops.onednn.qlinear_prepack(rounded, [PACKED_ROWS, weight.shape[1]])
        else:
            dtype = torch.float32 if self.precision == "float32" else torch.bfloat16
            self.bias = None if self.bias is None else self.bias.to(dtype)
            self.weight = torch.ops.mkldnn._reorder_linear_weight(weight.to(dtype), PACKED_ROWS)

    def forward(self, rows: Tensor, plus: Tensor | None = None) -> Tensor:
        """Rows x W^T + b, of rows (..., in), added to `plus` (rows, out), whose memory may be used up."""
        if rows.ndim != 2:
            return self.forward(rows.reshape(-1, rows.shape[-1]), plus).reshape(*rows.shape[:-1], self.outputs)
        if self.precision == "int8":
            result = self._int8(rows, plus)
        elif self.precision == "bf16":
            result = torch.ops.mkldnn._linear_pointwise(rows.bfloat16(), self.weight, self.bias, "none", [], "").float()
            result = result if plus is None else result.add_(plus)
        elif plus is not None and self.bias is None:
            result = torch.ops.mkldnn._linear_pointwise.binary(rows, plus, self.weight, None, "add")
        else:
            result = torch.ops.mkldnn._linear_pointwise(rows, self.weight, self.bias, "none", [], "")
            result = result if plus is None else result.add_(plus)
        return result

    def _int8(self, rows: Tensor, plus: Tensor | None) -> Tensor:
        steps = (rows * 127).add_(128.5).to(torch.uint8)
        operands = (steps, 1 / 127, 128, self.weight, self.scale, self.zero)
        if plus is None:
            return torch.ops.onednn.qlinear_pointwise(*operands, self.bias, 1.0, 0, torch.float32, "none", [], "")
        return torch.ops.onednn.qlinear_pointwise.binary(
            *operands, plus, self.bias, 1.0, 0, torch.float32, 1.0, 0, "sum", 1.0, "none", [], ""
        )


class PackedCell:
    """A `RecurrentCell` that advances staggered or single rows from packed weights."""

    def __init__(self, cell: RecurrentCell, precision: Precision) -> None:
        self.lstm = cell.cell == "lstm"
        self.layers = cell.num_layers
        # Frames aren't bounded as hidden states are, and episodes must not share a scale.
        frame_precision = unbounded(precision)
        self.input: list[PackedLinear] = []
        self.hidden: list[PackedLinear] = []
        for layer in range(self.layers):
            weight_ih, weight_hh, bias_ih, bias_hh = cell.layer_weights(layer)
            if self.lstm:
                weight_ih, weight_hh, bias_ih = (_double_g(w) for w in (weight_ih, weight_hh, bias_ih + bias_hh))
                bias_hh = None
            self.input.append(PackedLinear(weight_ih, bias_ih, precision if layer else frame_precision))
            self.hidden.append(PackedLinear(weight_hh, bias_hh, precision))

    def step(self, frames: Tensor, state: Sequence[Tensor], staggered: bool) -> tuple[Tensor, ...]:
        """One frame (*B, P) for each episode of a state, each tensor (layers, *B, H), or staggered (layers, *B, W, H).

        Staggered rows are shifted by one and start from zero in row 0.
        """
        rows = state[0].shape[-2] if staggered else 1
        old = [t.reshape(self.layers, -1, rows, t.shape[-1]) for t in state]
        new = [torch.empty(t.shape) for t in old]
        frames = frames.reshape(-1, frames.shape[-1])
        episodes = max(1, TILE_ROWS // rows)
        for start in range(0, len(frames), episodes):
            tile = slice(start, start + episodes)
            self._advance_tile(frames[tile], [t[:, tile] for t in old], [t[:, tile] for t in new], staggered)
        return tuple(t.view(before.shape) for t, before in zip(new, state, strict=True))

    def _advance_tile(self, frames: Tensor, old: list[Tensor], new: list[Tensor], staggered: bool) -> None:
        """Fill `new` (layers, episodes, rows, H) from `old`."""
        start = [_shifted(t) for t in old] if staggered else old
        below = frames
        for layer in range(self.layers):
            before = [t[layer] for t in start]
            after = [t[layer] for t in new]
            shape = (*before[0].shape[:-1], -1)
            rows = before[0].flatten(0, 1)
            inputs = self.input[layer](below)
            if not self.lstm:
                inputs = inputs[:, None] if layer == 0 else inputs.view(shape)
                _gru_into(inputs, self.hidden[layer](rows).view(shape), before[0], after[0])
            elif layer == 0:  # all rows of an episode share the newest frame's projection
                _lstm_into(self.hidden[0](rows).view(shape).add_(inputs[:, None]), before[1], *after)
            else:
                _lstm_into(self.hidden[layer](rows, plus=inputs).view(shape), before[1], *after)
            below = after[0].flatten(0, 1)


class _Fingerprint:
    """Tells whether the parameters of some modules are still those that were packed.

    Compares identity, memory and torch's counter of in-place changes. Writing through `parameter.data`, as some weight
    averaging does, moves no counter, so a few entries of each parameter are compared as well.
    """

    def __init__(self, module: nn.Module) -> None:
        self._homes = [part._parameters for part in module.modules() if part._parameters]
        self._weights = list(self._current())
        self._samples = [_sample(weight) for weight in self._weights]
        self._seen = self._look()

    def holds(self) -> bool:
        """True while nothing has changed."""
        now = list(self._current())
        return (
            len(now) == len(self._weights)
            and all(a is b for a, b in zip(now, self._weights, strict=True))
            and self._look() == self._seen
        )

    def _current(self) -> Iterator[Tensor]:
        return (weight for home in self._homes for weight in home.values() if weight is not None)

    def _look(self) -> list[object]:
        counters = [None if weight.is_inference() else weight._version for weight in self._weights]
        places = [weight.data_ptr() for weight in self._weights]
        return [counters, places, [sample.tolist() for sample in self._samples]]


_T = TypeVar("_T")


class _Cache(Generic[_T]):
    """Packed copies by module and precision; they go when the module goes."""

    def __init__(self, pack: Callable[..., _T]) -> None:
        self._pack = pack
        self._entries: WeakKeyDictionary[nn.Module, tuple[Precision, _Fingerprint, _T]] = WeakKeyDictionary()

    def __call__(self, module: nn.Module, precision: Precision) -> _T:
        entry = self._entries.get(module)
        if entry is None or entry[0] != precision or not entry[1].holds():
            entry = (precision, _Fingerprint(module), self._pack(module, precision))
            self._entries[module] = entry
        return entry[2]


def _pack_linears(module: nn.Module, precision: Precision) -> nn.Module:
    if type(module) is nn.Linear:
        return PackedLinear(module.weight, module.bias, unbounded(precision))
    if not any(type(part) is nn.Linear for part in module.modules()):
        return module
    packed = copy.copy(module)
    packed._modules = {
        name: None if child is None else _pack_linears(child, precision) for name, child in module._modules.items()
    }
    return packed


packed_cell = _Cache(PackedCell)
"""The packed copy of a cell at a precision, made anew where its weights have changed."""
packed_copy = _Cache(_pack_linears)
"""A copy of a module whose linear layers are packed; their inputs are unbounded."""


def _shifted(rows: Tensor) -> Tensor:
    """Rows (layers, episodes, W, H) moved on by one, row 0 zero."""
    return functional.pad(rows[:, :, :-1], (0, 0, 1, 0))


def _double_g(weight: Tensor) -> Tensor:
    """LSTM weights or biases with the rows of gate g doubled, so that one sigmoid serves all four gates.

    tanh(x) = 2 sigmoid(2x) - 1, and torch's sigmoid is several times faster than its tanh.
    """
    i, f, g, o = weight.detach().chunk(4)
    return torch.cat([i, f, 2 * g, o])


def _lstm_into(gates: Tensor, cell_before: Tensor, hidden: Tensor, cell: Tensor) -> None:
    """Write the new hidden and cell state; `gates` (..., 4H), g doubled, are used up."""
    i, f, g, o = gates.sigmoid_().chunk(4, dim=-1)
    torch.mul(f, cell_before, out=cell).addcmul_(i, g.mul_(2).sub_(1))
    torch.mul(cell, 2, out=hidden).sigmoid_().mul_(2).sub_(1).mul_(o)


def _gru_into(inputs: Tensor, recurrent: Tensor, before: Tensor, hidden: Tensor) -> None:
    """Write the new hidden state from the two projections (..., 3H); `recurrent` is used up."""
    width = before.shape[-1]
    r, z = recurrent[..., : 2 * width].add_(inputs[..., : 2 * width]).sigmoid_().chunk(2, dim=-1)
    n = torch.addcmul(inputs[..., 2 * width :], r, recurrent[..., 2 * width :]).tanh_()
    torch.sub(before, n, out=hidden).mul_(z).add_(n)


def _sample(weight: Tensor) -> np.ndarray:
    """A view of a few entries, spread over the parameter."""
    flat = weight.detach().reshape(-1).numpy()
    return flat[:: max(1, flat.size // 8)]
