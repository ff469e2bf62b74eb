"""A scene as Warp arrays on one device, shared with torch without copies and updated by captured graphs."""

import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
import warp
from filelock import FileLock
from torch import Tensor

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


class WarpStage:
    """N worlds of a scene in Warp's arrays.

    Args:
        scene: The model.
        num_worlds: N.
        device: `cpu`, `cuda` or `cuda:<n>`.
        fields: Fields of the model that differ between worlds.
        nconmax: Contacts there is room for, per world on average.
        njmax: Constraint rows there is room for in each world.
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
