"""Put one named cube on another."""

import numpy as np
from jaxtyping import Float

from robopolicy.components import register
from robopolicy.sim.scene import Scene
from robopolicy.sim.tasks._cubes import COLORS, HALF_M, PLATE_GAP_M, placed_cubes
from robopolicy.sim.tasks.base import Setup, State, Task, place_apart
from robopolicy.sim.tasks.place import Place
from robopolicy.types import Array


@register("task", "stack")
class Stack(Place):
    """Put one named cube on another, where it must stay when released."""

    parts = ("cubes",)
    hold_steps = 5
    tolerance_m = 0.025
    aim_m = 0.015

    def sample(self, scene: Scene, rng: np.random.Generator) -> Setup:
        """Three cubes; two different ones are named."""
        cube, base = (int(each) for each in rng.permutation(len(COLORS))[:2])
        qpos = placed_cubes(scene, rng, place_apart(rng, 3, PLATE_GAP_M))
        instruction = f"stack the {COLORS[cube]} cube on the {COLORS[base]} cube"
        return Setup((instruction,), np.array([[cube, base]]), qpos, scene.home_mocap)

    def spot(self, state: State) -> Float[Array, "worlds 3"]:
        """Directly on top of the other named cube [m]."""
        spot = state.chosen(1) * 1.0
        spot[:, 2] += 2 * HALF_M
        return spot

    def observe(self, state: State, scene: Scene) -> dict[str, Float[Array, "worlds _"]]:
        """Cubes as in every task."""
        return Task.observe(self, state, scene)
