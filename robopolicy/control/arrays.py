"""One code for NumPy arrays and torch tensors: the namespace an array belongs to, and constants of its kind.

NumPy serves a few worlds or one robot, where a call's overhead is all that counts; torch serves thousands of worlds on a
device. Nothing here waits for a device, and a constant is carried to it once, so that what uses them can be captured as a
CUDA graph.
"""

from functools import lru_cache
from types import ModuleType

import numpy as np
import torch

from robopolicy.types import Array


def namespace(array: Array) -> ModuleType:
    """`numpy` or `torch`, whichever the array belongs to."""
    return np if isinstance(array, np.ndarray) else torch


def like(array: Array, constant: np.ndarray) -> Array:
    """`constant` as the kind of array, and on the device, of `array`; its numbers in the precision of `array`'s.

    A constant of another kind than floating point keeps its type, so that it can be an index.
    """
    if isinstance(array, np.ndarray):
        return constant
    return _tensor(constant.tobytes(), constant.shape, constant.dtype.str, array.dtype, array.device)


def copied(array: Array) -> Array:
    """A copy in memory of its own."""
    return array.copy() if isinstance(array, np.ndarray) else array.clone()


def row(*parts: Array) -> Array:
    """Parts (*B, width) side by side, in float32: a new row of an observation or an action."""
    if isinstance(parts[0], np.ndarray):
        return np.concatenate(parts, -1, dtype=np.float32)
    return torch.cat(parts, -1).float()


@lru_cache(maxsize=1024)
def _tensor(
    content: bytes, shape: tuple[int, ...], kind: str, precision: torch.dtype, device: torch.device
) -> torch.Tensor:
    constant = np.frombuffer(content, kind).reshape(shape).copy()
    floating = constant.dtype.kind == "f"
    with torch.inference_mode(False):
        return torch.as_tensor(constant, dtype=precision if floating else None, device=device)
