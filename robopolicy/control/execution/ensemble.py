"""Temporal ensemble (ACT, Zhao et al. 2023): the weighted mean of all chunks that cover a step."""

from dataclasses import dataclass

import numpy as np

from robopolicy.action_spec import Array
from robopolicy.arrays import like
from robopolicy.components import option, register
from robopolicy.control.execution.base import ExecutionOptions, Plans, blend


@dataclass(frozen=True)
class EnsembleOptions(ExecutionOptions):
    """Options of `ensemble`."""

    ensemble_decay: float = option(0.01, ">= 0")
    """The decay m in the weights exp(-m i); i = 0 is the oldest chunk that covers a step."""


@register("execution", "ensemble", EnsembleOptions)
class Ensemble:
    """Averages all chunks that cover a step."""

    frozen = 0

    def __init__(self, options: EnsembleOptions, chunk: int, control_dt: float) -> None:
        weights = np.exp(-options.ensemble_decay * np.arange(chunk + 1.0))
        self._shares = weights / weights.cumsum(0)  # share of the i-th chunk in the mean of the first i + 1

    def merge(self, plans: Plans) -> tuple[Array, Array]:
        """The running mean, updated by the new chunk."""
        chunk = plans.covered.shape[-1]
        share = like(plans.new, self._shares)[plans.count.clip(max=chunk)] * plans.covered
        return blend(plans.old, plans.new, share, plans.rotations), plans.count + plans.covered
