"""The task `chain`: by default five instructions in a row in one scene without a reset, as in the CALVIN benchmark."""

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float, Int

from robopolicy.arrays import like, namespace
from robopolicy.components import Options, option, register
from robopolicy.sim.scene import Scene
from robopolicy.sim.tasks._cubes import (
    COLORS,
    PLATES,
    observed_plates,
    placed_plates_and_cubes,
)
from robopolicy.sim.tasks._moves import Intent
from robopolicy.sim.tasks.base import Setup, State, Task
from robopolicy.sim.tasks.lift import Lift
from robopolicy.sim.tasks.place import Place
from robopolicy.sim.tasks.reach import Reach
from robopolicy.sim.tasks.stack import Stack
from robopolicy.types import Array

LINKS: tuple[Task, ...] = (Reach(), Lift(), Place(), Stack())
"""The single tasks that a chain is made of. A goal is (index into `LINKS`, cube, plate or other cube)."""
REACH, LIFT, PLACE, STACK = range(4)
"""Indices into `LINKS`."""
SENTENCES = (
    lambda cube, _: f"touch the {COLORS[cube]} cube",
    lambda cube, _: f"lift the {COLORS[cube]} cube",
    lambda cube, plate: f"put the {COLORS[cube]} cube on the {PLATES[plate]} plate",
    lambda cube, base: f"stack the {COLORS[cube]} cube on the {COLORS[base]} cube",
)


@dataclass(frozen=True)
class ChainOptions(Options):
    """Options of the task `chain`."""

    length: int = option(5, ">= 1")
    """Number of instructions in an episode."""


@register("task", "chain", ChainOptions)
class Chain(Task):
    """Solve `length` instructions in a row; each is given when the one before it is solved."""

    parts = ("cubes", "plates")

    def __init__(self, options: ChainOptions = ChainOptions()) -> None:
        super().__init__(options)
        self.length = options.length
        self.max_episode_steps = 120 * self.length

    def sample(self, scene: Scene, rng: np.random.Generator) -> Setup:
        """Cubes and plates placed as in `place`, and instructions, each possible once those before it are solved."""
        goals = draw_goals(rng, self.length)
        instructions = tuple(SENTENCES[kind](cube, other) for kind, cube, other in goals)
        return Setup(instructions, np.array(goals), *placed_plates_and_cubes(scene, rng))

    def reached(self, state: State) -> Bool[Array, " worlds"]:
        """True where the current instruction's success condition holds."""
        reached = [link.reached(of_link(state, kind)) for kind, link in enumerate(LINKS)]
        return namespace(state.goal).stack(reached)[state.goal[:, 0], state.worlds]

    def required_hold(self, state: State) -> Int[Array, " worlds"]:
        """Control steps in a row for which the current instruction's condition must hold."""
        return like(state.goal, np.array([each.hold_steps for each in LINKS]))[state.goal[:, 0]]

    def target(self, state: State) -> Float[Array, "worlds 3"]:
        """Position [m] of the cube that the current instruction names."""
        return state.chosen(1)

    def spot(self, state: State) -> Float[Array, "worlds 3"]:
        """Where the current instruction's own task would bring that cube [m]."""
        spots = [link.spot(of_link(state, kind)) for kind, link in enumerate(LINKS)]
        return namespace(state.opening).stack(spots)[state.goal[:, 0], state.worlds]

    def observe(self, state: State, scene: Scene) -> dict[str, Float[Array, "worlds _"]]:
        """Cubes and plates, as in `place`."""
        return super().observe(state, scene) | observed_plates(state)

    def intent(self, state: State) -> Intent:
        """The intent of the current instruction's own task."""
        intents = [link.intent(of_link(state, kind)) for kind, link in enumerate(LINKS)]
        goals, closed = zip(*intents, strict=True)
        xp, kind = namespace(state.opening), state.goal[:, 0]
        return xp.stack(goals)[kind, state.worlds], xp.stack(closed)[kind, state.worlds]


def of_link(state: State, kind: int) -> State:
    """The state with its goal as the single task `LINKS[kind]` expects it.

    In worlds whose goal is of another kind, the goal is zeros: a valid index, so that batched code runs; ignore the results.
    """
    return replace(state, goal=state.goal[:, 1:] * (state.goal[:, :1] == kind))


def draw_goals(rng: np.random.Generator, length: int) -> list[tuple[int, int, int]]:
    """A random sequence of goals, each possible once those before it are solved.

    The kind is drawn first, uniformly: otherwise kinds with more possible cubes and plates would be drawn more often.
    """
    table = _Table()
    goals: list[tuple[int, int, int]] = []
    while len(goals) < length:
        options = table.options()
        kinds = sorted({kind for kind, _, _ in options})
        kind = kinds[rng.integers(len(kinds))]
        choices = [goal for goal in options if goal[0] == kind]
        goals.append(choices[rng.integers(len(choices))])
        table.follow(goals[-1])
    return goals


class _Table:
    """Symbolic state of the scene after the goals so far: what each cube lies on, and which cube is held."""

    def __init__(self) -> None:
        # What is known to be under each cube: ("cube" or "plate", index); None: the table, or the gripper holds it.
        self.below: dict[int, tuple[str, int] | None] = dict.fromkeys(range(len(COLORS)))
        self.held: int | None = None
        # Cube of the last goal; `touch` must not name it again, since the gripper is still there.
        self.last: int | None = None

    def options(self) -> list[tuple[int, int, int]]:
        """Goals that are possible now: a held cube must be put down first, and a cube under another can't be moved."""
        clear = [cube for cube in self.below if ("cube", cube) not in self.below.values()]
        movable = clear if self.held is None else [self.held]
        free_plates = [plate for plate in range(len(PLATES)) if ("plate", plate) not in self.below.values()]
        not_stacked = [cube for cube in clear if (self.below[cube] or ("table",))[0] != "cube"]
        goals = [(PLACE, cube, plate) for cube in movable for plate in free_plates]
        goals += [(STACK, cube, base) for cube in movable for base in not_stacked if base != cube]
        if self.held is None:
            goals += [(REACH, cube, cube) for cube in clear if cube != self.last]
            goals += [(LIFT, cube, cube) for cube in not_stacked]
        return goals

    def follow(self, goal: tuple[int, int, int]) -> None:
        """Update the state as if the goal were solved."""
        kind, cube, other = goal
        self.last = cube
        self.held = cube if kind == LIFT else None
        if kind != REACH:
            self.below[cube] = {LIFT: None, PLACE: ("plate", other), STACK: ("cube", other)}[kind]
