"""Many worlds stepped together by `mujoco_warp`, on a GPU or, for tests and small runs, on the CPU.

A scene is Warp arrays on one device, shared with torch without copies and updated by captured graphs.
"""

import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
import warp
from filelock import FileLock
from jaxtyping import Bool, Float, Int
from torch import Tensor

from robopolicy.sim.physics import Fault
from robopolicy.sim.scene import Scene

NO_DRIVER = b"Could not find or load the NVIDIA CUDA driver"
"""What Warp's C library writes to standard error without a GPU."""


@contextmanager
def _without_line(noise: bytes) -> Iterator[None]:
    """Leave out one line of what C code writes to the standard error stream inside the context; pass on the rest."""
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as caught:
        os.dup2(caught.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            caught.seek(0)
            os.write(2, b"".join(line for line in caught if noise not in line))


warp.config.log_level = warp.LOG_WARNING
with nullcontext() if torch.cuda.is_available() else _without_line(NO_DRIVER):
    warp.init()

import mujoco_warp  # noqa: E402  (it starts Warp, which is set to be silent above)

CONTACTS = 48
"""Size of the contact buffer, per world on average: three cubes at rest have 12, gripped and stacked about 30."""
CONSTRAINTS = 192
"""Size of the constraint buffer of each world; three cubes at rest have 49."""


class WarpStage:
    """N worlds of a scene in Warp's arrays.

    Args:
        scene: The model.
        num_worlds: N.
        device: `cpu`, `cuda` or `cuda:<n>`.
        fields: Fields of the model that differ between worlds.
        nconmax: Size of the contact buffer, per world on average.
        njmax: Size of each world's constraint buffer [rows].
    """

    def __init__(
        self, scene: Scene, num_worlds: int, device: str, fields: Sequence[str], nconmax: int, njmax: int
    ) -> None:
        self.device, self.num_worlds = torch.empty(0, device=device).device, num_worlds  # with its number
        with self.on_device():
            self.model: Any = mujoco_warp.put_model(scene.model, batch_sizes=dict.fromkeys(fields, num_worlds))
            self.data: Any = mujoco_warp.make_data(scene.model, nworld=num_worlds, nconmax=nconmax, njmax=njmax)
        self.fields = {name: warp.to_torch(getattr(self.model, name)) for name in fields}
        """(N, ...) views, as tensors, of the model fields that differ between worlds."""

    def tensor(self, name: str) -> Tensor:
        """A view, as a tensor, of a field of the data."""
        return warp.to_torch(getattr(self.data, name))

    def on_device(self) -> AbstractContextManager[Any]:
        """Run Warp on this device within the context; on CUDA, on torch's current stream."""
        if self.device.type == "cpu":
            return warp.ScopedDevice("cpu")
        return warp.ScopedStream(warp.stream_from_torch(torch.cuda.current_stream(self.device)))


class Replay:
    """Work that is the same every time, on fixed arrays: run as it is at first, from then on one captured graph.

    The first call compiles what it needs; processes that begin together compile one after another, so that all but the
    first find the kernels in Warp's cache.

    Args:
        stage: What the work is on.
        work: Functions that launch Warp kernels.
    """

    def __init__(self, stage: WarpStage, *work: Callable[[], None]) -> None:
        self._stage, self._work = stage, work
        self._compiled = False
        self._graph: Any = None

    def __call__(self) -> None:
        """Run the work once, in order with torch's."""
        if not self._compiled:
            self._compile()
        else:
            self._graph = self._graph or self._captured()
            with self._stage.on_device():
                warp.capture_launch(self._graph)

    def _compile(self) -> None:
        with (
            FileLock(Path(warp.config.kernel_cache_dir or tempfile.gettempdir()) / "robopolicy.lock"),
            self._stage.on_device(),
        ):
            for each in self._work:
                each()
        self._compiled = True

    def _captured(self) -> Any:
        """Capture the work on a stream of Warp's; capturing does not run it."""
        device = warp.device_from_torch(self._stage.device)
        with warp.ScopedDevice(device), warp.ScopedCapture(device) as capture:
            for each in self._work:
                each()
        return capture.graph


class WarpPhysics:
    """`mujoco_warp`: float32, every array a torch tensor over Warp's memory, every call a captured graph.

    No call waits for the device, and all of them are in order with torch's current stream. `faults` reports what
    overflows or is no longer finite; the engine itself would silently let cubes fall through the floor.

    Args:
        scene: The model.
        num_worlds: N.
        device: `cpu`, `cuda` or `cuda:<n>`.
        fields: Fields of the model that differ between worlds.
        contacts: Size of the contact buffer, per world on average.
    """

    def __init__(
        self,
        scene: Scene,
        num_worlds: int,
        device: str = "cpu",
        fields: Sequence[str] = (),
        *,
        contacts: int = CONTACTS,
    ) -> None:
        self.scene, self.num_worlds = scene, num_worlds
        self.stage = WarpStage(scene, num_worlds, device, fields, contacts, CONSTRAINTS)
        self.stage.model.opt.warn_overflow = 0  # the device would print it; `faults` reports it
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
