"""Many worlds stepped together by `mujoco_warp`, on a GPU or, for tests and small runs, on the CPU."""

from collections.abc import Mapping, Sequence

import mujoco_warp
import torch
import warp
from jaxtyping import Bool, Float, Int
from torch import Tensor

from robopolicy.sim.physics import Fault
from robopolicy.sim.scene import Scene
from robopolicy.sim.warp_stage import Replay, WarpStage

CONTACTS = 48
"""Size of the contact buffer, per world on average: three cubes at rest have 12, gripped and stacked about 30."""
CONSTRAINTS = 192
"""Size of the constraint buffer of each world; three cubes at rest have 49."""


class WarpPhysics:
    """`mujoco_warp`: float32, every array a torch tensor over Warp's memory, every call a captured graph.

    No call waits for the device, and all of them are in order with torch's current stream. `faults` reports what
    overflows or is no longer finite; the engine itself would silently let cubes fall through the floor.

    Args:
        scene: The model.
        num_worlds: N.
        device: `cpu`, `cuda` or `cuda:<n>`.
        fields: Fields of the model that differ between worlds.
        contacts: Contacts there is room for, per world on average.
        constraints: Constraint rows there is room for in each world.
        deterministic: Let a GPU give the same numbers every time, at some cost of speed; the CPU always does.
    """

    def __init__(
        self,
        scene: Scene,
        num_worlds: int,
        device: str = "cpu",
        fields: Sequence[str] = (),
        *,
        contacts: int = CONTACTS,
        constraints: int = CONSTRAINTS,
        deterministic: bool = False,
    ) -> None:
        self.scene, self.num_worlds = scene, num_worlds
        self.stage = WarpStage(scene, num_worlds, device, fields, contacts, constraints)
        self.stage.model.opt.deterministic = deterministic
        self.stage.model.opt.warn_overflow = 0  # it would print from the device; `faults` tells
        self.qpos: Float[Tensor, "worlds nq"] = self.stage.tensor("qpos")
        self.qvel: Float[Tensor, "worlds nv"] = self.stage.tensor("qvel")
        self.mocap_pos: Float[Tensor, "worlds nmocap 3"] = self.stage.tensor("mocap_pos")
        self.fields = self.stage.fields
        ctrl, self._overflow = self.stage.tensor("ctrl"), self.stage.tensor("overflow")
        self._path = torch.zeros((scene.n_substeps, *ctrl.shape), device=ctrl.device)
        self._ticks = [warp.from_torch(tick) for tick in self._path]
        self._mask = torch.zeros(num_worlds, dtype=torch.bool, device=self.stage.device)
        self._step = Replay(self.stage, self._substeps)
        self._reset = Replay(self.stage, self._clear)
        self._forward = Replay(self.stage, self.show)

    def step(self, ctrl: Float[Tensor, "*ticks worlds nu"]) -> None:
        """One control step of all worlds."""
        self._path.copy_(ctrl)
        self._step()

    def reset(
        self,
        mask: Bool[Tensor, " worlds"],
        qpos: Float[Tensor, "worlds nq"],
        mocap_pos: Float[Tensor, "worlds nmocap 3"],
    ) -> None:
        """Reset the worlds in `mask`, at rest."""
        self._mask.copy_(mask)
        self._reset()
        self.qpos.copy_(torch.where(mask[:, None], qpos, self.qpos))
        self.mocap_pos.copy_(torch.where(mask[:, None, None], mocap_pos, self.mocap_pos))

    def change(self, mask: Bool[Tensor, " worlds"], fields: Mapping[str, Tensor]) -> None:
        """Set the fields of the worlds in `mask`."""
        for name, values in fields.items():
            chosen = mask.reshape(-1, *(1,) * (values.dim() - 1))
            self.fields[name].copy_(torch.where(chosen, values, self.fields[name]))

    def faults(self) -> Int[Tensor, " worlds"]:
        """Worlds where a buffer overflowed, or a position or velocity is not finite; an iteration limit is not a fault."""
        full = (self._overflow & _FULL) != 0
        finite = torch.isfinite(self.qpos).all(-1) & torch.isfinite(self.qvel).all(-1)
        return full * int(Fault.OVERFLOW) + ~finite * int(Fault.PHYSICS)

    def forward(self) -> None:
        """Update the poses in `stage.data` from `qpos`."""
        self._forward()

    def show(self) -> None:
        """Launch the update of the poses; a renderer captures it together with its own kernels."""
        mujoco_warp.kinematics(self.stage.model, self.stage.data)
        mujoco_warp.camlight(self.stage.model, self.stage.data)

    def _substeps(self) -> None:
        for tick in self._ticks:
            warp.copy(self.stage.data.ctrl, tick)
            mujoco_warp.step(self.stage.model, self.stage.data)

    def _clear(self) -> None:
        mujoco_warp.reset_data(self.stage.model, self.stage.data, warp.from_torch(self._mask))


_FULL = int(
    mujoco_warp.OverflowType.ALL & ~mujoco_warp.OverflowType.ITERATIONS & ~mujoco_warp.OverflowType.LS_ITERATIONS
)
