"""Scaling of observations and actions: statistics streamed from the training demos, kept as buffers inside the policy.

Every inward map has its inverse beside it. A dimension that never changed in training is defined: observations are
moved by its value and not scaled; an arm column has target 0 and is given back as its value whatever the head says.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from robopolicy.types import ActionSpec, Array, Chunk

Kind: TypeAlias = Literal["min-max", "mean-std", "quantile", "none"]

CONSTANT_RANGE = 1e-6
"""A dimension is constant if its range is below this share of its largest magnitude: float32 has 24 bits, 6e-8."""


@dataclass(frozen=True)
class Statistics:
    """What is known of each dimension of an array; all arrays (d,), float64."""

    count: int
    """Rows seen."""
    low: np.ndarray
    """Smallest value."""
    high: np.ndarray
    """Largest value."""
    mean: np.ndarray
    """Mean."""
    std: np.ndarray
    """Standard deviation over all rows."""
    quantile_low: np.ndarray
    """1 % quantile."""
    quantile_high: np.ndarray
    """99 % quantile."""

    @classmethod
    def of(cls, rows: np.ndarray) -> "Statistics":
        """Statistics of one array (n, ...)."""
        running = RunningStatistics()
        running.update(rows)
        return running.result()

    @property
    def constant(self) -> np.ndarray:
        """(d,) True where the dimension never changed."""
        magnitude = np.maximum(np.abs(self.low), np.abs(self.high))
        return self.high - self.low <= CONSTANT_RANGE * magnitude


class RunningStatistics:
    """Statistics of rows that come array by array and need not fit in memory together.

    Count, extremes, mean and deviation are exact in float64 (Chan's pairwise update). Quantiles are exact up to `capacity`
    rows; beyond, they are those of a uniform sample of that many rows (Vitter's reservoir with a fixed seed), whose
    1 % quantile has a standard error of about 0.03 % in rank at the default.
    """

    def __init__(self, capacity: int = 100_000) -> None:
        self.capacity = capacity
        self.count = 0
        self._low = self._high = self._mean = self._squares = np.zeros(0)
        self._sample = np.zeros((0, 0))
        self._random = np.random.default_rng(0)

    def update(self, rows: Any) -> None:
        """Add rows (n, ...); what follows the first axis is flattened to d dimensions.

        Raises:
            ValueError: a value is NaN or infinite, or the width differs from that of earlier rows.
        """
        rows = np.asarray(rows, dtype=np.float64)
        if len(rows) == 0:
            return
        rows = rows.reshape(len(rows), -1)
        if not np.isfinite(rows).all():
            raise ValueError(
                f"{int((~np.isfinite(rows)).sum())} of {rows.size} values are NaN or infinite; remove them first"
            )
        if self.count == 0:
            width = rows.shape[1]
            self._low, self._high = np.full(width, np.inf), np.full(width, -np.inf)
            self._mean, self._squares = np.zeros(width), np.zeros(width)
            self._sample = np.zeros((0, width))
        elif rows.shape[1] != self._mean.shape[0]:
            raise ValueError(
                f"rows of width {rows.shape[1]} after rows of width {self._mean.shape[0]}; expected the same"
            )
        self._low = np.minimum(self._low, rows.min(axis=0))
        self._high = np.maximum(self._high, rows.max(axis=0))
        mean = rows.mean(axis=0)
        shift, total = mean - self._mean, self.count + len(rows)
        self._squares = self._squares + ((rows - mean) ** 2).sum(axis=0) + shift**2 * (self.count * len(rows) / total)
        self._mean = self._mean + shift * (len(rows) / total)
        self._keep(rows)
        self.count = total

    def result(self) -> Statistics:
        """The statistics of all rows so far.

        Raises:
            ValueError: no row was added.
        """
        if self.count == 0:
            raise ValueError("no rows to take statistics of; the training split is empty")
        quantiles = np.quantile(self._sample, [0.01, 0.99], axis=0)
        std = np.sqrt(self._squares / self.count)
        return Statistics(self.count, self._low, self._high, self._mean, std, quantiles[0], quantiles[1])

    def _keep(self, rows: np.ndarray) -> None:
        room = self.capacity - len(self._sample)
        self._sample = np.concatenate([self._sample, rows[:room]]) if room > 0 else self._sample
        late = rows[max(room, 0) :]
        if len(late) == 0:
            return
        seen = self.count + max(room, 0) + np.arange(1, len(late) + 1)
        place = (self._random.random(len(late)) * seen).astype(np.int64)
        kept = place < self.capacity
        self._sample[place[kept]] = late[kept]


class Normalizer(nn.Module):
    """Per-dimension scaling of one observation key: `normalize` and its exact inverse `unnormalize`.

    min-max puts the training range on [-1, 1], quantile the 1 % and 99 % quantiles, mean-std gives mean 0 and deviation 1.
    Without statistics it is the identity, to be filled by `load_state_dict`.
    """

    offset: Tensor
    scale: Tensor

    def __init__(self, width: int, kind: Kind = "none", statistics: Statistics | None = None) -> None:
        super().__init__()
        offset, scale = np.zeros(width), np.ones(width)
        if statistics is not None and kind != "none":
            if statistics.mean.shape != (width,):
                raise ValueError(
                    f"statistics of width {statistics.mean.shape[0]} for values of width {width}; expected the same"
                )
            offset, scale = _offset_and_scale(kind, statistics)
        self.register_buffer("offset", torch.as_tensor(offset, dtype=torch.float32))
        self.register_buffer("scale", torch.as_tensor(scale, dtype=torch.float32))

    def normalize(self, values: Tensor) -> Tensor:
        """(..., d) in the demos' units -> scaled."""
        return (values - self.offset) / self.scale

    def unnormalize(self, values: Tensor) -> Tensor:
        """(..., d) scaled -> in the demos' units."""
        return values * self.scale + self.offset


class ActionNormalizer(nn.Module):
    """Action rows in the demos' units and column order <-> the policy's targets, arm in [-1, 1] first, gripper labels last.

    Arm columns are put on [-1, 1] by the training split's min and max; a binary gripper's two values on labels 0 and 1
    (the nearer one), and back by logit > 0.
    """

    arm_offset: Tensor
    arm_scale: Tensor
    gripper_values: Tensor
    constant: Tensor

    def __init__(self, spec: ActionSpec, statistics: Statistics | None = None) -> None:
        super().__init__()
        self.spec = spec
        offset, scale = np.zeros(spec.arm_width), np.ones(spec.arm_width)
        if statistics is not None:
            if statistics.low.shape != (spec.width,):
                raise ValueError(
                    f"statistics of {statistics.low.shape[0]} action columns; the ActionSpec has {spec.width}"
                )
            low, high = statistics.low[list(spec.arm_columns)], statistics.high[list(spec.arm_columns)]
            constant = statistics.constant[list(spec.arm_columns)]
            offset = np.where(constant, low, (high + low) / 2)
            scale = np.where(constant, 0.0, (high - low) / 2)
        pairs = np.asarray(spec.gripper_values, dtype=np.float64).reshape(spec.gripper_width, 2)
        self.register_buffer("arm_offset", torch.as_tensor(offset, dtype=torch.float32))
        self.register_buffer("arm_scale", torch.as_tensor(scale, dtype=torch.float32))
        self.register_buffer("gripper_values", torch.as_tensor(pairs, dtype=torch.float32))
        self.register_buffer("constant", torch.as_tensor(list(spec.constant.values()), dtype=torch.float32))

    def to_target(self, rows: Array) -> Array:
        """Rows (..., width) -> targets (..., A+G) float32; NumPy in, NumPy out, and torch likewise."""
        if isinstance(rows, np.ndarray):
            return self._cpu_target(rows)
        arm, gripper = self.spec.split(rows.to(torch.float32))
        divisor = torch.where(self.arm_scale == 0, 1.0, self.arm_scale)
        open_value, closed_value = self.gripper_values.unbind(dim=-1)
        label = (gripper - closed_value).abs() < (gripper - open_value).abs()
        return torch.cat([(arm - self.arm_offset) / divisor, label.to(torch.float32)], dim=-1)

    def to_rows(self, chunk: Chunk) -> Tensor:
        """A chunk -> rows (..., K, width) in the demos' units and column order."""
        arm = torch.as_tensor(chunk.arm).float() * self.arm_scale + self.arm_offset
        closed = torch.as_tensor(chunk.gripper_logit) > 0
        open_value, closed_value = self.gripper_values.unbind(dim=-1)
        gripper = torch.where(closed, closed_value, open_value)
        constant = self.constant.expand(*arm.shape[:-1], self.constant.shape[0])
        return torch.cat([arm, gripper, constant], dim=-1)[..., list(self.spec.order)]

    def _cpu_target(self, rows: np.ndarray) -> np.ndarray:
        tensor = torch.from_numpy(np.asarray(rows, dtype=np.float32)).to(self.arm_offset.device)
        return self.to_target(tensor).cpu().numpy()


def make_normalizers(
    widths: Mapping[str, int], kind: Kind, statistics: Mapping[str, Statistics] | None = None
) -> dict[str, Normalizer]:
    """One normalizer per key; `statistics` must hold every key, or be None for normalizers that will be loaded."""
    if statistics is not None and (missing := [key for key in widths if key not in statistics]):
        raise ValueError(f"no statistics of {', '.join(missing)}. There are: {', '.join(statistics)}")
    return {key: Normalizer(width, kind, statistics[key] if statistics else None) for key, width in widths.items()}


def _offset_and_scale(kind: Kind, statistics: Statistics) -> tuple[np.ndarray, np.ndarray]:
    if kind == "mean-std":
        offset, scale, constant = statistics.mean, statistics.std, statistics.constant
    else:
        low, high = statistics.low, statistics.high
        if kind == "quantile":
            low, high = statistics.quantile_low, statistics.quantile_high
        offset, scale = (high + low) / 2, (high - low) / 2
        constant = scale <= CONSTANT_RANGE / 2 * np.maximum(np.abs(low), np.abs(high))
    return np.where(constant, statistics.low if kind != "quantile" else offset, offset), np.where(constant, 1.0, scale)
