"""Domain randomization: appearance, physics and noise of each episode, drawn from its seed alone.

Values drawn once per episode (placement, colors, light, camera, friction, mass, latency) change the initial state and
fields of the MuJoCo model, which every `Physics` supports. Noise differs at each step. It is computed from the episode's
seed and the step number, so worlds need no generator state, and on a GPU nothing is copied from the host.
"""

# pyright: reportAttributeAccessIssue=false
# (MuJoCo's names come from a compiled module without stubs.)

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Float, Int

from robopolicy.arrays import like, namespace
from robopolicy.components import Options, option
from robopolicy.control.kinematics import matrix_to_quaternion, rotation_from_vector
from robopolicy.sim.scene import Scene
from robopolicy.types import Array

STREAM = 3
"""Second word of the generator's seed: makes it independent of the scene's, the expert noise's and DAgger's generators."""
LOOKS = ("geom_rgba", "light_diffuse")
"""Model fields that affect images only."""
_MASS_FIELDS = ("body_mass", "body_inertia", "body_subtreemass", "body_invweight0", "dof_invweight0")


@dataclass(frozen=True)
class Change:
    """The values drawn for one episode."""

    joint_offset_rad: Float[np.ndarray, " joints"]
    turn_rad: Float[np.ndarray, " objects"]
    delay_steps: int
    fields: Mapping[str, np.ndarray]
    """MuJoCo's name of a model field -> its value in this episode."""

    def start(self, scene: Scene, qpos: Float[np.ndarray, " nq"]) -> Float[np.ndarray, " nq"]:
        """The randomized initial positions: arm joints are offset, objects are rotated about the vertical axis."""
        if not self.joint_offset_rad.any() and not self.turn_rad.any():
            return qpos
        changed = scene.with_joints_moved(qpos, self.joint_offset_rad)
        for pose, turn_rad in zip(changed[scene.object_slice].reshape(-1, 7), self.turn_rad, strict=True):
            pose[3:] = _product(np.array([np.cos(turn_rad / 2), 0, 0, np.sin(turn_rad / 2)]), pose[3:])
        return changed


@dataclass(frozen=True)
class Randomization(Options):
    """Ranges of the randomization, in addition to that of the task itself; 0 turns a setting off.

    Each value is drawn uniformly from minus to plus the range, with the episode's seed.
    """

    section: ClassVar[str] = "randomization"

    joint_rad: float = option(0.0, ">= 0")
    """Placement: largest offset of each arm joint from its initial position [rad]."""
    turn_rad: float = option(0.0, ">= 0")
    """Placement: largest rotation of each free object about the vertical axis [rad]."""
    color: float = option(0.0, ">= 0")
    """Largest change of the red, green and blue of each geom; the components are in [0, 1]."""
    light: float = option(0.0, ">= 0")
    """Largest relative change of each light's brightness, and largest change of the components of its unit direction."""
    camera_m: float = option(0.0, ">= 0")
    """Largest shift of a camera along each axis [m]."""
    camera_rad: float = option(0.0, ">= 0")
    """Largest rotation of a camera about each axis [rad]."""
    friction: float = option(0.0, ">= 0 and < 1")
    """Largest relative change of friction, one factor for all geoms; below 1."""
    mass: float = option(0.0, ">= 0 and < 1")
    """Largest relative change of each free object's mass; below 1."""
    delay_steps: int = option(0, ">= 0")
    """Latency: largest delay of the actions, drawn from 0 .. `delay_steps`, constant in an episode [control steps]."""
    action_noise: float = option(0.0, ">= 0")
    """Standard deviation of noise on the executed displacement, in units of the normalized action [-1, 1]."""
    obs_noise: float = option(0.0, ">= 0")
    """Standard deviation of noise on all low-dimensional keys except privileged ones [m, rad]."""

    @property
    def active(self) -> bool:
        """Whether anything is randomized."""
        return any(vars(self).values())

    @property
    def fields(self) -> tuple[str, ...]:
        """Names of the model fields that differ between episodes."""
        names = {
            "geom_rgba": self.color,
            "light_diffuse": self.light,
            "light_dir": self.light,
            "cam_pos": self.camera_m,
            "cam_quat": self.camera_rad,
            "geom_friction": self.friction,
            **dict.fromkeys(_MASS_FIELDS, self.mass),
        }
        return tuple(name for name, size in names.items() if size > 0)

    def draw(self, scene: Scene, seed: int) -> Change:
        """The values drawn for the episode with this seed; the value of one setting does not depend on the other settings."""
        objects = len(scene.objects)
        if not self.active:
            return Change(np.zeros(len(scene.robot.joints)), np.zeros(objects), 0, {})
        place, looks, physics = (np.random.default_rng([seed, STREAM, part]) for part in range(3))
        joints = self.joint_rad * place.uniform(-1, 1, len(scene.robot.joints))
        turn = self.turn_rad * place.uniform(-1, 1, objects)
        delay = int(place.integers(self.delay_steps + 1))
        drawn = {**self._looks(scene, looks), **self._physics(scene, physics)}
        return Change(joints, turn, delay, {name: drawn[name] for name in self.fields})

    def _looks(self, scene: Scene, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Colors, lights and cameras."""
        model = scene.model
        rgba = model.geom_rgba.astype(np.float64)
        rgba[:, :3] = np.clip(rgba[:, :3] + self.color * rng.uniform(-1, 1, (model.ngeom, 3)), 0, 1)
        brightness = 1 + self.light * rng.uniform(-1, 1, (model.nlight, 1))
        direction = model.light_dir + self.light * rng.uniform(-1, 1, (model.nlight, 3))
        position = model.cam_pos + self.camera_m * rng.uniform(-1, 1, (model.ncam, 3))
        turns = matrix_to_quaternion(rotation_from_vector(self.camera_rad * rng.uniform(-1, 1, (model.ncam, 3))))
        return {
            "geom_rgba": rgba.astype(np.float32),
            "light_diffuse": (model.light_diffuse * brightness).astype(np.float32),
            "light_dir": direction / np.linalg.norm(direction, axis=1, keepdims=True),
            "cam_pos": position,
            "cam_quat": np.stack([_product(q, t) for q, t in zip(model.cam_quat, turns, strict=True)]),
        }

    def _physics(self, scene: Scene, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Friction of all geoms and mass of the free objects, with the fields that MuJoCo's compiler derives from a mass."""
        model = scene.model
        friction = model.geom_friction * (1 + self.friction * rng.uniform(-1, 1))
        factors = np.ones(model.nbody)
        bodies = [model.joint(name).bodyid[0] for name in scene.objects]
        factors[bodies] = 1 + self.mass * rng.uniform(-1, 1, len(bodies))
        mass, subtree = model.body_mass * factors, model.body_subtreemass * factors
        subtree[0] += (mass - model.body_mass).sum()  # body 0, the world, contains all others
        return {
            "geom_friction": friction,
            "body_mass": mass,
            "body_inertia": model.body_inertia * factors[:, None],
            "body_subtreemass": subtree,
            "body_invweight0": model.body_invweight0 / factors[:, None],
            "dof_invweight0": model.dof_invweight0 / factors[model.dof_bodyid],
        }


def noise(
    seed: Int[Array, " worlds"], step: Int[Array, " worlds"], stream: int, width: int
) -> Float[Array, "worlds width"]:
    """Standard normal numbers (N, width): a pure function of seed, step and stream, the same on every device.

    32-bit integers are hashed (Ellis's lowbias32: multiply and xorshift), and pairs of them become normal numbers by the
    Box-Muller transform.
    """
    xp = namespace(seed)
    columns = like(seed, np.arange(2 * width) + 0x9E3779B9)  # an offset, so that columns don't coincide with small keys
    key = _mix(_mix(seed & _WORD) ^ (step * STREAMS + stream))
    words = _mix(key[:, None] ^ _mix(columns))
    uniform = (words * 1.0 + 0.5) / 2.0**32
    radius = xp.sqrt(-2.0 * xp.log(uniform[:, :width]))
    return radius * xp.cos(2 * np.pi * uniform[:, width:])


STREAMS = 64
"""Number of independent noise streams at one step of one episode."""
_WORD = 0xFFFFFFFF


def _mix(value: Array) -> Array:
    """Hash 32-bit words, stored in 64-bit integers; a permutation, so different words never collide."""
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        value = value ^ (value >> shift)
        value = (value * factor) & _WORD
    return value ^ (value >> 16)


def _product(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """The product of two quaternions (w, x, y, z)."""
    import mujoco

    product = np.zeros(4)
    mujoco.mju_mulQuat(product, one, other)
    return product
