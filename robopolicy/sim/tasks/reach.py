"""Touch the named one of three cubes."""

import numpy as np
from jaxtyping import Bool, Float

from robopolicy.components import register
from robopolicy.sim.scene import Scene
from robopolicy.sim.tasks._cubes import COLORS, GAP_M, is_other, placed_cubes
from robopolicy.sim.tasks._moves import Intent, above
from robopolicy.sim.tasks.base import Setup, State, Task, place_apart
from robopolicy.types import Array


@register("task", "reach")
class Reach(Task):
    """Touch the named cube of three; touching another is a failure."""

    needs_gripper = False
    parts = ("cubes",)
    max_episode_steps = 100
    template = "touch the {} cube"
    touch_m = 0.03
    """Fingertips this near to a cube's center touch it [m]."""

    def sample(self, scene: Scene, rng: np.random.Generator) -> Setup:
        """Three cubes apart from each other, one of them named."""
        cube = int(rng.integers(3))
        qpos = placed_cubes(scene, rng, place_apart(rng, 3, GAP_M))
        return Setup((self.template.format(COLORS[cube]),), np.array([[cube]]), qpos, scene.home_mocap)

    def distance(self, state: State) -> Float[Array, "worlds objects"]:
        """Distance of the fingertips from each cube's center [m]."""
        offset = state.positions - state.ee_position[:, None]
        return (offset * offset).sum(-1) ** 0.5

    def reached(self, state: State) -> Bool[Array, " worlds"]:
        """The fingertips touch the named cube."""
        return self.distance(state)[state.worlds, state.goal[:, 0]] < self.touch_m

    def failed(self, state: State) -> Bool[Array, " worlds"]:
        """The fingertips touch another cube, or one fell off the table."""
        touched = self.distance(state) < self.touch_m
        return (touched & is_other(state)).any(-1) | super().failed(state)

    def intent(self, state: State) -> Intent:
        """Come down over the named cube with open fingers."""
        return above(state, state.chosen(0), resting_m=0.02), state.step < 0
