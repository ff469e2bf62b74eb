"""A linear layer for inference on a CPU: its weight is laid out once for the CPU's matrix units, in float32, bf16 or int8."""

import warnings
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional

Precision: TypeAlias = Literal["float32", "bf16", "int8"]

PACKED_ROWS = 16
"""Number of rows for which oneDNN chooses a matrix's layout; the layout for 1 row is slower, even for a single row."""
FLOAT32_SIZE = 1 << 16
"""Matrices with fewer entries, such as the output layer, stay in float32 and unpacked at any precision. They take little time:
a packed product has an overhead of 11 us, while `linear` takes 3 us for a single row."""
_FBGEMM = "fbgemm" in torch.backends.quantized.supported_engines
_QUANTIZED = "_make_per_channel_quantized_tensor"
_VNNI = bool(getattr(torch.cpu, "_is_vnni_supported", bool)())
STEPS = 127 if _VNNI else 63
"""Number of int8 quantization steps from 0 to 1. Without VNNI, 127 would overflow the 16-bit sum of two 8-bit products."""
ZERO = STEPS + 1
"""The unsigned integer that represents 0."""


class PackedLinear(nn.Module):
    """x W^T + b in float32, from a packed copy of W, or a plain copy if W is small; without gradients.

    `bf16` rounds W, x and the result to 8 bits of mantissa. `int8` rounds W to 8 bits with one scale per row of W.

    Args:
        weight: (out, in).
        bias: (out,), or None.
        precision: arithmetic of the product.
        bounded: whether x is within [-1, 1], as hidden states are. `int8` then rounds x to multiples of 1 / STEPS. Otherwise
            it rounds each row of x to about 15 bits (13 without VNNI) relative to the row's largest absolute value, so that
            small values beside large ones keep their precision.
        single: whether single rows are common: float32 then keeps a second copy of W, which is 1.4 times faster for one row.
    """

    def __init__(
        self, weight: Tensor, bias: Tensor | None, precision: Precision, bounded: bool = False, single: bool = True
    ) -> None:
        super().__init__()
        self.outputs = len(weight)
        weight = weight.detach().contiguous()
        self.bias = None if bias is None else bias.detach().clone()
        self.bounded = bounded
        self.plain = self.transposed = self.packed = self.int8 = None
        if weight.numel() < FLOAT32_SIZE:
            self.plain = weight.clone()
        elif precision == "int8":
            self.int8 = _Int8Product(weight, self.bias if bounded else None)
        elif precision == "bf16":
            self.bias = None if self.bias is None else self.bias.bfloat16()
            self.packed = torch.ops.mkldnn._reorder_linear_weight(weight.bfloat16(), PACKED_ROWS)
        else:
            self.transposed = weight.mT.contiguous() if single else None
            self.packed = torch.ops.mkldnn._reorder_linear_weight(weight, PACKED_ROWS)

    def forward(self, rows: Tensor, plus: Tensor | None = None) -> Tensor:
        """The product `rows @ W^T + b` (..., out), for rows (..., in).

        Args:
            rows: with any number of leading axes.
            plus: (rows, out) or (1, out), added to the result; its memory may be overwritten.
        """
        if rows.ndim != 2:
            return self(rows.reshape(-1, rows.shape[-1]), plus).reshape(*rows.shape[:-1], self.outputs)
        rows = rows.detach()
        if self.int8 is not None:
            result = self.int8(rows) if self.bounded else self._unbounded_int8(rows, self.int8)
        elif self.packed is not None and self.packed.dtype == torch.bfloat16:
            result = torch.ops.mkldnn._linear_pointwise(rows.bfloat16(), self.packed, self.bias, "none", [], "").float()
        else:
            return self._float32(rows, plus)
        return result if plus is None else result.add_(plus)

    def _unbounded_int8(self, rows: Tensor, product: "_Int8Product") -> Tensor:
        """The product with rows of any range, each scaled by its largest absolute value.

        A scaled row is split into its rounded values and a remainder, which is scaled up and rounded too.
        Two rows take little longer than one, since the weight is read once.
        """
        unit = torch.linalg.vector_norm(rows, float("inf"), 1, True).clamp_(min=1e-30).div_(STEPS)
        remainder = rows / unit
        coarse = remainder.round()
        remainder.sub_(coarse).mul_(2 * STEPS)
        result, fine = product(torch.cat([coarse, remainder]), unit=1.0).split(len(rows))
        result = result.add_(fine, alpha=0.5 / STEPS)
        return result.mul_(unit) if self.bias is None else torch.addcmul(self.bias, result, unit)

    def _float32(self, rows: Tensor, plus: Tensor | None) -> Tensor:
        bias = self.bias
        if plus is not None and bias is None and len(plus) == 1:
            bias, plus = plus[0], None
        if self.plain is not None:
            result = functional.linear(rows, self.plain, bias)
        elif self.transposed is not None and len(rows) == 1:
            result = rows @ self.transposed if bias is None else torch.addmm(bias, rows, self.transposed)
        elif plus is not None and bias is None:
            return torch.ops.mkldnn._linear_pointwise.binary(rows, plus, self.packed, None, "add")
        else:
            result = torch.ops.mkldnn._linear_pointwise(rows, self.packed, bias, "none", [], "")
        return result if plus is None else result.add_(plus)


class _Int8Product:
    """The product of a weight (out, in) with rows rounded to 2 * STEPS + 1 levels: by FBGEMM where torch has it, else oneDNN.

    FBGEMM takes less than half of oneDNN's time for a single row, and gives the same numbers.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.bias = bias
        self.scale = (weight.abs().amax(dim=1) / 127).clamp(min=1e-12)
        self.zero = torch.zeros(len(weight), dtype=torch.int32)
        rounded = (weight / self.scale[:, None]).round().to(torch.int8)
        self.fbgemm = _packed_by_fbgemm(rounded, self.scale, bias)
        if self.fbgemm is None:
            self.onednn = torch.ops.onednn.qlinear_prepack(rounded, [PACKED_ROWS, weight.shape[1]])

    def __call__(self, rows: Tensor, unit: float = 1 / STEPS) -> Tensor:
        """The product (rows, out) in float32; rows (rows, in) within +-STEPS * unit are rounded to multiples of `unit`."""
        if self.fbgemm is not None:
            product = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32
            return product(rows, unit, ZERO, self.fbgemm)
        levels = (rows / unit).add_(ZERO + 0.5).to(torch.uint8)
        operands = (levels, unit, ZERO, self.onednn, self.scale, self.zero, self.bias)
        return torch.ops.onednn.qlinear_pointwise(*operands, 1.0, 0, torch.float32, "none", [], "")


def _packed_by_fbgemm(rounded: Tensor, scale: Tensor, bias: Tensor | None) -> Any:
    """The int8 weight (out, in) with its scales (out,) and bias in FBGEMM's layout; None if this torch does not support it."""
    product = hasattr(torch.ops.quantized, "linear_with_input_q_dq_qweight_dq_output_fp32")
    if not _FBGEMM or not product or not hasattr(torch, _QUANTIZED):
        return None
    before = torch.backends.quantized.engine
    zeros = torch.zeros(len(rounded), dtype=torch.int64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch will drop quantized tensors; without them `freeze` packs for oneDNN
        weight: Tensor = getattr(torch, _QUANTIZED)(rounded, scale.double(), zeros, 0)
    try:
        torch.backends.quantized.engine = "fbgemm"  # prepack chooses its layout by this global setting
        return torch.ops.quantized.linear_prepack(weight, bias)
    finally:
        torch.backends.quantized.engine = before
