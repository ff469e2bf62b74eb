"""The same code for NumPy arrays and torch tensors: the namespace of an array, and constants of its type.

NumPy is used for one robot or a few worlds, where call overhead dominates; torch for thousands of worlds on a device. No
function synchronizes with the device, and each constant is copied to it once, so callers can be captured as a CUDA graph.
"""

from functools import lru_cache
from types import ModuleType

import numpy as np
import torch

from robopolicy.types import Array


def namespace(array: Array) -> ModuleType:
    """`numpy` for an array, `torch` for a tensor."""
    return np if isinstance(array, np.ndarray) else torch


def like(array: Array, constant: np.ndarray) -> Array:
    """`constant` with the array type, device and floating dtype of `array`.

    An integer or bool constant keeps its dtype, so that it can be an index.
    """
    if isinstance(array, np.ndarray):
        return constant
    return _tensor(constant.tobytes(), constant.shape, constant.dtype.str, array.dtype, array.device)


def copied(array: Array) -> Array:
    """A copy."""
    return array.copy() if isinstance(array, np.ndarray) else array.clone()


def row(*parts: Array) -> Array:
    """Concatenate parts (*B, width) along the last axis, as float32."""
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
