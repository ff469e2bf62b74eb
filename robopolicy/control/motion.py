"""The motion of the simulator's arms to their targets: batched, closed form, within velocity and acceleration limits.

The real-time loop follows the same targets by `smoothing`, which also bounds jerk. At the Panda's jerk limits an
acceleration builds up in 2 ms, so that the two differ little; `tests/sim/test_law.py` measures by how much.
"""

import numpy as np
from jaxtyping import Float

from robopolicy.control.arrays import like, namespace
from robopolicy.control.profile import RobotProfile
from robopolicy.types import Array

PASSING_SHARE = 0.5
"""A target is passed at no more than this share of the velocity that one control step can brake away. A steady stream of
small displacements then moves evenly, and a large one ends at its target instead of swinging around it."""


def move(
    profile: RobotProfile,
    target: Float[Array, "*B joints"],
    position: Float[Array, "*B joints"],
    velocity: Float[Array, "*B joints"],
    control_dt: float,
    ticks: int,
) -> tuple[Float[Array, "ticks *B joints"], Float[Array, "*B joints"]]:
    """Commanded positions [rad] of the ticks of one control step, and the velocity at its end [rad/s].

    The joints arrive together: at the end of the step, or as soon after it as the limits allow.
    """
    xp, tick_s = namespace(target), control_dt / ticks
    fastest, hardest = (like(target, np.asarray(each)) for each in (profile.velocity_rad_s, profile.acceleration_rad_s2))
    way = target - position
    arrival_s = xp.amax(_shortest_s(way, velocity, hardest), -1)[..., None].clip(control_dt)
    # What can't be reached in this step ends at rest, to which a constant deceleration leads from twice the mean velocity.
    factor = 1.0 + (arrival_s > control_dt)
    passing = xp.minimum(abs(way) / control_dt, PASSING_SHARE * hardest * control_dt)
    path = []
    for tick in range(ticks):
        way = target - position
        braking = xp.sqrt(passing * passing + 2 * hardest * abs(way))
        wanted = factor * way / (arrival_s - tick * tick_s)
        wanted = _bounded(wanted, xp.minimum(braking, fastest))
        velocity = velocity + _bounded(wanted - velocity, hardest * tick_s)
        position = position + velocity * tick_s
        path.append(position)
    return xp.stack(path), velocity


def _shortest_s(way: Array, velocity: Array, hardest: Array) -> Array:
    """The shortest time [s] of each joint to rest at the end of `way` [rad], with accelerations of +-`hardest`."""
    xp = namespace(way)
    overshoot = way - velocity * abs(velocity) / (2 * hardest)
    direction = xp.sign(overshoot)
    peak = xp.sqrt((hardest * direction * way + velocity * velocity / 2).clip(0.0))
    return (2 * peak - direction * velocity) / hardest


def _bounded(value: Array, limit: Array) -> Array:
    xp = namespace(value)
    return xp.maximum(xp.minimum(value, limit), -limit)
