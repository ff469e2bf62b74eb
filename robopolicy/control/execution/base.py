"""What execution strategies share: common options, and the contract between a strategy and the executor."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from jaxtyping import Bool, Float, Int
from torch import Tensor

from robopolicy.components import expect
from robopolicy.model.rotations import RotationColumns


@dataclass(frozen=True)
class ExecutionOptions:
    """Options of every strategy."""

    replan_every: int = 1
    """Control steps between two chunks that join the plan."""
    gripper_hysteresis: float = 0.0
    """Distance from zero that the gripper's score must cross to switch it. The score is the logit if the policy has one,
    otherwise the action with its two values mapped to -1 and +1."""

    def __post_init__(self) -> None:
        expect(self, "execution", ">= 1", "replan_every")
        expect(self, "execution", ">= 0", "gripper_hysteresis")


@dataclass(frozen=True)
class Plans:
    """The plans of a batch and a new chunk for each; step 0 of both is the control step being prepared."""

    old: Float[Tensor, "*B chunk width"]
    """The current plan; zeros where `count` is 0."""
    count: Int[Tensor, "*B chunk"]
    """Number of chunks that each step of the plan was made from; 0: no action."""
    new: Float[Tensor, "*B chunk width"]
    """The new chunk; its last `late` steps are zeros."""
    covered: Bool[Tensor, " chunk"]
    """Which steps the new chunk covers."""
    late: int
    """Control steps from the chunk's observation to the step being prepared."""
    rotations: Sequence[RotationColumns] = ()
    """Columns that `blend` averages as rotations."""


@runtime_checkable
class Strategy(Protocol):
    """How a new chunk joins the plan."""

    frozen: int
    """Steps at the beginning of each chunk that the old plan is expected to fill; `replan_every` + `frozen` <= chunk."""

    def merge(self, plans: Plans) -> tuple[Float[Tensor, "*B chunk width"], Int[Tensor, "*B chunk"]]:
        """The joined plan, and how many chunks are behind each of its steps; episodes must not influence each other."""
        ...
