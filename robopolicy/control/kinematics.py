"""Batched kinematics of a serial arm from its DH table: pose, Jacobian, damped least squares.

Every function takes NumPy arrays or torch tensors with any leading axes and answers in kind, so that one code runs in
the CPU simulator, on the GPU and on the robot. A rotation is a matrix (*B, 3, 3); a twist is (*B, 6): linear [m], then
rotation vector [rad], both in the base frame.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float

from robopolicy.control.arrays import like, namespace
from robopolicy.types import Array

DAMPING = 0.05
"""Damping of the least squares, of the size end-effector control uses in practice."""


@dataclass(frozen=True)
class Arm:
    """A serial arm of revolute joints by modified (Craig) DH parameters, with a tool fixed to its flange."""

    dh: tuple[tuple[float, float, float], ...]
    """Per joint: a [m], d [m], alpha [rad]."""
    flange_m: float
    """Distance from the last joint's frame to the flange, along its z axis [m]."""
    tool_position_m: tuple[float, float, float]
    """Tool frame's origin in the flange's frame [m]."""
    tool_rotation: tuple[tuple[float, float, float], ...]
    """Tool frame's rotation matrix in the flange's frame."""
    lower_rad: tuple[float, ...]
    """Lower joint limits [rad]."""
    upper_rad: tuple[float, ...]
    """Upper joint limits [rad]."""

    @cached_property
    def affine(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Three (joints, 4, 4) arrays of which each joint's transform is the first + cos q * second + sin q * third."""
        constant, cosine, sine = np.zeros((3, len(self.dh), 4, 4))
        for joint, (a, d, alpha) in enumerate(self.dh):
            ca, sa = np.cos(alpha), np.sin(alpha)
            constant[joint] = [[0, 0, 0, a], [0, 0, -sa, -d * sa], [0, 0, ca, d * ca], [0, 0, 0, 1]]
            cosine[joint, :3, :2] = [[1, 0], [0, ca], [0, sa]]
            sine[joint, :3, :2] = [[0, -1], [ca, 0], [sa, 0]]
        return constant, cosine, sine

    @cached_property
    def tool(self) -> np.ndarray:
        """Transform (4, 4) from the last joint's frame to the tool."""
        tool = np.eye(4)
        tool[:3, :3] = self.tool_rotation
        tool[:3, 3] = np.add(self.tool_position_m, (0.0, 0.0, self.flange_m))
        return tool


_HALF = np.pi / 2
_DIAGONAL = float(np.sqrt(0.5))

PANDA = Arm(
    dh=(
        (0.0, 0.333, 0.0),
        (0.0, 0.0, -_HALF),
        (0.0, 0.316, _HALF),
        (0.0825, 0.0, _HALF),
        (-0.0825, 0.384, -_HALF),
        (0.0, 0.0, _HALF),
        (0.088, 0.0, _HALF),
    ),
    flange_m=0.107,
    tool_position_m=(0.0, 0.0, 0.1034),
    tool_rotation=(
        (_DIAGONAL, -_DIAGONAL, 0.0),
        (-_DIAGONAL, -_DIAGONAL, 0.0),
        (0.0, 0.0, -1.0),
    ),
    lower_rad=(-2.8973, -1.7628, -2.8973, -3.0718, -2.8973, -0.0175, -2.8973),
    upper_rad=(2.8973, 1.7628, 2.8973, -0.0698, 2.8973, 3.7525, 2.8973),
)
"""Franka's Panda with its hand (Franka Control Interface documentation). The tool frame lies between the fingertips and
is turned so that it is the base frame's own orientation when the hand points straight down: x forward, z up."""


def pose_and_jacobian(
    arm: Arm, qpos: Float[Array, "*B joints"]
) -> tuple[Float[Array, "*B 3"], Float[Array, "*B 3 3"], Float[Array, "*B 6 joints"]]:
    """Position [m] and rotation of the tool in the base frame, and the geometric Jacobian at its origin.

    Row order of the Jacobian is that of a twist: linear, then angular.
    """
    xp = namespace(qpos)
    constant, cosine, sine, tool = (like(qpos, each) for each in (*arm.affine, arm.tool))
    transforms = constant + xp.cos(qpos)[..., None, None] * cosine + xp.sin(qpos)[..., None, None] * sine
    frame = transforms[..., 0, :, :]
    frames = [frame]
    for joint in range(1, len(arm.dh)):
        frame = frame @ transforms[..., joint, :, :]
        frames.append(frame)
    end = frame @ tool
    stacked = xp.stack(frames, -1)  # (*B, 4, 4, joints)
    axes = stacked[..., :3, 2, :]
    arms = end[..., :3, 3, None] - stacked[..., :3, 3, :]
    axes_twice, arms_twice = (xp.concatenate([each, each[..., :2, :]], -2) for each in (axes, arms))
    linear = axes_twice[..., 1:4, :] * arms_twice[..., 2:5, :] - axes_twice[..., 2:5, :] * arms_twice[..., 1:4, :]
    return end[..., :3, 3], end[..., :3, :3], xp.concatenate([linear, axes], -2)


_EYE_3, _EYE_4, _EYE_6 = np.eye(3), np.eye(4), np.eye(6)


def damped_least_squares(
    jacobian: Float[Array, "*B 6 joints"],
    twist: Float[Array, "*B 6"],
    damping: float = DAMPING,
    posture: Float[Array, "*B joints"] | None = None,
) -> Float[Array, "*B joints"]:
    """Joint displacement [rad] that moves the tool by `twist`: J^T (J J^T + damping^2 I)^-1 twist (Wampler 1986).

    `posture` is a joint displacement wished for besides [rad]; only its part that leaves the tool at rest is added.
    """
    transposed = jacobian.mT
    gram = jacobian @ transposed + damping**2 * like(jacobian, _EYE_6)
    wanted = twist[..., None] if posture is None else twist[..., None] - jacobian @ posture[..., None]
    step = (transposed @ _solve(gram, wanted))[..., 0]
    return step if posture is None else step + posture


def _solve(gram: Float[Array, "*B n n"], wanted: Float[Array, "*B n 1"]) -> Float[Array, "*B n 1"]:
    """The solution x of gram x = wanted, for a positive definite matrix.

    Tensors go through Gauss-Jordan elimination, which needs no pivots here: torch's own solver waits for the device.
    """
    if isinstance(gram, np.ndarray):
        return np.linalg.solve(gram, wanted)
    xp = namespace(gram)
    table = xp.concatenate([gram, wanted], -1)
    for pivot in range(gram.shape[-1]):
        chosen = table[..., pivot : pivot + 1, :] / table[..., pivot : pivot + 1, pivot : pivot + 1]
        table = table - table[..., pivot : pivot + 1] * chosen
        table[..., pivot : pivot + 1, :] = chosen
    return table[..., -1:]


def rotation_vector(rotation: Float[Array, "*B 3 3"]) -> Float[Array, "*B 3"]:
    """The rotation's axis times its angle in [0, pi] [rad]."""
    xp = namespace(rotation)
    quaternion = matrix_to_quaternion(rotation)
    vector = quaternion[..., 1:]
    sine = xp.sqrt((vector * vector).sum(-1))[..., None]
    angle = 2 * xp.arctan2(sine, quaternion[..., :1])
    small = sine < 1e-9
    return vector * xp.where(small, 2 * xp.ones_like(sine), angle / (sine + small * 1.0))


def matrix_to_quaternion(rotation: Float[Array, "*B 3 3"]) -> Float[Array, "*B 4"]:
    """The unit quaternion w x y z with w >= 0, read off its largest component, so that half turns stay exact."""
    xp = namespace(rotation)
    entries = rotation.reshape(*rotation.shape[:-2], 9)
    slopes, offsets, eye = (like(entries, constant) for constant in (_PRODUCT_SLOPES, _PRODUCT_OFFSETS, _EYE_4))
    products = entries @ slopes + offsets
    largest = eye[xp.argmax(products[..., ::5], -1)]  # of the diagonal
    quaternion = (largest[..., None, :] @ products.reshape(*entries.shape[:-1], 4, 4))[..., 0, :]
    norm = xp.sqrt((quaternion * quaternion).sum(-1))[..., None]
    return quaternion / norm * xp.where(quaternion[..., :1] < 0, -1.0, 1.0)


def _quaternion_products() -> tuple[np.ndarray, np.ndarray]:
    """Slopes (9, 16) and offsets (16,) by which a rotation matrix gives 4 q q^T, of which every row is the quaternion.

    The row with the largest diagonal loses nothing to cancellation (Bar-Itzhack 2000 uses the same matrix).
    """
    slopes, offsets = np.zeros((3, 3, 4, 4)), np.eye(4)
    signs = np.array([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]])
    for axis in range(3):
        slopes[axis, axis][np.diag_indices(4)] = signs[:, axis]
        j, k = (axis + 1) % 3, (axis + 2) % 3
        for row, column in ((0, 1 + axis), (1 + axis, 0)):
            slopes[k, j, row, column], slopes[j, k, row, column] = 1, -1
        for row, column in ((1 + j, 1 + k), (1 + k, 1 + j)):
            slopes[k, j, row, column] = slopes[j, k, row, column] = 1
    return slopes.reshape(9, 16), offsets.reshape(16)


_PRODUCT_SLOPES, _PRODUCT_OFFSETS = _quaternion_products()


def rotation_from_vector(vector: Float[Array, "*B 3"]) -> Float[Array, "*B 3 3"]:
    """The rotation matrix of a rotation vector [rad], by Rodrigues' formula."""
    xp = namespace(vector)
    angle = xp.sqrt((vector * vector).sum(-1))[..., None, None]
    x, y, z = vector[..., 0], vector[..., 1], vector[..., 2]
    zero = x * 0
    skew = xp.stack([xp.stack(row, -1) for row in ([zero, -z, y], [z, zero, -x], [-y, x, zero])], -2)
    safe = angle + (angle < 1e-9) * 1.0
    first = xp.where(angle < 1e-9, xp.ones_like(angle), xp.sin(safe) / safe)
    second = xp.where(angle < 1e-9, xp.ones_like(angle) / 2, (1 - xp.cos(safe)) / (safe * safe))
    return like(skew, _EYE_3) + first * skew + second * (skew @ skew)
