"""Distances between the links of robot arms, whose shapes are approximated by capsules; for NumPy arrays and torch tensors."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from robopolicy.arrays import Float, like, namespace
from robopolicy.control.kinematics import Arm, link_frames
from robopolicy.types import Array

PARALLEL = 1e-9
"""Two segments count as parallel if the squared sine of the angle between them is below this."""


@dataclass(frozen=True)
class Capsule:
    """All points within `radius_m` of a line segment that is fixed to a link."""

    link: int
    """0: the base link, which carries the first joint; n: the link that joint n moves."""
    start_m: tuple[float, float, float]
    end_m: tuple[float, float, float]
    """The segment's ends [m] in the frame of joint `link` of the profile's `kinematics`; link 0: in the arm's base frame."""
    radius_m: float

    def __post_init__(self) -> None:
        if not (np.isfinite([*self.start_m, *self.end_m]).all() and 0 <= self.radius_m < np.inf and self.link >= 0):
            raise ValueError(f"{self}; expected a link >= 0, finite ends and a radius >= 0")


class LinkDistances:
    """Distances between capsules of links that are not adjacent.

    Args:
        arms: per arm, its kinematics, its capsules, and the pairs of its links that are not compared.
        within: also compare links of the same arm; False: compare only links of different arms.

    Raises:
        ValueError: a capsule belongs to a link that its arm doesn't have.
    """

    def __init__(
        self, arms: Sequence[tuple[Arm, Sequence[Capsule], Sequence[tuple[int, int]]]], within: bool = True
    ) -> None:
        self._arms, owners, radii = [], [], []
        for number, (arm, capsules, _) in enumerate(arms):
            links = [capsule.link for capsule in capsules]
            if max(links, default=0) > arm.joints:
                raise ValueError(f"a capsule of link {max(links)}; the arm's links are 0 .. {arm.joints}")
            ends = np.array([(capsule.start_m, capsule.end_m) for capsule in capsules]).reshape(-1, 2, 3)
            self._arms.append((arm, np.array(links, int), np.concatenate([ends, np.ones((len(ends), 2, 1))], -1)))
            owners += [(number, link) for link in links]
            radii += [capsule.radius_m for capsule in capsules]
        self.pairs = [
            (i, j)
            for i, (one, first) in enumerate(owners)
            for j, (other, second) in enumerate(owners[:i])
            if one != other or (within and abs(first - second) > 1 and not _listed(arms[one][2], first, second))
        ]
        """Index pairs of the capsules that are compared; the capsules of all arms are numbered consecutively."""
        self.owners = owners
        """(arm, link) of each capsule."""
        place = np.array(self.pairs, int).reshape(-1, 2)
        self._first, self._second = place[:, 0], place[:, 1]
        self._radii = np.array(radii)[place].sum(-1)

    def __call__(self, qpos: Float[Array, "*B joints"]) -> Float[Array, "*B pairs"]:
        """Distance [m] of each of `pairs` at the joint positions `qpos` [rad] of all arms; negative where capsules overlap."""
        xp, ends, joint = namespace(qpos), [], 0
        for arm, links, points in self._arms:
            frames = xp.stack(link_frames(arm, qpos[..., joint : joint + arm.joints]), -3)
            chosen = frames[..., like(qpos, links), :, :]
            ends.append((chosen[..., None, :, :] @ like(qpos, points)[..., None])[..., :3, 0])
            joint += arm.joints
        points = xp.concatenate(ends, -3)
        one, other = points[..., like(qpos, self._first), :, :], points[..., like(qpos, self._second), :, :]
        return segment_distance(one, other) - like(qpos, self._radii)


def segment_distance(one: Float[Array, "*B 2 3"], other: Float[Array, "*B 2 3"]) -> Float[Array, "*B"]:
    """Smallest distance between two segments, each given by its two end points; in the unit of the points.

    It is the smallest of the four distances from an end of one segment to the other segment and, if the nearest points of
    the two infinite lines lie inside both segments, the distance between the lines.
    """
    xp = namespace(one)
    start, way = one[..., 0, :], one[..., 1, :] - one[..., 0, :]
    begin, path = other[..., 0, :], other[..., 1, :] - other[..., 0, :]
    ends = [_to_segment(one[..., end, :], begin, path) for end in (0, 1)]
    ends += [_to_segment(other[..., end, :], start, way) for end in (0, 1)]
    apart = start - begin
    # Nearest points of the two lines: start + s * way and begin + t * path.
    a, b, c = (way * way).sum(-1), (way * path).sum(-1), (path * path).sum(-1)
    d, e = (way * apart).sum(-1), (path * apart).sum(-1)
    determinant = a * c - b * b
    skew = determinant > PARALLEL * a * c
    safe = xp.where(skew, determinant, xp.ones_like(determinant))
    s, t = (b * e - c * d) / safe, (a * e - b * d) / safe
    between = apart + s[..., None] * way - t[..., None] * path
    inside = skew & (s > 0) & (s < 1) & (t > 0) & (t < 1)
    lines = xp.where(inside, xp.sqrt((between * between).sum(-1)), ends[0])
    return xp.amin(xp.stack([*ends, lines]), 0)


def _to_segment(point: Array, start: Array, way: Array) -> Array:
    """Distance from `point` to the segment from `start` to `start + way`."""
    xp = namespace(point)
    share = (((point - start) * way).sum(-1) / (way * way).sum(-1).clip(1e-18)).clip(0.0, 1.0)
    apart = point - start - share[..., None] * way
    return xp.sqrt((apart * apart).sum(-1))


def _listed(pairs: Sequence[tuple[int, int]], first: int, second: int) -> bool:
    """Whether the pair is among `pairs`, in either order."""
    return (first, second) in pairs or (second, first) in pairs
