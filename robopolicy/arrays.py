"""The same code for NumPy arrays and torch tensors: the namespace of an array, constants of its type, shapes in signatures.

NumPy is used for one robot or a few worlds, where call overhead dominates; torch for thousands of worlds on a device. No
function synchronizes with the device, and each constant is copied to it once, so callers can be captured as a CUDA graph.
Nothing here needs torch to be installed, as long as all arrays are NumPy's.
"""

import math
import sys
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from types import ModuleType
from typing import TYPE_CHECKING, Literal

import numpy as np

from robopolicy.action_spec import Array

try:
    from jaxtyping import Bool as Bool
    from jaxtyping import Float as Float
    from jaxtyping import Int as Int
    from jaxtyping import UInt8 as UInt8
except ImportError:  # on a robot computer with the exported runtime; nothing checks the shapes there
    from typing import Annotated as Bool  # noqa: F401
    from typing import Annotated as Float
    from typing import Annotated as Int
    from typing import Annotated as UInt8  # noqa: F401

if TYPE_CHECKING:
    import torch


_NUMPY = (np.ndarray, np.generic)


def namespace(array: Array) -> ModuleType:
    """`numpy` for an array, `torch` for a tensor."""
    return np if isinstance(array, _NUMPY) else sys.modules["torch"]


def like(array: Array, constant: np.ndarray) -> Array:
    """`constant` with the array type, device and floating dtype of `array`.

    An integer or bool constant keeps its dtype, so that it can be an index.
    """
    if isinstance(array, np.ndarray):
        return constant
    return _tensor(constant.tobytes(), constant.shape, constant.dtype.str, array.dtype, array.device)


def cast(array: Array, other: Array) -> Array:
    """The array with the dtype, and the device, of `other`."""
    return array.astype(other.dtype) if isinstance(array, _NUMPY) else array.to(other)


def copied(array: Array) -> Array:
    """A copy."""
    return array.copy() if isinstance(array, np.ndarray) else array.clone()


def row(*parts: Array) -> Array:
    """Concatenate parts (*B, width) along the last axis, as float32."""
    if isinstance(parts[0], np.ndarray):
        return np.concatenate(parts, -1, dtype=np.float32)
    xp = namespace(parts[0])
    return xp.cat(parts, -1).float()


def shifted(array: Array, steps: int) -> Array:
    """A copy (*B, rows, width) without the first `steps` rows, and with as many rows of zeros at the end."""
    xp = namespace(array)
    return xp.concatenate([array[..., steps:, :], xp.zeros_like(array[..., :steps, :])], -2)


def rows_at(array: Float[Array, "*B steps width"], place: Int[Array, "*B steps"]) -> Float[Array, "*B steps width"]:
    """The rows with these indices."""
    if isinstance(array, np.ndarray):
        return np.take_along_axis(array, place[..., None], -2)
    return array.gather(-2, place[..., None].expand_as(array))


def mixed(start: Array, end: Array, share: Array) -> Array:
    """(1 - share) * start + share * end, exact where `share` is 0 or 1."""
    if not isinstance(start, np.ndarray):
        return start.lerp(end, share)
    way = end - start
    return np.where(share < 0.5, start + share * way, end - (1 - share) * way)


def soft_mask(
    place: Float[Array, "*#batch steps"], end: Float[Array, "*#batch 1"], frozen: Float[Array, "*#batch 1"] | int
) -> Float[Array, "*batch steps"]:
    """Real-time chunking's weight of the old plan (arXiv 2506.07339): 1 before `frozen`, then falling to 0 at `end`.

    Args:
        place: index of each step in the new chunk.
        end: index in the new chunk at which the old plan ends.
        frozen: number of first steps of the chunk that the old plan fills.
    """
    xp = namespace(place)
    share = ((end - place) / (end - frozen + 1).clip(1)).clip(0, 1)
    return xp.where(place < frozen, 1.0, share * xp.expm1(share) / math.expm1(1))


def torch_mode(name: Literal["no_grad", "inference_mode"]) -> AbstractContextManager:
    """This context of torch, if a policy has imported torch; otherwise one that does nothing."""
    torch = sys.modules.get("torch")
    return nullcontext() if torch is None else getattr(torch, name)()


@lru_cache(maxsize=1024)
def _tensor(
    content: bytes, shape: tuple[int, ...], kind: str, precision: "torch.dtype", device: "torch.device"
) -> "torch.Tensor":
    import torch

    constant = np.frombuffer(content, kind).reshape(shape).copy()
    floating = constant.dtype.kind == "f"
    with torch.inference_mode(False):
        return torch.as_tensor(constant, dtype=precision if floating else None, device=device)
