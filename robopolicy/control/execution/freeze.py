"""Frozen prefix and soft blend (real-time chunking's mask, Black et al. 2025, without its guidance of the policy)."""

from dataclasses import dataclass

import numpy as np

from robopolicy.action_spec import Array
from robopolicy.arrays import cast, like, soft_mask
from robopolicy.components import register
from robopolicy.control.execution.base import LatencyOptions, Plans, blend


@dataclass(frozen=True)
class FreezeOptions(LatencyOptions):
    """Options of `freeze`; if a chunk arrives later than expected, more steps are frozen."""


@register("execution", "freeze", FreezeOptions)
class Freeze:
    """Keeps the planned actions for the steps that pass during inference; blends the rest of the plan into the new chunk."""

    def __init__(self, options: LatencyOptions, chunk: int, control_dt: float) -> None:
        self.frozen = options.latency_steps(control_dt)

    def merge(self, plans: Plans) -> tuple[Array, Array]:
        """The old plan for the frozen steps, then a blend in which the weight of the new chunk increases."""
        share = (1 - self._kept(plans)) * plans.covered
        count = plans.count.clip(max=1) | plans.covered
        return blend(plans.old, plans.new, share, plans.rotations), count

    def _kept(self, plans: Plans) -> Array:
        """(*B, K) weight of the old plan: 1 at the frozen steps, then real-time chunking's soft mask over the overlap."""
        old = plans.count > 0
        late = cast(plans.late, plans.old)[..., None]
        place = like(old, np.arange(old.shape[-1])) + late  # index of each step in the new chunk
        end = late + old.sum(-1)[..., None]
        return soft_mask(place, end, late.clip(self.frozen)) * old
