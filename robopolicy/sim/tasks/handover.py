"""Two arms: the right one picks up a bar and hands it to the left one."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from robopolicy.arrays import like, namespace, row
from robopolicy.components import Options, option, register
from robopolicy.sim.scene import Scene
from robopolicy.sim.tasks._moves import choose
from robopolicy.sim.tasks.base import Hand, HandIntent, Setup, State, Task
from robopolicy.types import Array

BAR = """<mujoco model="bar">
  <!-- A free bar 12 x 2.4 x 2.4 cm, long enough for two hands. -->
  <worldbody>
    <body name="bar" pos="0.1 0 0.012">
      <freejoint name="bar"/>
      <geom type="box" size="0.06 0.012 0.012" mass="0.05" group="1" condim="4" friction="1 0.05 0.001" solref="0.01 1"
            rgba="0.85 0.08 0.08 1"/>
    </body>
  </worldbody>
</mujoco>"""
HALF_M = 0.012
"""Half the bar's width [m]."""
GRIP_M = 0.042
"""Distance from the bar's middle to where each hand grips it [m]."""
BAR_X, BAR_Y = (0.03, 0.17), (-0.1, 0.1)
"""Where the bar's middle lies at the start [m]."""
HAND_OVER_M = (0.0, 0.0, 0.2)
"""Where the bar's middle is handed over [m]."""
KEPT_M = (-0.1, 0.0, 0.2)
"""Where the left hand brings it [m]."""
WAITING_M = (-0.16, 0.0, 0.3)
AWAY_M = (0.2, 0.0, 0.25)
"""Where the left hand waits, and where the right one goes at the end [m]."""
GRIPPED_M = (0.016, 0.034)
"""Range of the distance between fingers that are closed on the bar [m]."""
RELEASED_M = 0.055
"""Distance between the fingers above which they don't hold the bar [m]."""
NEAR_M = 0.012
"""Offset along each axis of fingertips from a grip at which closing them grips the bar [m]."""
HOVER_M = 0.08
"""Height above a grip at which a hand arrives [m]."""


@dataclass(frozen=True)
class HandoverOptions(Options):
    """Options of `handover`."""

    yaw_rad: float = option(0.3, ">= 0")
    """Largest turn of the bar about the vertical at the start [rad]."""

    open_share: float = option(1.0, "0 .. 1")
    """How far the grippers are open at the start; ALOHA's simulated demos begin at 0.1."""


@register("task", "handover", HandoverOptions)
class Handover(Task):
    """The left hand alone holds the bar, 10 cm or more above the table, for 10 steps."""

    robot = "viperx_pair"
    parts = (BAR,)
    max_episode_steps = 600
    hold_steps = 10
    raised_m = 0.1

    def sample(self, scene: Scene, rng: np.random.Generator) -> Setup:
        """The bar on the right half of the table, about along the line between the arms."""
        qpos = scene.with_grippers_open(scene.home_qpos, self.options.open_share)
        pose = qpos[scene.object_slice]
        yaw = rng.uniform(-1, 1) * self.options.yaw_rad
        pose[:] = (rng.uniform(*BAR_X), rng.uniform(*BAR_Y), HALF_M, np.cos(yaw / 2), 0.0, 0.0, np.sin(yaw / 2))
        return Setup(("hand the bar over",), np.array([[0]]), qpos, scene.home_mocap)

    def reached(self, state: State) -> Bool[Array, " worlds"]:
        """The left hand grips the raised bar, and the right one has let go and moved away."""
        left, right = state.hands
        grip_left, grip_right = grips(state)
        gone = (abs(right.position - grip_right) > 0.05).any(-1)
        alone = gone & (right.opening > RELEASED_M)
        return grips_bar(left, grip_left) & alone & (state.positions[:, 0, 2] > self.raised_m)

    def observe(self, state: State, scene: Scene) -> dict[str, Float[Array, "worlds _"]]:
        """The bar's position [m] and quaternion, then its grip relative to the left and to the right hand [m]."""
        left, right = state.hands
        grip_left, grip_right = grips(state)
        return {"bar": row(state.objects[:, 0], grip_left - left.position, grip_right - right.position)}

    def intents(self, state: State) -> tuple[HandIntent, ...]:
        """The right hand grips, raises and presents the bar, and leaves once the left one has gripped it."""
        left, right = state.hands
        grip_left, grip_right = grips(state)
        bar, taken = state.positions[:, 0], grips_bar(left, grip_left)
        held = grips_bar(right, grip_right)
        level = like(bar, np.array([1.0, 0.0, 0.0])) + 0.0 * bar
        along = choose(held | taken, level, bar_direction(state))
        presented = (abs(bar - like(bar, np.array(HAND_OVER_M))) < 0.025).all(-1)
        carried = choose(held, _carried(state, right, HAND_OVER_M), _over(right, grip_right))
        left_behind = choose(right.opening > RELEASED_M, 0.0 * bar + like(bar, np.array(AWAY_M)), right.position)
        right_intent = HandIntent(
            choose(taken, left_behind, carried), _downward(-along), (held | _around(right, grip_right)) & ~taken
        )
        free = right.opening > RELEASED_M
        waiting = 0.0 * bar + like(bar, np.array(WAITING_M))
        goal = choose(presented & held, _over(left, grip_left), waiting)
        goal = choose(taken, choose(free, _carried(state, left, KEPT_M), left.position), goal)
        left_intent = HandIntent(goal, _downward(level), taken | (presented & held & _around(left, grip_left)))
        return left_intent, right_intent


def bar_direction(state: State) -> Float[Array, "worlds 3"]:
    """The bar's long axis on the horizontal plane, towards the right arm; a unit vector."""
    xp = namespace(state.qpos)
    w, x, y, z = (state.objects[:, 0, place] for place in range(3, 7))
    axis = xp.stack([1 - 2 * (y * y + z * z), 2 * (x * y + w * z), 0.0 * w], -1)
    axis = axis * xp.where(axis[:, :1] < 0, -1.0, 1.0)
    return axis / ((axis * axis).sum(-1)[:, None] ** 0.5).clip(1e-6)


def grips(state: State) -> tuple[Float[Array, "worlds 3"], Float[Array, "worlds 3"]]:
    """Where the left and the right hand grip the bar [m]."""
    offset = GRIP_M * bar_direction(state)
    return state.positions[:, 0] - offset, state.positions[:, 0] + offset


def grips_bar(hand: Hand, grip: Float[Array, "worlds 3"]) -> Bool[Array, " worlds"]:
    """The fingers are closed on the bar."""
    near = (abs(hand.position - grip) < 0.025).all(-1)
    return near & (hand.opening > GRIPPED_M[0]) & (hand.opening < GRIPPED_M[1])


def _around(hand: Hand, grip: Array) -> Array:
    """The fingers are on both sides of the bar: time to close."""
    return (abs(hand.position - grip) < NEAR_M).all(-1) & (hand.opening > GRIPPED_M[0])


def _over(hand: Hand, grip: Array) -> Array:
    """Where a hand goes next to come down on a grip: high while off to the side, lower the better the alignment."""
    offset = grip[:, :2] - hand.position[:, :2]
    side = (((offset * offset).sum(-1) ** 0.5 - 0.008) / 0.03).clip(0.0, 1.0)
    goal = 1.0 * grip
    goal[:, 2] = grip[:, 2] + HOVER_M * side
    return goal


def _carried(state: State, hand: Hand, spot: tuple[float, float, float]) -> Array:
    """Where a hand goes next to carry the bar's middle to a spot, straight up first."""
    bar = state.positions[:, 0]
    way = like(bar, np.array(spot)) - bar
    share = (1.0 - (way[:, 2] - 0.06) / 0.06).clip(0.0, 1.0)[:, None]
    goal = hand.position + share * way
    goal[:, 2] = hand.position[:, 2] + way[:, 2]
    return goal


def _downward(along: Float[Array, "worlds 3"]) -> Float[Array, "worlds 3 3"]:
    """The rotation of a hand that points down, its back towards `along`: its fingers then close across it."""
    xp = namespace(along)
    zero, x, y = 0.0 * along[:, 0], along[:, 0], along[:, 1]
    return xp.stack([xp.stack(each, -1) for each in ([zero, -y, x], [zero, x, y], [zero - 1.0, zero, zero])], -2)
