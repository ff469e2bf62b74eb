"""Steps many worlds in parallel with `mujoco_warp`, on a GPU or, for tests and small runs, on the CPU.

The state of all worlds is in Warp arrays on one device. Torch tensors share their memory, and captured CUDA graphs update
them.
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
"""The line that Warp's C library writes to standard error if there is no GPU."""


@contextmanager
def _without_line(noise: bytes) -> Iterator[None]:
    """Within the context, drop lines that contain `noise` from what C code writes to standard error; pass on the rest.

    C code writes to file descriptor 2, not to `sys.stderr`, so the descriptor itself is redirected.
    """
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

import mujoco_warp  # noqa: E402  (importing it initializes Warp, so the log level is set above)

CONTACTS = 48
"""Contacts in the shared buffer, per world on average; three cubes at rest need 12, gripped and stacked about 30."""
CONSTRAINTS = 192
"""Constraint rows in the buffer of each world; three cubes at rest need 49."""


class WarpStage:
    """The model and the state of N worlds of a scene, as Warp arrays on one device.

    Args:
        scene: The model.
        num_worlds: N.
        device: `cpu`, `cuda` or `cuda:<n>`.
        fields: Names of model fields that differ between worlds.
        nconmax: Size of the shared contact buffer, as an average per world [contacts].
        njmax: Size of each world's constraint buffer [rows].
    """

    def __init__(
        self, scene: Scene, num_worlds: int, device: str, fields: Sequence[str], nconmax: int, njmax: int
    ) -> None:
        # The device of a tensor has an index (`cuda:0`), also where `device` is only `cuda`.
        self.device, self.num_worlds = torch.empty(0, device=device).device, num_worlds
        with self.on_device():
            self.model: Any = mujoco_warp.put_model(scene.model, batch_sizes=dict.fromkeys(fields, num_worlds))
            self.data: Any = mujoco_warp.make_data(scene.model, nworld=num_worlds, nconmax=nconmax, njmax=njmax)
        self.fields = {name: warp.to_torch(getattr(self.model, name)) for name in fields}
        """Name -> tensor (N, ...) that shares memory with the model field; only fields that differ between worlds."""

    def tensor(self, name: str) -> Tensor:
        """A tensor that shares memory with a field of mujoco_warp's `Data`."""
        return warp.to_torch(getattr(self.data, name))

    def on_device(self) -> AbstractContextManager[Any]:
        """Run Warp on this device within the context; on CUDA, on torch's current stream."""
        if self.device.type == "cpu":
            return warp.ScopedDevice("cpu")
        return warp.ScopedStream(warp.stream_from_torch(torch.cuda.current_stream(self.device)))


class Replay:
    """A fixed sequence of kernel launches on fixed arrays. The first call launches the kernels; later calls replay a graph.

    The first call also compiles the kernels, under a file lock. Processes that start together thus compile one after
    another, and all but the first find the kernels in Warp's cache.

    Args:
        stage: The worlds on which the kernels operate.
        work: Functions that launch Warp kernels, called in this order.
    """

    def __init__(self, stage: WarpStage, *work: Callable[[], None]) -> None:
        self._stage, self._work = stage, work
        self._compiled = False
        self._graph: Any = None

    def __call__(self) -> None:
        """Run the work once, in stream order with torch's operations."""
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
        """Capture the work on Warp's own stream, since CUDA can't capture its default stream; capturing runs nothing."""
        device = warp.device_from_torch(self._stage.device)
        with warp.ScopedDevice(device), warp.ScopedCapture(device) as capture:
            for each in self._work:
                each()
        return capture.graph


class WarpPhysics:
    """Physics by `mujoco_warp` in float32. Every array is a torch tensor on Warp's memory, every call replays a graph.

    No call waits for the device; the work is queued in order with torch's current stream. `faults` reports full buffers and
    values that are not finite: mujoco_warp drops contacts that do not fit, and cubes would silently fall through the floor.

    Args:
        scene: The model.
        num_worlds: N.
        device: `cpu`, `cuda` or `cuda:<n>`.
        fields: Names of model fields that differ between worlds.
        contacts: Size of the shared contact buffer, per world on average [contacts].
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
        self.stage.model.opt.warn_overflow = 0  # no printing from kernels: `faults` reports overflows
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
        """Advance all worlds by one control step; `ctrl` is given for each physics tick, or once for all of them."""
        self._path.copy_(ctrl)
        self._step()

    def reset(
        self,
        mask: Bool[Tensor, " worlds"],
        qpos: Float[Tensor, "worlds nq"],
        mocap_pos: Float[Tensor, "worlds nmocap 3"],
    ) -> None:
        """Reset the worlds in `mask` to these positions, with zero velocity."""
        self._mask.copy_(mask)
        self._reset()
        self.qpos.copy_(torch.where(mask[:, None], qpos, self.qpos))
        self.mocap_pos.copy_(torch.where(mask[:, None, None], mocap_pos, self.mocap_pos))

    def change(self, mask: Bool[Tensor, " worlds"], fields: Mapping[str, Tensor]) -> None:
        """Set model fields in the worlds in `mask`; `fields` maps a name to values (N, ...)."""
        for name, values in fields.items():
            chosen = mask.reshape(-1, *(1,) * (values.dim() - 1))
            self.fields[name].copy_(torch.where(chosen, values, self.fields[name]))

    def faults(self) -> Int[Tensor, " worlds"]:
        """`Fault` flags of each world: OVERFLOW for a full buffer, PHYSICS for a position or velocity that is not finite.

        A solver that stops at its iteration limit is not a fault.
        """
        full = (self._overflow & _FULL) != 0
        finite = torch.isfinite(self.qpos).all(-1) & torch.isfinite(self.qvel).all(-1)
        return full * int(Fault.OVERFLOW) + ~finite * int(Fault.PHYSICS)

    def forward(self) -> None:
        """Update the body, geom and camera poses in `stage.data` from `qpos`, without stepping."""
        self._forward()

    def show(self) -> None:
        """Launch the kernels of `forward` directly; a renderer captures them in one graph with its own kernels."""
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
