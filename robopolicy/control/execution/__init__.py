"""Which action of which chunk is executed when: the options of the executor."""

from dataclasses import dataclass
from typing import Literal, TypeAlias

from robopolicy.components import expect

Strategy: TypeAlias = Literal["receding", "ensemble", "freeze"]


@dataclass(frozen=True)
class ExecutionConfig:
    """Which action of which chunk is executed when."""

    strategy: Strategy = "receding"
    """receding (a new chunk every replan_every steps), ensemble (ACT's weights), freeze (keep the latency's prefix)."""
    replan_every: int = 1
    """Actions executed before the next chunk is used."""
    ensemble_decay: float = 0.01
    """m of ACT's weights exp(-m i), i = 0 the oldest chunk."""
    gripper_hysteresis: float = 0.0
    """Logit beyond which the gripper changes its mind; 0 switches at 0."""

    def __post_init__(self) -> None:
        expect(self, "execution", ">= 1", "replan_every")
        expect(self, "execution", ">= 0", "ensemble_decay", "gripper_hysteresis")
