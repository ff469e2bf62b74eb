"""Choice of the physics and its device."""

from collections.abc import Sequence
from typing import Literal, TypeAlias

import torch

from robopolicy.sim.physics import BatchPhysics, Physics
from robopolicy.sim.scene import Scene

Kind: TypeAlias = Literal["auto", "batch", "warp"]


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
        ValueError: it has not; the message lists the available devices.
    """
    try:
        name = torch.device(device)
    except RuntimeError:
        raise ValueError(f"no device {device!r}; expected cpu, cuda or cuda:<n>") from None
    if name.type == "cpu":
        return
    if name.type != "cuda":
        raise ValueError(f"device {device!r} can't run the simulator; expected cpu, cuda or cuda:<n>")
    count = torch.cuda.device_count()
    if not torch.cuda.is_available() or (name.index or 0) >= count:
        raise ValueError(f"device {device}: this machine has {count} CUDA devices that torch can use; use --device cpu")
