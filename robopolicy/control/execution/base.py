"""Shared by execution strategies: options, the interface to the executor, and the weighted mean of two plans."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from math import pi
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from robopolicy.components import Options, option, require
from robopolicy.model.rotation_math import TOLERANCE, RotationKind, in_range, nearest
from robopolicy.model.rotations import RotationColumns


@dataclass(frozen=True)
class ExecutionOptions(Options):
    """Options of every strategy."""

    replan_every: int = option(1, ">= 1")
    """Control steps after which a new chunk is merged into the plan."""
    gripper_hysteresis: float = option(0.0, ">= 0")
    """Distance from zero that the gripper's score must cross to switch it. The score is the logit if the policy has one,
    otherwise the action with its two values mapped to -1 and +1."""
    sample: bool = False
    """Sample each chunk from the policy's distribution instead of using the most likely one."""
    best_of: int = option(1, ">= 1")
    """Chunks sampled at a time; the one that agrees best with the plan is used. More than 1 needs `sample`."""
    simulated_latency_steps: int = option(0, ">= 0")
    """Control steps from an observation to its chunk in simulated episodes; not used on a real robot."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.sample or self.best_of == 1,
            f"--execution.best_of {self.best_of} draws chunks at random; it needs --execution.sample true",
        )


@dataclass(frozen=True)
class LatencyOptions(ExecutionOptions):
    """Options of the strategies that expect inference to take time."""

    latency_s: float = option(0.0, ">= 0")
    """Expected time from an observation to its chunk [s]; the planned actions of this time are not changed."""

    def latency_steps(self, control_dt: float) -> int:
        """Control steps that begin during inference."""
        return math.ceil(self.latency_s / control_dt - 1e-9)


@dataclass(frozen=True)
class Plans:
    """The plans of a batch and a new chunk for each; step 0 of both is the control step being prepared."""

    old: Float[Tensor, "*B chunk width"]
    """The current plan; zeros where `count` is 0."""
    count: Int[Tensor, "*B chunk"]
    """Number of chunks that each step of the plan was made from; 0: no action."""
    new: Float[Tensor, "*B chunk width"]
    """The new chunk; zeros where it covers no step."""
    covered: Bool[Tensor, "*B chunk"]
    """Which steps the new chunk covers."""
    late: Int[Tensor, "*B"]
    """Control steps from the chunk's observation to the step being prepared, without those before the episode's first action;
    negative where the robot observed later."""
    rotations: Sequence[RotationColumns] = ()
    """Columns that `blend` averages as rotations."""


@runtime_checkable
class Strategy(Protocol):
    """Merges a new chunk into the plan.

    If its attribute `continues` is True, the policy continues the plan: the first `frozen` actions of a chunk are the
    plan's, and a chunk is taken only if it continues the current plan.
    """

    frozen: int
    """Steps at the beginning of each chunk that the old plan is expected to fill; `replan_every` + `frozen` <= chunk."""

    def merge(self, plans: Plans) -> tuple[Float[Tensor, "*B chunk width"], Int[Tensor, "*B chunk"]]:
        """The merged plan, and the number of chunks in each of its steps; episodes must not influence each other."""
        ...


def blend(
    old: Float[Tensor, "*B steps width"],
    new: Float[Tensor, "*B steps width"],
    share: Float[Tensor, "*B steps"],
    rotations: Sequence[RotationColumns] = (),
) -> Float[Tensor, "*B steps width"]:
    """(1 - share) * old + share * new; rotations stay in the range that `old` and `new` use.

    Quaternion columns whose length is not 1 are averaged as plain numbers.
    """
    mean = torch.lerp(old, new, share[..., None])
    mixed = ((share > 0) & (share < 1))[..., None]
    for part in rotations:
        columns = list(part.columns)
        before, after = old[..., columns], new[..., columns]
        turned = torch.lerp(nearest(part.kind, before, after), after, share[..., None])
        turned = in_range(part.kind, turned, _origin(before, after))
        rotation = mixed & _is_rotation(part.kind, before) & _is_rotation(part.kind, after)
        mean[..., columns] = torch.where(rotation, turned, mean[..., columns])
    return mean


def _origin(before: Tensor, after: Tensor) -> Tensor:
    """Lower end of the angle range that both use: -pi if an angle is negative, otherwise 0."""
    return torch.where(torch.minimum(before, after) < 0, -pi, 0.0)


def _is_rotation(kind: RotationKind, values: Tensor) -> Tensor:
    """(..., 1) bool."""
    if kind != "quaternion":
        return torch.ones_like(values[..., :1], dtype=torch.bool)
    return (values.norm(dim=-1, keepdim=True) - 1).abs() <= TOLERANCE
