"""The MuJoCo model of a task, built once from our own MJCF, with its names resolved to addresses."""

# pyright: reportAttributeAccessIssue=false
# (MuJoCo's names come from a compiled module without stubs.)

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:  # importing this module must not need MuJoCo: `robopolicy eval --env` runs without it
    import mujoco

ASSETS = Path(__file__).parent / "assets"
ARM_JOINTS = 7
CONTROL_DT = 0.05
"""Seconds of one control step: 20 Hz, as robosuite and LIBERO."""
PHYSICS_DT = 0.005
"""Seconds of one physics step by default."""
CAMERAS = ("front", "wrist")
HOME_QPOS = (0.0, -0.1289, 0.0, -2.5263, 0.0, 2.3974, 0.7854)
"""Joints [rad] at which the open hand points straight down at x 0.45, y 0, z 0.22 m."""
MAX_OPENING_M = 0.08
"""Distance between the fingers when the gripper is open [m]."""


@dataclass(frozen=True)
class Scene:
    """A compiled model and where its parts are.

    In `qpos` the arm's joints come first (7), then the two fingers, then 7 numbers for each free object, then other
    joints.
    """

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
        start = ARM_JOINTS + 2
        return slice(start, start + 7 * len(self.objects))

    @cached_property
    def object_velocity_slice(self) -> slice:
        """Where the free bodies' velocities lie in `qvel`: linear, then angular."""
        start = ARM_JOINTS + 2
        return slice(start, start + 6 * len(self.objects))

    @property
    def control_dt(self) -> float:
        """Seconds of one control step."""
        return self.n_substeps * float(self.model.opt.timestep)

    @cached_property
    def home_qpos(self) -> np.ndarray:
        """(nq,) the model's start: arm at home, gripper open, objects where the MJCF puts them."""
        qpos = self.model.qpos0.copy()
        qpos[:ARM_JOINTS] = HOME_QPOS
        qpos[ARM_JOINTS : ARM_JOINTS + 2] = MAX_OPENING_M / 2
        return qpos

    @cached_property
    def home_mocap(self) -> np.ndarray:
        """(nmocap, 3) where the MJCF puts the bodies that are moved by hand [m]."""
        return self.model.body_pos[self.model.body_mocapid >= 0].copy()


def build_scene(parts: Sequence[str], physics_dt: float = PHYSICS_DT, control_dt: float = CONTROL_DT) -> Scene:
    """Compile the arm with the parts: `cubes`, `plates`, ... (files in `assets/`), or MJCF texts that begin with `<mujoco`.

    Raises:
        ValueError: `control_dt` is not a whole multiple of `physics_dt`.
    """
    n_substeps = round(control_dt / physics_dt)
    if n_substeps < 1 or abs(n_substeps * physics_dt - control_dt) > 1e-9:
        raise ValueError(
            f"control_dt {control_dt} s is not a whole multiple of physics_dt {physics_dt} s; "
            f"use a physics_dt of 0.002 or 0.005 with control_dt {CONTROL_DT}"
        )
    spec = _spec(parts)
    spec.option.timestep = physics_dt
    model = spec.compile()
    return Scene(model, n_substeps, spec.to_xml())


def _spec(parts: Sequence[str]) -> "mujoco.MjSpec":
    """The MJCF that includes the arm and the named parts."""
    import mujoco

    files = {path.name: path.read_bytes() for path in ASSETS.glob("*.xml")}
    names = ["arm"]
    for number, part in enumerate(parts):
        text = part.lstrip().startswith("<mujoco")
        names.append(f"part_{number}" if text else part)
        if text:
            files[f"part_{number}.xml"] = part.encode()
    includes = "".join(f'<include file="{name}.xml"/>' for name in names)
    return mujoco.MjSpec.from_string(f'<mujoco model="robopolicy">{includes}</mujoco>', include=files)
