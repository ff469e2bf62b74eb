"""Many worlds of one scene stepped together: the contract, and its implementation on the CPU."""

# pyright: reportAttributeAccessIssue=false
# (MuJoCo's names come from a compiled module without stubs.)

import os
from typing import Protocol

import mujoco
import numpy as np
from jaxtyping import Bool, Float
from mujoco.batch import Batch

from robopolicy.sim.scene import Scene
from robopolicy.types import Array


class Physics(Protocol):
    """N worlds of one scene. Arrays are live: after every call they show the present state."""

    scene: Scene
    num_worlds: int
    qpos: Array
    """(N, nq) positions, as `Scene` describes."""
    qvel: Array
    """(N, nv) velocities."""
    mocap_pos: Array
    """(N, nmocap, 3) positions of the bodies moved by hand [m]; written, they hold from the next call on."""

    def step(self, ctrl: Array) -> None:
        """One control step of all worlds, all its substeps, under joint and finger targets (N, nu) [rad, m]."""
        ...

    def reset(self, mask: Array, qpos: Array, mocap_pos: Array) -> None:
        """Start the worlds in `mask` (N,) anew from rows of (N, nq) and (N, nmocap, 3); the others stay bit-equal."""
        ...

    def forward(self) -> None:
        """Bring the poses that pictures are made of up to date."""
        ...


class BatchPhysics:
    """`mujoco.batch` on the CPU: the C engine on a thread pool, bit-identical to a loop over `mj_step`.

    Args:
        scene: The model.
        num_worlds: N.
        num_threads: Threads to step on; None takes one per CPU.
        poses: Keep the poses of geoms, cameras and lights, which a renderer reads after `forward`.
    """

    def __init__(self, scene: Scene, num_worlds: int, num_threads: int | None = None, poses: bool = False) -> None:
        self.scene = scene
        self.num_worlds = num_worlds
        threads = min(num_threads or os.cpu_count() or 1, num_worlds)
        self.batch = Batch(scene.model, nsim=num_worlds, nthread=threads)
        self.qpos: Float[np.ndarray, "worlds nq"] = self.batch.bind("qpos")
        self.qvel: Float[np.ndarray, "worlds nv"] = self.batch.bind("qvel")
        self.mocap_pos: Float[np.ndarray, "worlds nmocap 3"] = self.batch.bind("mocap_pos")
        self._ctrl = self.batch.bind("ctrl")
        names = ("geom_xpos", "geom_xmat", "cam_xpos", "cam_xmat", "light_xpos", "light_xdir") if poses else ()
        self.poses = {name: self.batch.bind(name) for name in names}
        """By MuJoCo's field name; empty unless asked for."""

    def step(self, ctrl: Float[np.ndarray, "worlds nu"]) -> None:
        """One control step of all worlds."""
        self._ctrl[:] = ctrl
        self.batch.step(nstep=self.scene.n_substeps)

    def reset(
        self,
        mask: Bool[np.ndarray, " worlds"],
        qpos: Float[np.ndarray, "worlds nq"],
        mocap_pos: Float[np.ndarray, "worlds nmocap 3"],
    ) -> None:
        """Start the worlds in `mask` anew, at rest."""
        self.batch.reset(mask, stage=mujoco.mjtStage.mjSTAGE_NONE.value)
        self.qpos[mask] = qpos[mask]
        self.mocap_pos[mask] = mocap_pos[mask]

    def forward(self) -> None:
        """Bring `poses` up to date with `qpos`."""
        self.batch.forward(stage=mujoco.mjtStage.mjSTAGE_POS.value)
