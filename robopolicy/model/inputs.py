"""Converts a caller's observations to tensors on the policy's device, after a check of keys and shapes."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from robopolicy.types import ArraySpec


def checked_inputs(
    obs: Mapping[str, Any], expected: Mapping[str, ArraySpec], device: torch.device, finite: bool = False
) -> dict[str, Tensor]:
    """The expected keys as tensors (*B, ...) on `device`: images uint8, the rest float32, with the same leading axes.

    Args:
        obs: the caller's observation.
        expected: the keys that are needed, with the shape and type of one frame.
        device: device of the tensors.
        finite: refuse values that are not finite; not checked on a GPU, which would have to synchronize.

    Raises:
        KeyError: a camera or key is missing.
        ValueError: a shape or type is not the expected one, or a value is not finite.
    """
    tensors: dict[str, Tensor] = {}
    lead: tuple[int, ...] | None = None
    for key, spec in expected.items():
        if key not in obs:
            kind = "camera" if spec.is_image else "key"
            raise KeyError(f"{kind} {key!r} is not in this observation. It has: {', '.join(obs)}")
        tensor = obs[key] if isinstance(obs[key], Tensor) else torch.tensor(obs[key])
        if spec.is_image and tensor.dtype != torch.uint8:
            raise ValueError(f"camera {key!r} has type {tensor.dtype}; expected uint8 images, 0 to 255")
        tensor = tensor.to(device) if spec.is_image else tensor.to(device, torch.float32)
        axes = tuple(tensor.shape[: tensor.dim() - len(spec.shape)])
        if tuple(tensor.shape[len(axes) :]) != spec.shape or lead not in (None, axes):
            batch = "*batch" if lead is None else ", ".join(map(str, lead))
            raise ValueError(
                f"observation {key!r} has shape {tuple(tensor.shape)}; expected ({batch}), "
                f"then {spec.shape}, as in the training demos"
            )
        if finite and tensor.device.type == "cpu" and not spec.is_image and not torch.isfinite(tensor).all():
            raise ValueError(
                f"observation {key!r} holds a value that is not finite; the sensor or its driver is at fault"
            )
        lead = axes
        tensors[key] = tensor
    return tensors


def instruction_entries(instruction: str | Sequence[str | None] | None, batch: Sequence[int]) -> tuple[str | None, ...]:
    """An instruction as a tuple: one entry for the whole batch, or one per entry of its first axis.

    Raises:
        ValueError: there are several instructions, but not one per entry.
    """
    entries = (instruction,) if instruction is None or isinstance(instruction, str) else tuple(instruction)
    if len(entries) > 1 and (not batch or len(entries) != batch[0]):
        raise ValueError(f"{len(entries)} instructions for a batch of {tuple(batch)}; give one, or one per entry")
    return entries
