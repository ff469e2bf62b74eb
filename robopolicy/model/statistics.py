"""Statistics of each dimension of an array over the training split."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from robopolicy.model.rotation_math import RotationColumns, RotationForm
from robopolicy.model.rotations import RotationFit, Rotations, fit_rotations

CONSTANT_RANGE = 1e-6
"""A dimension is constant if its range is below this fraction of its largest magnitude; the precision of float32 is 6e-8."""


@dataclass(frozen=True)
class Statistics:
    """Statistics of each dimension of an array; all fields (d,), float64."""

    count: int
    """Number of rows."""
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
    rotations: RotationFit | None = None
    """Statistics of the rotations among the dimensions; if set, the other fields describe the array with aligned rotations."""
    coded: "Statistics | None" = None
    """Statistics of the array in the form that the policy learns, if that form has a different width."""

    @classmethod
    def of(
        cls,
        rows: np.ndarray,
        rotations: Sequence[RotationColumns] = (),
        form: RotationForm = "aligned",
        where: str = "these rows",
    ) -> "Statistics":
        """Statistics of one array (n, ...).

        Args:
            rows: the array.
            rotations: which of its dimensions are rotations.
            form: form in which the policy learns the rotations.
            where: start of error messages about values that are not valid rotations.

        Raises:
            ValueError: there are no rows, a value is not finite, or a declared rotation isn't valid.
        """
        if not rotations:
            return cls._plain(rows)
        flat = np.asarray(rows, dtype=np.float64).reshape(len(rows), -1)
        fit = fit_rotations(flat, rotations, where)
        turned = Rotations(flat.shape[1], rotations, form)
        turned.load(fit)
        values = torch.from_numpy(flat)
        aligned = cls._plain(turned.align(values).numpy())
        return replace(aligned, rotations=fit, coded=cls._plain(turned(values).numpy()) if turned.coded else None)

    @classmethod
    def _plain(cls, rows: np.ndarray) -> "Statistics":
        if len(rows) == 0:
            raise ValueError("no rows to take statistics of; the training split is empty")
        rows = np.asarray(rows, dtype=np.float64).reshape(len(rows), -1)
        if wrong := int((~np.isfinite(rows)).sum()):
            raise ValueError(f"{wrong} of {rows.size} values are NaN or infinite; remove them first")
        low, high = np.quantile(rows, [0.01, 0.99], axis=0)
        return cls(len(rows), rows.min(axis=0), rows.max(axis=0), rows.mean(axis=0), rows.std(axis=0), low, high)

    @property
    def constant(self) -> np.ndarray:
        """(d,) True where the dimension never changed."""
        magnitude = np.maximum(np.abs(self.low), np.abs(self.high))
        return self.high - self.low <= CONSTANT_RANGE * magnitude
