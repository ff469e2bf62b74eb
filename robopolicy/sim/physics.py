"""Many worlds of one scene stepped together: the contract, its implementation on the CPU, and the choice of one."""

# pyright: reportAttributeAccessIssue=false
# (MuJoCo's names come from a compiled module without stubs.)

import os
import re
from collections.abc import Mapping, Sequence
from enum import IntFlag
from typing import Literal, Protocol, TypeAlias, runtime_checkable

import mujoco
import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from mujoco.batch import Batch

from robopolicy.sim.scene import Scene
from robopolicy.types import Array

Kind: TypeAlias = Literal["auto", "batch", "warp"]


class Fault(IntFlag):
    """Faults of the simulation; each fails the episode."""

    PHYSICS = 1
    """Positions or velocities that are not finite, or that MuJoCo reported as unstable."""
    OVERFLOW = 2
    """More contacts or constraints than the buffers hold: objects fall through each other."""
    ACTION = 4
    """An action that is not finite."""


def fault_names(bits: int) -> tuple[str, ...]:
    """The names of the faults in `bits`, lower case."""
    return tuple(str(fault.name).lower() for fault in Fault if bits & fault)


@runtime_checkable
class Physics(Protocol):
    """N worlds of one scene. Arrays are views: after every call they hold the current state."""

    scene: Scene
    num_worlds: int
    qpos: Array
    """(N, nq) positions, as `Scene` describes."""
    qvel: Array
    """(N, nv) velocities."""
    mocap_pos: Array
    """(N, nmocap, 3) positions of the mocap bodies [m]; writes take effect at the next call."""

    @property
    def fields(self) -> Mapping[str, Array]:
        """(N, ...) fields of the model that differ between worlds, by MuJoCo's name."""
        ...

    def step(self, ctrl: Array) -> None:
        """One control step of all worlds under joint and finger targets [rad, m]: (N, nu), or (ticks, N, nu) one a tick."""
        ...

    def reset(self, mask: Array, qpos: Array, mocap_pos: Array) -> None:
        """Reset the worlds in `mask` (N,) to rows of (N, nq) and (N, nmocap, 3); the others stay bit-equal."""
        ...

    def change(self, mask: Array, fields: Mapping[str, Array]) -> None:
        """Give the worlds in `mask` (N,) their own values (N, ...) of `fields`."""
        ...

    def faults(self) -> Array:
        """(N,) `Fault` bits of each world since its last reset."""
        ...

    def forward(self) -> None:
        """Update the poses that images are rendered from."""
        ...


class BatchPhysics:
    """`mujoco.batch` on the CPU: the C engine on a thread pool, bit-identical to a loop over `mj_step`.

    Args:
        scene: The model.
        num_worlds: N.
        num_threads: Threads to step on; None takes one per CPU.
        poses: Keep the poses of geoms, cameras and lights, which a renderer reads after `forward`.
        fields: Fields of the model that differ between worlds.
    """

    def __init__(
        self,
        scene: Scene,
        num_worlds: int,
        num_threads: int | None = None,
        poses: bool = False,
        fields: Sequence[str] = (),
    ) -> None:
        self.scene = scene
        self.num_worlds = num_worlds
        threads = min(num_threads or os.cpu_count() or 1, num_worlds)
        self.batch = Batch(scene.model, nsim=num_worlds, nthread=threads)
        self.qpos: Float[np.ndarray, "worlds nq"] = self.batch.bind("qpos")
        self.qvel: Float[np.ndarray, "worlds nv"] = self.batch.bind("qvel")
        self.mocap_pos: Float[np.ndarray, "worlds nmocap 3"] = self.batch.bind("mocap_pos")
        self.fields: dict[str, np.ndarray] = {name: self.batch.expand(name) for name in fields}
        self._ctrl = self.batch.bind("ctrl")
        names = ("geom_xpos", "geom_xmat", "cam_xpos", "cam_xmat", "light_xpos", "light_xdir") if poses else ()
        self.poses = {name: self.batch.bind(name) for name in names}
        """Values by MuJoCo's field name; empty unless asked for."""

    def step(self, ctrl: Float[np.ndarray, "*ticks worlds nu"]) -> None:
        """One control step of all worlds."""
        if ctrl.ndim == 2:
            self._ctrl[:] = ctrl
            self.batch.step(nstep=self.scene.n_substeps)
            return
        for tick in ctrl:
            self._ctrl[:] = tick
            self.batch.step(nstep=1)

    def reset(
        self,
        mask: Bool[np.ndarray, " worlds"],
        qpos: Float[np.ndarray, "worlds nq"],
        mocap_pos: Float[np.ndarray, "worlds nmocap 3"],
    ) -> None:
        """Reset the worlds in `mask`, at rest."""
        self.batch.reset(mask, stage=mujoco.mjtStage.mjSTAGE_NONE.value)
        self.qpos[mask] = qpos[mask]
        self.mocap_pos[mask] = mocap_pos[mask]

    def change(self, mask: Bool[np.ndarray, " worlds"], fields: Mapping[str, np.ndarray]) -> None:
        """Set the fields of the worlds in `mask`."""
        for name, values in fields.items():
            self.fields[name][mask] = values[mask]

    def faults(self) -> Int[np.ndarray, " worlds"]:
        """Worlds where MuJoCo warned of values that are not finite (it then resets the world), or of a full arena."""
        counts = self.batch.warning[:, :, 1]
        if not counts.any():
            return np.zeros(self.num_worlds, np.int64)
        return counts[:, _NUMBERS].any(1) * int(Fault.PHYSICS) + counts[:, _FULL].any(1) * int(Fault.OVERFLOW)

    def snapshot(self) -> dict[str, np.ndarray]:
        """Copies of the state that the next steps depend on, by MuJoCo's field name."""
        return {name: self.batch.bind(name).copy() for name in _STATE} | {
            name: values.copy() for name, values in self.fields.items()
        }

    def restore(self, snapshot: Mapping[str, np.ndarray]) -> None:
        """Continue from a snapshot of the same scene, number of worlds and fields."""
        for name, values in snapshot.items():
            (self.fields[name] if name in self.fields else self.batch.bind(name))[:] = values

    def forward(self) -> None:
        """Update `poses` from `qpos`."""
        self.batch.forward(stage=mujoco.mjtStage.mjSTAGE_POS.value)


_STATE = ("qpos", "qvel", "mocap_pos", "ctrl", "qacc_warmstart", "time")
_FULL = [mujoco.mjtWarning.mjWARN_CONTACTFULL.value, mujoco.mjtWarning.mjWARN_CNSTRFULL.value]
_NUMBERS = [kind for kind in range(mujoco.mjtWarning.mjNWARNING.value) if kind not in _FULL]


def make_physics(
    scene: Scene,
    num_worlds: int,
    kind: Kind = "auto",
    device: str = "cpu",
    num_threads: int | None = None,
    poses: bool = False,
    fields: Sequence[str] = (),
) -> Physics:
    """The physics of `kind` on `device`; `auto` is `batch` on the CPU and `warp` on a GPU.

    Raises:
        ValueError: the device is missing, or can't run that kind.
    """
    require_device(device)
    if kind == "auto":
        kind = "batch" if device == "cpu" else "warp"
    if kind == "batch":
        if device != "cpu":
            raise ValueError(f"physics 'batch' runs on the CPU only; with device {device} choose 'warp' or 'auto'")
        return BatchPhysics(scene, num_worlds, num_threads, poses, fields)
    from robopolicy.sim.warp_physics import WarpPhysics

    return WarpPhysics(scene, num_worlds, device, fields)


def require_device(device: str) -> None:
    """Check that this machine has the device.

    Raises:
        ValueError: the device is missing; the message lists those that there are.
    """
    found = re.fullmatch(r"cpu|cuda(:(?P<number>\d+))?", device)
    if found is None:
        raise ValueError(f"no device {device!r} for the simulator; expected cpu, cuda or cuda:<n>")
    count = torch.cuda.device_count()
    if device != "cpu" and int(found["number"] or 0) >= count:
        raise ValueError(f"device {device}: this machine has {count} CUDA devices that torch can use; use --device cpu")
