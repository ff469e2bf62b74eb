"""Batched kinematics of a serial arm: pose, Jacobian, damped least squares.

Every function takes NumPy arrays or torch tensors with any leading axes and returns the same kind, so that the same code
runs in the CPU simulator, on the GPU and on the robot. A rotation is a matrix (*B, 3, 3); a displacement of the tool (`twist`)
is (*B, 6): translation [m], then rotation vector [rad]. Poses and displacements are in the robot's frame.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from robopolicy.arrays import Float, like, namespace
from robopolicy.types import Array

DAMPING = 0.05
"""Default damping of the least squares, a usual value in end-effector control."""


@dataclass(frozen=True)
class Arm:
    """A serial arm of revolute joints, given by its `dh` table or by the `frames` of its joints, with a tool at its end.

    Raises:
        ValueError: both or neither of the two are given, or `axes` do not fit `frames` or contain a zero vector.
    """

    dh: tuple[tuple[float, float, float], ...] | None = None
    """Modified (Craig) Denavit-Hartenberg parameters of each joint: a [m], d [m], alpha [rad]."""
    frames: tuple[tuple[float, float, float, float, float, float], ...] | None = None
    """Each joint's frame in the previous one at angle 0, like `origin` in a URDF: x y z [m], roll pitch yaw [rad]."""
    axes: tuple[tuple[float, float, float], ...] | None = None
    """Each joint's axis in its own frame, only with `frames`; None: z."""
    tool: tuple[float, float, float, float, float, float] = (0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
    """The tool's frame in the last joint's: x y z [m], roll pitch yaw [rad]."""
    base: tuple[float, float, float, float, float, float] = (0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
    """The arm's base in the robot's frame: x y z [m], roll pitch yaw [rad]."""

    def __post_init__(self) -> None:
        if (self.dh is None) == (self.frames is None):
            found = "both" if self.dh is not None else "neither"
            raise ValueError(
                f"kinematics have {found} of `dh` (a, d, alpha of each joint) and `frames`; give one of them"
            )
        if self.axes is not None and (self.frames is None or len(self.axes) != len(self.frames)):
            frames = "no `frames`" if self.frames is None else f"{len(self.frames)} `frames`"
            raise ValueError(
                f"kinematics have {len(self.axes)} `axes` and {frames}; give one axis for each frame, or no axes"
            )
        if self.axes is not None and not all(np.linalg.norm(axis) > 0 for axis in self.axes):
            raise ValueError(f"kinematics have axes {self.axes}; expected directions, not zeros")

    @property
    def joints(self) -> int:
        """Number of joints."""
        return len(self._origins)

    @cached_property
    def affine(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Three (joints, 4, 4) arrays and the tool's transform (4, 4).

        Each joint's transform is the first array + cos q * the second + sin q * the third. The joints' frames are turned so
        that every axis is z.
        """
        axes = self.axes or ((0.0, 0.0, 1.0),) * self.joints
        turned = np.eye(4)
        constant, cosine, sine = np.zeros((3, self.joints, 4, 4))
        for joint, (origin, axis) in enumerate(zip(self._origins, axes, strict=True)):
            aligned = _z_to(axis)
            frame = turned.T @ origin @ aligned
            constant[joint, :, 2:] = frame[:, 2:]
            cosine[joint, :, :2] = frame[:, :2]
            sine[joint, :, 0], sine[joint, :, 1] = frame[:, 1], -frame[:, 0]
            turned = aligned
        return constant, cosine, sine, turned.T @ _transform(self.tool)

    @cached_property
    def aligned(self) -> list[np.ndarray]:
        """Transform (4, 4) of each joint's original frame in its frame of `affine`, whose z is the joint's axis."""
        return [_z_to(axis).T for axis in self.axes or ((0.0, 0.0, 1.0),) * self.joints]

    @cached_property
    def _origins(self) -> list[np.ndarray]:
        """Transform (4, 4) of each joint's frame in the previous one at angle 0; the first joint's is in the robot's frame."""
        first, *others = self._frames_of_joints()
        return [_transform(self.base) @ first, *others]

    def _frames_of_joints(self) -> list[np.ndarray]:
        if self.frames is not None:
            return [_transform(frame) for frame in self.frames]
        origins = []
        for a, d, alpha in self.dh or ():
            ca, sa = np.cos(alpha), np.sin(alpha)
            origins.append(np.array([[1, 0, 0, a], [0, ca, -sa, -d * sa], [0, sa, ca, d * ca], [0, 0, 0, 1]]))
        return origins


def _transform(frame: Sequence[float]) -> np.ndarray:
    """Transform (4, 4) of x y z [m] and roll pitch yaw [rad]: rotations about the fixed x, y and z axes, in this order."""
    transform = np.eye(4)
    transform[:3, 3] = frame[:3]
    for axis, angle in enumerate(frame[3:]):
        transform[:3, :3] = rotation_from_vector(np.eye(3)[axis] * angle) @ transform[:3, :3]
    return transform


def _z_to(axis: Sequence[float]) -> np.ndarray:
    """Transform (4, 4) of a rotation that turns the z axis to the direction of `axis`."""
    transform, direction = np.eye(4), np.asarray(axis, float) / np.linalg.norm(axis)
    turn, cosine = np.cross([0.0, 0.0, 1.0], direction), direction[2]
    sine = np.linalg.norm(turn)
    if sine > 1e-12:
        transform[:3, :3] = rotation_from_vector(turn / sine * np.arctan2(sine, cosine))
    elif cosine < 0:
        transform[:3, :3] = np.diag([1.0, -1.0, -1.0])
    return transform


def tool_position(arm: Arm, qpos: Float[Array, "*B joints"]) -> Float[Array, "*B 3"]:
    """Position of the tool in the robot's frame [m]."""
    return _frames(arm, qpos)[-1][..., :3, 3]


def tool_pose(arm: Arm, qpos: Float[Array, "*B joints"]) -> tuple[Float[Array, "*B 3"], Float[Array, "*B 3 3"]]:
    """Position [m] and rotation of the tool in the robot's frame."""
    end = _frames(arm, qpos)[-1]
    return end[..., :3, 3], end[..., :3, :3]


def pose_and_jacobian(
    arm: Arm, qpos: Float[Array, "*B joints"]
) -> tuple[Float[Array, "*B 3"], Float[Array, "*B 3 3"], Float[Array, "*B 6 joints"]]:
    """Position [m] and rotation of the tool in the robot's frame, and the geometric Jacobian at its origin.

    Row order of the Jacobian is that of a twist: linear, then angular.
    """
    xp = namespace(qpos)
    *frames, end = _frames(arm, qpos)
    stacked = xp.stack(frames, -1)  # (*B, 4, 4, joints)
    axes = stacked[..., :3, 2, :]
    arms = end[..., :3, 3, None] - stacked[..., :3, 3, :]
    # the cross product of axes and arms; xp.cross takes twice as long
    axes_twice, arms_twice = (xp.concatenate([each, each[..., :2, :]], -2) for each in (axes, arms))
    linear = axes_twice[..., 1:4, :] * arms_twice[..., 2:5, :] - axes_twice[..., 2:5, :] * arms_twice[..., 1:4, :]
    return end[..., :3, 3], end[..., :3, :3], xp.concatenate([linear, axes], -2)


def _frames(arm: Arm, qpos: Array) -> list[Array]:
    """Transforms (*B, 4, 4) of every joint's frame, turned by its angle, and of the tool, in the robot's frame."""
    xp = namespace(qpos)
    constant, cosine, sine, tool = (like(qpos, each) for each in arm.affine)
    transforms = constant + xp.cos(qpos)[..., None, None] * cosine + xp.sin(qpos)[..., None, None] * sine
    frames = [transforms[..., 0, :, :]]
    for joint in range(1, arm.joints):
        frames.append(frames[-1] @ transforms[..., joint, :, :])
    return [*frames, frames[-1] @ tool]


def link_frames(arm: Arm, qpos: Float[Array, "*B joints"]) -> list[Float[Array, "*B 4 4"]]:
    """Transforms of the arm's base and of each joint's own frame, turned by its angle, in the robot's frame."""
    base = like(qpos, _transform(arm.base))
    frames = [base + 0 * qpos[..., :1, None]]
    for frame, aligned in zip(_frames(arm, qpos), arm.aligned, strict=False):
        frames.append(frame @ like(qpos, aligned))
    return frames


_EYE_3, _EYE_4, _EYE_6 = np.eye(3), np.eye(4), np.eye(6)


def damped_least_squares(
    jacobian: Float[Array, "*B 6 joints"],
    twist: Float[Array, "*B 6"],
    damping: float = DAMPING,
    posture: Float[Array, "*B joints"] | None = None,
) -> Float[Array, "*B joints"]:
    """Joint displacement [rad] that moves the tool by `twist`: J^T (J J^T + damping^2 I)^-1 twist (Wampler 1986).

    `posture` is a second joint displacement [rad], of which only the part that does not move the tool is added.
    """
    transposed = jacobian.mT
    gram = jacobian @ transposed + damping**2 * like(jacobian, _EYE_6)
    rhs = twist[..., None] if posture is None else twist[..., None] - jacobian @ posture[..., None]
    step = (transposed @ _solve(gram, rhs))[..., 0]
    return step if posture is None else step + posture


def _solve(gram: Float[Array, "*B n n"], rhs: Float[Array, "*B n 1"]) -> Float[Array, "*B n 1"]:
    """The solution x of gram @ x = rhs, for a positive definite matrix `gram`.

    Tensors are solved by Gauss-Jordan elimination, which needs no pivoting here, since torch's own solver would synchronize
    with the GPU.
    """
    if isinstance(gram, np.ndarray):
        return np.linalg.solve(gram, rhs)
    xp = namespace(gram)
    table = xp.concatenate([gram, rhs], -1)
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
    """The unit quaternion w x y z with w >= 0, computed from its largest component, so that half turns stay exact."""
    xp = namespace(rotation)
    entries = rotation.reshape(*rotation.shape[:-2], 9)
    slopes, offsets, eye = (like(entries, constant) for constant in (_PRODUCT_SLOPES, _PRODUCT_OFFSETS, _EYE_4))
    products = entries @ slopes + offsets
    largest = eye[xp.argmax(products[..., ::5], -1)]  # one-hot, by the diagonal
    quaternion = (largest[..., None, :] @ products.reshape(*entries.shape[:-1], 4, 4))[..., 0, :]
    norm = xp.sqrt((quaternion * quaternion).sum(-1))[..., None]
    return quaternion / norm * xp.where(quaternion[..., :1] < 0, -1.0, 1.0)


def _quaternion_products() -> tuple[np.ndarray, np.ndarray]:
    """Matrix (9, 16) and offsets (16,) that map a rotation matrix to 4 q q^T, whose rows are multiples of the quaternion.

    The row with the largest diagonal entry suffers no cancellation (Bar-Itzhack 2000 uses the same matrix).
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


def quaternion_to_matrix(quaternion: Float[Array, "*B 4"]) -> Float[Array, "*B 3 3"]:
    """The rotation matrix of a quaternion w x y z of any norm but 0."""
    xp = namespace(quaternion)
    w, x, y, z = (quaternion[..., place] for place in range(4))
    twice = 2 / (quaternion * quaternion).sum(-1).clip(1e-12)
    rows = [
        [1 - twice * (y * y + z * z), twice * (x * y - w * z), twice * (x * z + w * y)],
        [twice * (x * y + w * z), 1 - twice * (x * x + z * z), twice * (y * z - w * x)],
        [twice * (x * z - w * y), twice * (y * z + w * x), 1 - twice * (x * x + y * y)],
    ]
    return xp.stack([xp.stack(row, -1) for row in rows], -2)


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
