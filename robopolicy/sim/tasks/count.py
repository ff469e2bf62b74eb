"""A memory task: the lamp blinks; touch the lid as many times, then keep away from it."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from robopolicy.arrays import like, namespace, row
from robopolicy.components import Options, option, register
from robopolicy.sim.scene import Scene
from robopolicy.sim.tasks._cubes import with_arm_near_home
from robopolicy.sim.tasks._lids import LID_HALF_M, LIDS, TOP, LidTask
from robopolicy.sim.tasks._moves import Intent, above, at_height, choose
from robopolicy.sim.tasks.base import TABLE_X, TABLE_Y, Setup, State
from robopolicy.types import Array

TOUCH, RISE, END = range(3)
"""Stages: touch the lid, rise from it, stay away from it."""
TOUCH_M, LEFT_M = 0.03, 0.07
"""Heights of the fingertips above the lid's top below which they touch it, and above which they have left it [m]."""
END_STEPS = 15
"""Control steps without a further touch after which the episode succeeds: the time that another touch takes."""


@dataclass(frozen=True)
class CountOptions(Options):
    """Options of the task `count`."""

    most: int = option(3, ">= 1")
    """Largest number of blinks; all numbers from 1 up to it are equally likely."""
    blink_steps: int = option(3, ">= 1")
    """Control steps for which the lamp is lit, and for which it is dark after it."""
    delay_steps: int = option(4, ">= 0")
    """Control steps from the end of the longest sequence of blinks until the lid appears and the arm may move."""


@register("task", "count", CountOptions)
class Count(LidTask):
    """Touch the lid as often as the lamp blinked, then stay away from it; move only once the lid is there.

    The lid appears after the same time whatever the number of blinks. A goal is (stage, number of blinks, steps to hold).
    """

    parts = ("lids",)

    def __init__(self, options: CountOptions = CountOptions()) -> None:
        super().__init__(options)
        self.wait_steps = 2 * options.most * options.blink_steps + options.delay_steps
        self.max_episode_steps = self.wait_steps + 40 * options.most + 2 * END_STEPS

    def sample(self, scene: Scene, rng: np.random.Generator) -> Setup:
        """A number of blinks, and where the lid will be."""
        blinks = int(rng.integers(1, self.options.most + 1))
        stages = [TOUCH, RISE] * blinks
        stages += [END] * (2 * self.options.most + 1 - len(stages))
        mocap_pos = scene.home_mocap.copy()
        mocap_pos[1, :2] = rng.uniform(*np.array([TABLE_X, TABLE_Y]).T)
        holds = [1] * (len(stages) - 1) + [END_STEPS]
        goals = np.array([[stage, blinks, hold] for stage, hold in zip(stages, holds, strict=True)])
        instructions = ("touch the lid as often as the lamp blinked",) * len(goals)
        return Setup(instructions, goals, with_arm_near_home(scene, rng), mocap_pos)

    def arrange(self, state: State, scene: Scene) -> Float[Array, "worlds nmocap 3"]:
        """The lamp blinks; the lid is sunk below the table until the arm may move."""
        xp, mocap_pos, span = namespace(state.mocap_pos), state.mocap_pos * 1.0, 2 * self.options.blink_steps
        lit = (state.step % span < self.options.blink_steps) & (state.step // span < state.goal[:, 1])
        mocap_pos[:, LIDS] = like(mocap_pos, scene.home_mocap[LIDS])
        self.light_lamp(mocap_pos, lit)
        mocap_pos[:, 1, 2] = xp.where(self.may_move(state), LID_HALF_M, -0.2)
        return mocap_pos

    def height(self, state: State) -> Float[Array, " worlds"]:
        """Height of the fingertips above the lid's top [m]; far away beside the lid."""
        offset = state.ee_position - state.mocap_pos[:, 1]
        beside = (offset[:, :2] * offset[:, :2]).sum(-1) > (2 * LID_HALF_M) ** 2
        return offset[:, 2] - LID_HALF_M + 1.0 * beside

    def reached(self, state: State) -> Bool[Array, " worlds"]:
        """The stage is done: the lid is touched, or left, or left alone."""
        height, stage = self.height(state), state.goal[:, 0]
        touching = (height < TOUCH_M) & (stage == TOUCH)
        return (touching | ((height > LEFT_M) & (stage != TOUCH))) & self.may_move(state)

    def required_hold(self, state: State) -> Int[Array, " worlds"]:
        """One step for a touch and for leaving; in the end long enough for another touch."""
        return state.goal[:, 2]

    def failed(self, state: State) -> Bool[Array, " worlds"]:
        """The lid was touched one time too many, or the arm moved too early."""
        again = (self.height(state) < TOUCH_M) & (state.goal[:, 0] == END)
        return again | self.moved_early(state)

    def target(self, state: State) -> Float[Array, "worlds 3"]:
        """Middle of the lid [m]."""
        return state.mocap_pos[:, 1]

    def observe(self, state: State, scene: Scene) -> dict[str, Float[Array, "worlds _"]]:
        """Whether the lamp is lit; the lid and the way to it once it is there (zeros before)."""
        lid, there = state.mocap_pos[:, 1], self.may_move(state)[:, None]
        lamp = state.mocap_pos[:, LIDS, :1] > 0
        return {"lamp": row(lamp), "lid": row(lid * there, (lid - state.ee_position) * there)}

    def intent(self, state: State) -> Intent:
        """Wait at home until the lid is there, touch it and rise as often as required, and stay above it."""
        top = state.mocap_pos[:, 1] + like(state.mocap_pos, TOP)
        goal = choose(state.goal[:, 0] == TOUCH, above(state, top), at_height(state, 2 * LID_HALF_M + 2 * LEFT_M))
        return self.once_allowed(state, goal)
