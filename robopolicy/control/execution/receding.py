"""Receding horizon (Diffusion Policy, Chi et al. 2023): the newest chunk that is accepted replaces the plan."""

from dataclasses import dataclass

from robopolicy.action_spec import Array
from robopolicy.components import register
from robopolicy.control.execution.base import ExecutionOptions, Plans


@dataclass(frozen=True)
class RecedingOptions(ExecutionOptions):
    """Options of `receding`: those of every strategy."""


@register("execution", "receding", RecedingOptions)
class Receding:
    """The newest chunk replaces the plan; actions for past steps are dropped."""

    frozen = 0

    def __init__(self, options: RecedingOptions, chunk: int, control_dt: float) -> None:
        pass

    def merge(self, plans: Plans) -> tuple[Array, Array]:
        """The new chunk."""
        return plans.new, plans.covered * 1
