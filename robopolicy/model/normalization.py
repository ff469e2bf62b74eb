"""Scaling of observations and actions by the training split's statistics, kept as buffers inside the policy.

Every normalization has its inverse next to it. Rotations are converted to their learned form first. A dimension that was
constant in training is not scaled: an observation has the constant subtracted; an arm column has target 0, and its constant
is returned whatever the head predicts.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from robopolicy.model.rotation_math import RotationColumns, RotationForm, RotationKind, key_rotations
from robopolicy.model.rotations import Rotations
from robopolicy.model.statistics import CONSTANT_RANGE, Statistics
from robopolicy.types import TOKEN_VALID_KEY, TOKENS_KEY, ActionSpec, Array, ArraySpec, Chunk

Kind: TypeAlias = Literal["min-max", "mean-std", "quantile", "none"]


class Normalizer(nn.Module):
    """Normalizes one observation key: converts rotations to their learned form, then scales each dimension.

    `min-max` maps the training range to [-1, 1], `quantile` maps the 1 % and 99 % quantiles to -1 and 1, and `mean-std` gives
    mean 0 and standard deviation 1. Without statistics, values are not scaled until `load_state_dict` loads the scaling.
    `unnormalize` is the inverse of `normalize`.
    """

    def __init__(
        self,
        width: int,
        kind: Kind = "none",
        statistics: Statistics | None = None,
        rotations: Sequence[RotationColumns] = (),
        form: RotationForm = "aligned",
    ) -> None:
        super().__init__()
        self.rotations = Rotations(width, rotations, form)
        self.width = self.rotations.learned_width
        """Width of normalized values: d, or more where rotations are learned in a wider form."""
        offset, scale = np.zeros(self.width), np.ones(self.width)
        if statistics is not None:
            if statistics.mean.shape != (width,):
                raise ValueError(
                    f"statistics of width {statistics.mean.shape[0]} for values of width {width}; expected the same"
                )
            self.rotations.load(statistics.rotations)
            if kind != "none":
                offset, scale = _offset_and_scale(kind, statistics.coded or statistics)
        self.offset = nn.Buffer(torch.as_tensor(offset, dtype=torch.float32))
        self.scale = nn.Buffer(torch.as_tensor(scale, dtype=torch.float32))

    def normalize(self, values: Tensor) -> Tensor:
        """(..., d) in the demos' units -> (..., width) scaled."""
        return (self.rotations(values) - self.offset) / self.scale

    def unnormalize(self, values: Tensor) -> Tensor:
        """(..., width) scaled -> (..., d) in the demos' units."""
        return self.rotations.inverse(values * self.scale + self.offset)


class KeyScaling(nn.Module):
    """Scales every low-dimensional key by its own statistics; images and tokens pass unchanged.

    Args:
        specs: shape and type of one frame of each key.
        statistics: of each low-dimensional key, from the training split; None when weights are loaded afterwards.
        kind: `min-max`, `mean-std`, `quantile` or `none`.
        form: form in which rotations are learned.
        declared: columns that are rotations, by key.

    Raises:
        ValueError: statistics of a key are missing.
    """

    def __init__(
        self,
        specs: Mapping[str, ArraySpec],
        statistics: Mapping[str, Statistics] | None,
        kind: Kind = "mean-std",
        form: RotationForm = "aligned",
        declared: Mapping[str, RotationKind] | None = None,
    ) -> None:
        super().__init__()
        self.specs = dict(specs)
        scaled = {k: s for k, s in specs.items() if not s.is_image and k not in (TOKENS_KEY, TOKEN_VALID_KEY)}
        if statistics is not None and (missing := [key for key in scaled if key not in statistics]):
            raise ValueError(f"no statistics of {missing[0]!r}; there are those of: {', '.join(statistics)}")
        self.keys = tuple(scaled)
        # A list, since keys may hold characters (such as dots) that a module's name may not.
        self.normalizers: Any = nn.ModuleList(
            Normalizer(
                spec.width,
                kind,
                None if statistics is None else statistics[key],
                key_rotations(key, spec.width, form, declared or {}),
                form,
            )
            for key, spec in scaled.items()
        )

    def normalizer(self, key: str) -> Normalizer | None:
        """The scaling of one key; None for images and tokens."""
        return self.normalizers[self.keys.index(key)] if key in self.keys else None

    @property
    def scaled_specs(self) -> dict[str, ArraySpec]:
        """The same keys with the shapes that scaling gives them."""
        widths = {key: part.width for key, part in zip(self.keys, self.normalizers, strict=True)}
        return {key: ArraySpec((widths[key],)) if key in widths else spec for key, spec in self.specs.items()}

    @property
    def units(self) -> dict[str, Tensor]:
        """Key -> size of a change by 1 in each scaled column, in the units before scaling."""
        return {key: part.scale for key, part in zip(self.keys, self.normalizers, strict=True)}

    def forward(self, obs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Each of the given keys (*B, ...) scaled to (*B, width); keys may be missing."""
        scaled = dict(obs)
        for key, normalizer in zip(self.keys, self.normalizers, strict=True):
            if key in obs:
                spec, value = self.specs[key], obs[key]
                flat = value.reshape(*value.shape[: value.dim() - len(spec.shape)], spec.width)
                scaled[key] = normalizer.normalize(flat)
        return scaled


class ActionNormalizer(nn.Module):
    """Action rows in the demos' units and column order <-> the policy's targets, arm in [-1, 1] first, gripper labels last.

    Arm columns are scaled to [-1, 1] by the training split's min and max. A binary gripper's value becomes the label of the
    nearer of its two values, 0 for open and 1 for closed; the inverse is closed if logit > 0. Rotations of absolute poses are
    first converted to their learned form.
    """

    def __init__(
        self,
        spec: ActionSpec,
        statistics: Statistics | None = None,
        rotations: Sequence[RotationColumns] = (),
        form: RotationForm = "aligned",
        common_scale: bool = False,
    ) -> None:
        """Create the maps between rows and targets.

        Args:
            spec: the columns of the rows.
            statistics: statistics of the rows, from the training split; None if weights are loaded afterwards.
            rotations: the rotations among the arm columns.
            form: form in which they are learned.
            common_scale: scale all arm columns by the largest of their scales.
        """
        super().__init__()
        self.spec = spec
        place = {column: index for index, column in enumerate(spec.arm_columns)}
        own = [replace(part, columns=tuple(place[column] for column in part.columns)) for part in rotations]
        self.rotations = Rotations(spec.arm_width, own, form)
        offset, scale = np.zeros(spec.arm_width), np.ones(spec.arm_width)
        coded = np.zeros(self.rotations.learned_width), np.ones(self.rotations.learned_width)
        if statistics is not None:
            if statistics.low.shape != (spec.width,):
                raise ValueError(
                    f"statistics of {statistics.low.shape[0]} action columns; the ActionSpec has {spec.width}"
                )
            offset, scale = _arm_offset_and_scale(statistics, spec.arm_columns)
            if (fit := statistics.rotations) is not None:
                chosen = list(spec.arm_columns)
                self.rotations.load(replace(fit, reference=fit.reference[chosen], origin=fit.origin[chosen]))
            if statistics.coded is not None:
                others = Rotations(spec.width, rotations, form).others
                kept = [others.index(column) for column in spec.arm_columns if column in others]
                coded = _arm_offset_and_scale(statistics.coded, [*kept, *range(len(others), len(statistics.coded.low))])
        if common_scale:
            scale, coded = _common(scale), (coded[0], _common(coded[1]))
        if self.rotations.coded:
            self.coded_offset = nn.Buffer(torch.as_tensor(coded[0], dtype=torch.float32))
            self.coded_scale = nn.Buffer(torch.as_tensor(coded[1], dtype=torch.float32))
        self.arm_offset = nn.Buffer(torch.as_tensor(offset, dtype=torch.float32))
        self.arm_scale = nn.Buffer(torch.as_tensor(scale, dtype=torch.float32))
        self.gripper_values = nn.Buffer(torch.as_tensor(spec.gripper_values, dtype=torch.float32).reshape(-1, 2))
        self.constant = nn.Buffer(torch.as_tensor(list(spec.constant.values()), dtype=torch.float32))
        self.order = nn.Buffer(torch.as_tensor(spec.order, dtype=torch.int64), persistent=False)

    @property
    def learned_spec(self) -> ActionSpec:
        """The columns of the targets: as many arm columns as are learned, then the grippers."""
        if not self.rotations.coded:
            return self.spec
        return ActionSpec(arm=self.rotations.learned_width, gripper=self.spec.gripper_width)

    def to_target(self, rows: Array) -> Array:
        """Rows (..., width) -> targets (..., A+G) float32; NumPy in, NumPy out, and torch likewise."""
        if isinstance(rows, np.ndarray):
            tensor = torch.from_numpy(np.asarray(rows, dtype=np.float32)).to(self.arm_offset.device)
            return self.to_target(tensor).cpu().numpy()
        arm, gripper = self.spec.split(rows.to(torch.float32))
        offset, scale = self._scaling
        open_value, closed_value = self.gripper_values.unbind(dim=-1)
        label = (gripper - closed_value).abs() < (gripper - open_value).abs()
        learned = (self.rotations(arm) - offset) / torch.where(scale == 0, 1.0, scale)
        return torch.cat([learned, label.to(torch.float32)], dim=-1)

    def to_rows(self, chunk: Chunk) -> Tensor:
        """A chunk -> rows (..., K, width) in the demos' units and column order."""
        offset, scale = self._scaling
        arm = self.rotations.inverse(torch.as_tensor(chunk.arm).float() * scale + offset)
        closed = torch.as_tensor(chunk.gripper_logit) > 0
        open_value, closed_value = self.gripper_values.unbind(dim=-1)
        gripper = torch.where(closed, closed_value, open_value)
        constant = self.constant.expand(*arm.shape[:-1], self.constant.shape[0])
        return torch.cat([arm, gripper, constant], dim=-1).index_select(-1, self.order)

    @property
    def _scaling(self) -> tuple[Tensor, Tensor]:
        """Offset and scale of the learned columns."""
        return (self.coded_offset, self.coded_scale) if self.rotations.coded else (self.arm_offset, self.arm_scale)


def _arm_offset_and_scale(statistics: Statistics, columns: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Offset and scale that map the range of each column to [-1, 1]; a column that never changed has scale 0."""
    chosen = list(columns)
    low, high, constant = statistics.low[chosen], statistics.high[chosen], statistics.constant[chosen]
    return np.where(constant, low, (high + low) / 2), np.where(constant, 0.0, (high - low) / 2)


def _common(scale: np.ndarray) -> np.ndarray:
    """The largest scale for every column that changes."""
    return np.where(scale == 0, 0.0, scale.max(initial=0.0))


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
