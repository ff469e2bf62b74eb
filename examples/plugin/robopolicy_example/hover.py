"""The task `hover`: hold the fingertips over the named one of three cubes."""

from dataclasses import dataclass

from jaxtyping import Bool, Float

from robopolicy.components import Options, option, register
from robopolicy.sim.tasks.base import State, Task
from robopolicy.sim.tasks.reach import Reach
from robopolicy.types import Array


@dataclass(frozen=True)
class HoverOptions(Options):
    """Options of the task `hover`."""

    height_m: float = option(0.1, "> 0")
    """Height of the fingertips over the cube's center [m]."""


@register("task", "hover", HoverOptions)
class Hover(Reach):
    """Hold the fingertips over the named cube for 10 steps, within 2 cm; scene and start are those of `reach`."""

    max_episode_steps = 80
    hold_steps = 10
    template = "hover over the {} cube"
    options: HoverOptions

    def spot(self, state: State) -> Float[Array, "worlds 3"]:
        """The point over the named cube [m]."""
        spot = state.chosen(0) * 1.0
        spot[:, 2] += self.options.height_m
        return spot

    def reached(self, state: State) -> Bool[Array, " worlds"]:
        """The fingertips are at the point."""
        offset = self.spot(state) - state.ee_position
        return (offset * offset).sum(-1) ** 0.5 < 0.02

    def failed(self, state: State) -> Bool[Array, " worlds"]:
        """A cube fell off the table."""
        return Task.failed(self, state)

    def intent(self, state: State) -> tuple[Float[Array, "worlds 3"], Bool[Array, " worlds"]]:
        """Straight to the point, with open fingers."""
        return self.spot(state), state.step < 0
