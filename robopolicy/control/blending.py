"""The weighted mean of two plans; rotations are averaged along the shorter way: 3.1 and -3.1 rad give pi, not 0."""

from collections.abc import Sequence
from math import pi

import torch
from jaxtyping import Float
from torch import Tensor

from robopolicy.model.rotation_math import TOLERANCE, RotationKind, in_range, nearest
from robopolicy.model.rotations import RotationColumns


def blend(
    old: Float[Tensor, "*B steps width"],
    new: Float[Tensor, "*B steps width"],
    share: Float[Tensor, "*B steps"],
    rotations: Sequence[RotationColumns] = (),
) -> Float[Tensor, "*B steps width"]:
    """(1 - share) * old + share * new; rotations stay in the range that `old` and `new` use.

    Quaternion columns whose length is not 1 are averaged as plain numbers.
    """
    mean = torch.lerp(old, new, share[..., None])
    mixed = ((share > 0) & (share < 1))[..., None]
    for part in rotations:
        columns = list(part.columns)
        before, after = old[..., columns], new[..., columns]
        turned = torch.lerp(nearest(part.kind, before, after), after, share[..., None])
        turned = in_range(part.kind, turned, _origin(before, after))
        rotation = mixed & _is_rotation(part.kind, before) & _is_rotation(part.kind, after)
        mean[..., columns] = torch.where(rotation, turned, mean[..., columns])
    return mean


def _origin(before: Tensor, after: Tensor) -> Tensor:
    """Lower end of the angle range that both use: -pi if an angle is negative, otherwise 0."""
    return torch.where(torch.minimum(before, after) < 0, -pi, 0.0)


def _is_rotation(kind: RotationKind, values: Tensor) -> Tensor:
    """(..., 1) bool."""
    if kind != "quaternion":
        return torch.ones_like(values[..., :1], dtype=torch.bool)
    return (values.norm(dim=-1, keepdim=True) - 1).abs() <= TOLERANCE
