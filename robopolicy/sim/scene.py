"""The MuJoCo model of a task, built once from our own MJCF, with its names resolved to addresses."""

# pyright: reportAttributeAccessIssue=false
# (MuJoCo's names come from a compiled module without stubs.)

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from robopolicy.arrays import like
from robopolicy.control.profile import RobotProfile, read_profile
from robopolicy.types import ActionSpec, Array

if TYPE_CHECKING:  # importing this module must not need MuJoCo: `robopolicy eval --env` runs without it
    import mujoco

ASSETS = Path(__file__).parent / "assets"
ARM_JOINTS = 7
"""Joints of the robot of one arm."""
PHYSICS_DT = 0.005
"""Seconds of one physics step by default."""


@dataclass(frozen=True)
class SceneRobot:
    """A robot from which scenes are built. The actuators in its MJCF are the joints, then two fingers per gripper."""

    part: str
    """File in `assets`, without `.xml`."""
    profile_name: str
    """Its limits, kinematics and home posture."""
    joints: tuple[str, ...]
    """Joints of the MJCF, in the order of the profile's."""
    fingers: tuple[str, ...]
    """Its finger joints, two for each gripper; their sum is its opening [m]."""
    actions: ActionSpec
    """The simulator's action columns."""
    cameras: tuple[str, ...]

    @cached_property
    def profile(self) -> RobotProfile:
        """The profile."""
        return read_profile(self.profile_name)

    @property
    def control_dt(self) -> float:
        """Seconds of one control step."""
        assert self.actions.rate_hz is not None
        return 1 / self.actions.rate_hz


PANDA = SceneRobot(
    part="arm",
    profile_name="panda",
    joints=tuple(f"joint{number}" for number in range(1, 8)),
    fingers=("left_finger", "right_finger"),
    actions=ActionSpec(
        arm=6,
        gripper=1,
        gripper_values=((-1.0, 1.0),),
        kind="delta",
        space="ee",
        units=("0.05 m",) * 3 + ("0.5 rad",) * 3,
        rate_hz=20.0,
    ),
    cameras=("front", "wrist"),
)
"""One arm, 20 Hz as in robosuite and LIBERO; gripper -1 open, +1 closed. At home, the open hand points straight down at x 0.45,
y 0, z 0.22 m."""
_SIDES = ("left", "right")
_VIPERX = ("waist", "shoulder", "elbow", "forearm_roll", "wrist_angle", "wrist_rotate")
VIPERX_PAIR = SceneRobot(
    part="viperx_pair",
    profile_name="viperx_pair",
    joints=tuple(f"{side}_{joint}" for side in _SIDES for joint in _VIPERX),
    fingers=tuple(f"{side}_finger_{place}" for side in _SIDES for place in (1, 2)),
    actions=ActionSpec(
        arm=14,
        gripper=0,
        continuous_gripper=(6, 13),
        continuous_gripper_values=((1.0, 0.0), (1.0, 0.0)),
        arms={"left": tuple(range(7)), "right": tuple(range(7, 14))},
        kind="absolute",
        space="joint_position",
        units=(("rad",) * 6 + ("normalized",)) * 2,
        rate_hz=50.0,
    ),
    cameras=("top", "front", "left_wrist", "right_wrist"),
)
"""Two arms that face each other, with ALOHA's actions: at 50 Hz six absolute joint targets and a gripper (1 open, 0 closed)
each."""
ROBOTS: Mapping[str, SceneRobot] = {"panda": PANDA, "viperx_pair": VIPERX_PAIR}
"""The robots, by the names that tasks use."""
CAMERAS = PANDA.cameras


@dataclass(frozen=True)
class Scene:
    """A compiled model, and the addresses of its parts.

    In `qpos` the robot's joints and fingers come first (of one arm: 7, then 2), then 7 numbers for each free object, then
    other joints.
    """

    robot: SceneRobot
    model: "mujoco.MjModel"
    n_substeps: int
    """Physics steps in one control step."""
    xml: str
    """The whole scene as one MJCF text that needs no other file."""

    @cached_property
    def objects(self) -> tuple[str, ...]:
        """Names of the free bodies, in the order of their poses in `qpos`."""
        import mujoco

        return tuple(
            self.model.joint(joint).name
            for joint in range(self.model.njnt)
            if self.model.jnt_type[joint] == mujoco.mjtJoint.mjJNT_FREE
        )

    @cached_property
    def object_slice(self) -> slice:
        """Where the free bodies' poses lie in `qpos`."""
        start = self._robot_width
        return slice(start, start + 7 * len(self.objects))

    @cached_property
    def object_velocity_slice(self) -> slice:
        """Where the free bodies' velocities lie in `qvel`: linear, then angular."""
        start = self._robot_width
        return slice(start, start + 6 * len(self.objects))

    @property
    def _robot_width(self) -> int:
        return len(self.robot.joints) + len(self.robot.fingers)

    def joints_of(self, qpos: Float[Array, "*B nq"]) -> Float[Array, "*B joints"]:
        """The robot's joint positions [rad]; of one arm a view."""
        return _columns(qpos, self._joint_places)

    def openings_of(self, qpos: Float[Array, "*B nq"]) -> Float[Array, "*B grippers"]:
        """The distance between the fingers of each gripper [m]."""
        return _columns(qpos, self._finger_places[::2]) + _columns(qpos, self._finger_places[1::2])

    @cached_property
    def _joint_places(self) -> tuple[int, ...]:
        return tuple(int(self.model.joint(name).qposadr[0]) for name in self.robot.joints)

    @cached_property
    def _finger_places(self) -> tuple[int, ...]:
        return tuple(int(self.model.joint(name).qposadr[0]) for name in self.robot.fingers)

    @property
    def control_dt(self) -> float:
        """Seconds of one control step."""
        return self.n_substeps * float(self.model.opt.timestep)

    @cached_property
    def home_qpos(self) -> np.ndarray:
        """(nq,) the model's start: arms at home, grippers open, objects where the MJCF puts them."""
        qpos = self.with_grippers_open(self.model.qpos0, 1.0)
        qpos[list(self._joint_places)] = self.robot.profile.home_rad
        return qpos

    def with_grippers_open(self, qpos: Float[np.ndarray, " nq"], share: float) -> Float[np.ndarray, " nq"]:
        """A copy of `qpos` with every gripper open by a share of its opening."""
        opened = qpos.copy()
        opened[list(self._finger_places)] = share * np.repeat(self.robot.profile.openings_m / 2, 2)
        return opened

    def with_joints_moved(
        self, qpos: Float[np.ndarray, " nq"], by_rad: Float[np.ndarray, " joints"]
    ) -> Float[np.ndarray, " nq"]:
        """A copy of `qpos` with the robot's joints moved [rad]."""
        moved = qpos.copy()
        moved[list(self._joint_places)] += by_rad
        return moved

    @cached_property
    def home_mocap(self) -> np.ndarray:
        """(nmocap, 3) where the MJCF puts the mocap bodies [m]."""
        return self.model.body_pos[self.model.body_mocapid >= 0].copy()


def build_scene(parts: Sequence[str], physics_dt: float = PHYSICS_DT, robot: str = "panda") -> Scene:
    """Compile a robot with the parts: `cubes`, `plates`, ... (files in `assets/`), or MJCF texts that begin with `<mujoco`.

    Raises:
        ValueError: the robot's control step is not a whole multiple of `physics_dt`.
    """
    hardware = ROBOTS[robot]
    control_dt = hardware.control_dt
    n_substeps = round(control_dt / physics_dt)
    if n_substeps < 1 or abs(n_substeps * physics_dt - control_dt) > 1e-9:
        raise ValueError(
            f"control_dt {control_dt} s is not a whole multiple of physics_dt {physics_dt} s; "
            f"use a physics_dt of 0.002 or 0.005 with control_dt {control_dt}"
        )
    spec = _spec(hardware.part, parts)
    spec.option.timestep = physics_dt
    model = spec.compile()
    return Scene(hardware, model, n_substeps, spec.to_xml())


def _columns(rows: Array, places: tuple[int, ...]) -> Array:
    """These columns; a view where they lie side by side."""
    if places == tuple(range(places[0], places[0] + len(places))):
        return rows[..., places[0] : places[0] + len(places)]
    return rows[..., like(rows, np.array(places))]


def _spec(robot: str, parts: Sequence[str]) -> "mujoco.MjSpec":
    """The MJCF that includes the robot and the named parts."""
    import mujoco

    files = {path.name: path.read_bytes() for path in ASSETS.glob("*.xml")}
    names = [robot]
    for number, part in enumerate(parts):
        text = part.lstrip().startswith("<mujoco")
        names.append(f"part_{number}" if text else part)
        if text:
            files[f"part_{number}.xml"] = part.encode()
    includes = "".join(f'<include file="{name}.xml"/>' for name in names)
    return mujoco.MjSpec.from_string(f'<mujoco model="robopolicy">{includes}</mujoco>', include=files)
