"""Shared by execution strategies: options, the interface to the executor, and the weighted mean of two plans."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from math import pi
from typing import Protocol, runtime_checkable

from robopolicy.action_spec import Array
from robopolicy.arrays import Bool, Float, Int, mixed, namespace
from robopolicy.components import Options, option, require
from robopolicy.model.rotation_math import RotationColumns, in_range, is_rotation, nearest


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
    """Expected time from an observation to its chunk [s]; actions already planned for this time are not changed."""

    def latency_steps(self, control_dt: float) -> int:
        """Control steps that begin during inference."""
        return math.ceil(self.latency_s / control_dt - 1e-9)


@dataclass(frozen=True)
class Plans:
    """The plans of a batch and a new chunk for each; step 0 of both is the control step being prepared."""

    old: Float[Array, "*B chunk width"]
    """The current plan; zeros where `count` is 0."""
    count: Int[Array, "*B chunk"]
    """Number of chunks that each step of the plan was made from; 0: no action."""
    new: Float[Array, "*B chunk width"]
    """The new chunk; zeros at steps that it does not cover."""
    covered: Bool[Array, "*B chunk"]
    """Which steps the new chunk covers."""
    late: Int[Array, "*B"]
    """Control steps from the chunk's observation, or from the episode's first action if that is later, to the step being
    prepared; negative if the observation was taken after that step began."""
    rotations: Sequence[RotationColumns] = ()
    """Columns that `blend` averages as rotations."""


@runtime_checkable
class Strategy(Protocol):
    """Merges a new chunk into the plan, for NumPy arrays (a robot's loop) and tensors (simulations); see `robopolicy.arrays`.

    If its attribute `continues` is True, each chunk is conditioned on the plan: its first `frozen` actions are copied from
    the plan, and it is dropped if the plan has changed since the prediction began.
    """

    frozen: int
    """First steps of each chunk, executed from the old plan since they pass during inference;
    `replan_every` + `frozen` <= chunk."""

    def merge(self, plans: Plans) -> tuple[Float[Array, "*B chunk width"], Int[Array, "*B chunk"]]:
        """The merged plan, and the number of chunks in each of its steps; episodes must not influence each other."""
        ...


def blend(
    old: Float[Array, "*B steps width"],
    new: Float[Array, "*B steps width"],
    share: Float[Array, "*B steps"],
    rotations: Sequence[RotationColumns] = (),
) -> Float[Array, "*B steps width"]:
    """(1 - share) * old + share * new; rotations stay in the range that `old` and `new` use.

    Quaternions whose norm is not 1 are averaged as plain numbers.
    """
    xp, mean = namespace(old), mixed(old, new, share[..., None])
    between = ((share > 0) & (share < 1))[..., None]
    for part in rotations:
        columns = list(part.columns)
        before, after = old[..., columns], new[..., columns]
        origin = xp.where(xp.minimum(before, after) < 0, -pi, 0.0)  # lower end of the range of angles
        turned = mixed(nearest(part.kind, before, after), after, share[..., None])
        rotation = between & is_rotation(part.kind, before) & is_rotation(part.kind, after)
        mean[..., columns] = xp.where(rotation, in_range(part.kind, turned, origin), mean[..., columns])
    return mean
