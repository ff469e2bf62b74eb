"""Domain randomization: appearance, physics and noise of each episode, drawn from its seed alone.

What is drawn once per episode (placement, colours, light, camera, friction, mass, latency) becomes a start and fields of
the MuJoCo model, which every `Physics` supports. Noise differs from step to step: it is computed from the episode's
seed and the step's number, so that no world keeps a generator and a device needs no host.
"""

# pyright: reportAttributeAccessIssue=false
# (MuJoCo's names come from a compiled module without stubs.)

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from robopolicy.components import expect
from robopolicy.control.arrays import like, namespace
from robopolicy.control.kinematics import matrix_to_quaternion, rotation_from_vector
from robopolicy.sim.scene import Scene
from robopolicy.types import Array

STREAM = 3
"""Second word of the generator's seed, so that it is independent of the scene's, the demos' and the mixing's."""
LOOKS = ("geom_rgba", "light_diffuse")
"""Model fields that only images depend on."""
_MASS_FIELDS = ("body_mass", "body_inertia", "body_subtreemass", "body_invweight0", "dof_invweight0")


@dataclass(frozen=True)
class Change:
    """The randomization of one episode."""

    joint_offset_rad: Float[np.ndarray, " joints"]
    turn_rad: Float[np.ndarray, " objects"]
    delay_steps: int
    fields: Mapping[str, np.ndarray]
    """The model's fields in this episode, by MuJoCo's name."""

    def start(self, scene: Scene, qpos: Float[np.ndarray, " nq"]) -> Float[np.ndarray, " nq"]:
        """The randomized start: arm joints moved, objects turned about the vertical."""
        if not self.joint_offset_rad.any() and not self.turn_rad.any():
            return qpos
        changed = scene.with_joints_moved(qpos, self.joint_offset_rad)
        for pose, turn_rad in zip(changed[scene.object_slice].reshape(-1, 7), self.turn_rad, strict=True):
            pose[3:] = _product(np.array([np.cos(turn_rad / 2), 0, 0, np.sin(turn_rad / 2)]), pose[3:])
        return changed


@dataclass(frozen=True)
class Randomization:
    """What differs between episodes beyond the task itself: ranges from which each episode's seed draws; 0 is off."""

    joint_rad: float = 0.0
    """Placement: largest offset of each arm joint from its start, besides the task's own [rad]."""
    turn_rad: float = 0.0
    """Placement: largest turn of each free object about the vertical, besides the task's own [rad]."""
    color: float = 0.0
    """Largest change of each part's red, green and blue, which lie in [0, 1]."""
    light: float = 0.0
    """Largest relative change of the light's brightness, and of its direction's components."""
    camera_m: float = 0.0
    """Largest shift of a camera along each axis [m]."""
    camera_rad: float = 0.0
    """Largest turn of a camera about each axis [rad]."""
    friction: float = 0.0
    """Largest relative change of all friction, below 1."""
    mass: float = 0.0
    """Largest relative change of each free object's mass, below 1."""
    delay_steps: int = 0
    """Latency: largest delay of an episode's actions [control steps]."""
    action_noise: float = 0.0
    """Standard deviation of noise on the executed displacement, in the action's units of [-1, 1]."""
    obs_noise: float = 0.0
    """Standard deviation of noise on every low-dimensional reading but the privileged ones [m, rad]."""

    def __post_init__(self) -> None:
        expect(self, "randomization", ">= 0", *vars(self))
        expect(self, "randomization", ">= 0 and < 1", "friction", "mass")

    @property
    def active(self) -> bool:
        """Whether anything is randomized."""
        return any(vars(self).values())

    @property
    def fields(self) -> tuple[str, ...]:
        """Model fields that differ from episode to episode."""
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
        """The change of the episode of `seed`; what one setting draws does not depend on the others."""
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
        """Friction of all geoms and mass of the free objects, with what MuJoCo derives from a mass."""
        model = scene.model
        friction = model.geom_friction * (1 + self.friction * rng.uniform(-1, 1))
        factors = np.ones(model.nbody)
        bodies = [model.joint(name).bodyid[0] for name in scene.objects]
        factors[bodies] = 1 + self.mass * rng.uniform(-1, 1, len(bodies))
        mass, subtree = model.body_mass * factors, model.body_subtreemass * factors
        subtree[0] += (mass - model.body_mass).sum()
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
    """Normal numbers (N, width) that depend on the seed, the step and the stream alone, the same on every device.

    32-bit integers are mixed by multiply and xorshift (Ellis's lowbias32), and made normal in pairs by Box and Muller's method.
    """
    xp = namespace(seed)
    columns = like(seed, np.arange(2 * width) + 0x9E3779B9)  # unlike every key
    key = _mix(_mix(seed & _WORD) ^ (step * STREAMS + stream))
    words = _mix(key[:, None] ^ _mix(columns))
    uniform = (words * 1.0 + 0.5) / 2.0**32
    radius = xp.sqrt(-2.0 * xp.log(uniform[:, :width]))
    return radius * xp.cos(2 * np.pi * uniform[:, width:])


STREAMS = 64
"""Independent noises at one step of one episode."""
_WORD = 0xFFFFFFFF


def _mix(value: Array) -> Array:
    """A hash of 32-bit words, held in 64-bit integers (a permutation)."""
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        value = value ^ (value >> shift)
        value = (value * factor) & _WORD
    return value ^ (value >> 16)


def _product(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """The product of two quaternions w x y z."""
    import mujoco

    product = np.zeros(4)
    mujoco.mju_mulQuat(product, one, other)
    return product
