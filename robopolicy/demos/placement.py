"""Where images and tokens are stored during training: on the model's device, in host memory, or on disk."""

import logging
import os
from contextlib import suppress
from pathlib import Path
from typing import Literal, TypeAlias

import torch

LOG = logging.getLogger(__name__)

Placement: TypeAlias = Literal["auto", "device", "host", "disk"]

MEMORY_SHARE = 0.5
"""Fraction of the free memory that images and tokens may use."""


def choose_placement(placement: Placement, size_bytes: int, device: torch.device) -> Literal["device", "host", "disk"]:
    """Choose where images and tokens of `size_bytes` bytes are held.

    `auto` takes the first of device, host and disk with enough free memory, and logs the sizes and the choice unless there are
    no bytes to hold; any other placement is returned unchanged.
    """
    if placement != "auto":
        return placement
    if size_bytes == 0:
        return "device"
    host = _free_host_bytes()
    on_device = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else host
    if size_bytes <= MEMORY_SHARE * on_device:
        chosen: Literal["device", "host", "disk"] = "device"
    else:
        chosen = "host" if size_bytes <= MEMORY_SHARE * host else "disk"
    LOG.info(
        "%.3g GB of images and tokens, %.3g GB free on %s, %.3g GB on the host: placement %s",
        *(size_bytes / 1e9, on_device / 1e9, device, host / 1e9, chosen),
    )
    return chosen


def _free_host_bytes() -> int:
    """Memory that can be used without swapping: the machine's, or what is left of this container's limit if that is less."""
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    with suppress(OSError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = 1024 * int(next(line for line in lines if line.startswith("MemAvailable:")).split()[1])
    with suppress(OSError, ValueError, KeyError):  # without a limit the file holds "max"
        group = Path("/sys/fs/cgroup")
        limit, used = (int((group / name).read_text()) for name in ("memory.max", "memory.current"))
        cached = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())["inactive_file"]
        free = min(free, limit - used + int(cached))  # the kernel gives up cached file pages when memory is needed
    return free
