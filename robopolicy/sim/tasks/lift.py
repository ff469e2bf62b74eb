"""Raise the named one of three cubes."""

from jaxtyping import Bool, Float

from robopolicy.components import register
from robopolicy.sim.tasks._cubes import HALF_M, height_above_table, is_other
from robopolicy.sim.tasks._moves import LIFTED_M, Intent, approach, around, at_height, choose, holding, nearness
from robopolicy.sim.tasks.base import State, Task
from robopolicy.sim.tasks.reach import Reach
from robopolicy.types import Array


@register("task", "lift")
class Lift(Reach):
    """Raise the named cube of three by 5 cm and hold it for 10 steps; lifting another is a failure."""

    needs_gripper = True
    max_episode_steps = 150
    hold_steps = 10
    template = "lift the {} cube"
    raise_m = 0.05

    def spot(self, state: State) -> Float[Array, "worlds 3"]:
        """Above the place of the named cube, at the height to which the expert raises it [m]."""
        spot = state.chosen(0) * 1.0
        spot[:, 2] = LIFTED_M
        return spot

    def reached(self, state: State) -> Bool[Array, " worlds"]:
        """The named cube is raised."""
        return state.chosen(0)[:, 2] >= HALF_M + self.raise_m

    def failed(self, state: State) -> Bool[Array, " worlds"]:
        """Another cube is raised, or one fell off the table."""
        raised = height_above_table(state) >= self.raise_m
        return (raised & is_other(state)).any(-1) | Task.failed(self, state)

    def progress(self, state: State) -> Float[Array, " worlds"]:
        """A third each for the fingertips at the named cube, for holding it, and for raising it."""
        cube = state.chosen(0)
        held = holding(state, cube)
        raised = ((cube[:, 2] - HALF_M) / self.raise_m).clip(0.0, 1.0)
        return (nearness(state.ee_position - cube, 0.1) + held * (1.0 + raised)) / 3

    def intent(self, state: State) -> Intent:
        """Grasp the named cube and raise it straight up."""
        cube = state.chosen(0)
        held = holding(state, cube)
        goal = choose(held, at_height(state, LIFTED_M), approach(state, cube))
        return goal, held | around(state, cube)
