"""Moves the simulator's arms to their targets within velocity and acceleration limits; batched and in closed form.

The real-time loop follows the same targets by `smoothing`, which also bounds jerk. At the Panda's jerk limits, full
acceleration is reached in 2 ms, so the two differ little; `tests/sim/test_law.py` measures the difference.
"""

import numpy as np

from robopolicy.arrays import Float, like, namespace
from robopolicy.control.profile import RobotProfile
from robopolicy.types import Array

ACCELERATION_SHARE = 0.75
"""Share of the acceleration limits that the worlds use; the real-time loop needs the rest for jerk and corrections when it
replays a recorded motion."""
PASSING_SHARE = 0.5
"""Largest velocity at a target, as a share of the velocity that can be braked to rest in one control step. A stream of small
displacements then moves evenly, and a large one stops at its target instead of overshooting."""


def move(
    profile: RobotProfile,
    target: Float[Array, "*B joints"],
    position: Float[Array, "*B joints"],
    velocity: Float[Array, "*B joints"],
    control_dt: float,
    ticks: int,
) -> tuple[Float[Array, "ticks *B joints"], Float[Array, "*B joints"]]:
    """Commanded positions [rad] at the ticks of one control step, and the velocity at its end [rad/s].

    All joints arrive at the same time: at the end of the step, or as soon after it as the limits allow.
    """
    xp, tick_s = namespace(target), control_dt / ticks
    fastest, hardest = (
        like(target, np.asarray(each)) for each in (profile.velocity_rad_s, profile.acceleration_rad_s2)
    )
    hardest = ACCELERATION_SHARE * hardest
    way = target - position
    shortest_s, direction = _shortest_s(way, velocity, hardest)
    arrival_s = xp.amax(shortest_s, -1)[..., None].clip(control_dt)
    in_time = arrival_s <= control_dt
    cruise = direction * _cruise(direction * way, direction * velocity, hardest, arrival_s)
    passing = xp.minimum(abs(way) / control_dt, PASSING_SHARE * hardest * control_dt)
    path = []
    for tick in range(ticks):
        way = target - position
        desired = xp.where(in_time, way / (control_dt - tick * tick_s), cruise)
        braking = xp.sqrt(passing * passing + 2 * hardest * abs(way))
        desired = _bounded(desired, xp.minimum(braking, fastest))
        velocity = velocity + _bounded(desired - velocity, hardest * tick_s)
        position = position + velocity * tick_s
        path.append(position)
    return xp.stack(path), velocity


def _shortest_s(way: Array, velocity: Array, hardest: Array) -> tuple[Array, Array]:
    """The shortest time [s] in which each joint comes to rest at a distance `way` [rad], and its first acceleration's sign."""
    xp = namespace(way)
    direction = xp.sign(way - velocity * abs(velocity) / (2 * hardest))
    peak = xp.sqrt((hardest * direction * way + velocity * velocity / 2).clip(0.0))
    return (2 * peak - direction * velocity) / hardest, direction


def _cruise(way: Array, velocity: Array, hardest: Array, arrival_s: Array) -> Array:
    """The cruise velocity [rad/s], between two phases of acceleration, that brings a joint to rest after `arrival_s`.

    `way` and `velocity` are positive in the direction of the first acceleration of the fastest motion.
    """
    xp = namespace(way)
    half = (arrival_s + velocity / hardest) / 2
    covered = (way + velocity * velocity / (2 * hardest)) / hardest
    faster = hardest * (half - xp.sqrt((half * half - covered).clip(0.0)))
    slower = (way - velocity * velocity / (2 * hardest)) / (arrival_s - velocity / hardest).clip(1e-6)
    return xp.where(faster >= velocity, faster, slower)


def _bounded(value: Array, limit: Array) -> Array:
    xp = namespace(value)
    return xp.maximum(xp.minimum(value, limit), -limit)
