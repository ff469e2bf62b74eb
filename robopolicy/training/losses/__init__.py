"""Auxiliary losses: predictors that are trained beside the policy, and are not saved with it.

A kind of the family `loss` is a module built as `Kind(options, context)` whose `forward(inputs)` gives one scalar. The
config weights it under its name: `losses: {forward: 0.1}`, or with options `{forward: {weight: 0.1, ...}}`. The losses
of the action head (`arm`, `gripper`) are the head's own.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from robopolicy.components import ConfigError
from robopolicy.types import Batch


@dataclass(frozen=True)
class LossContext:
    """Sizes that an auxiliary loss is built from."""

    pooled_width: int
    """P, width of a pooled frame."""
    hidden_width: int
    """H, width of the memory's output."""
    arm_width: int
    """A, arm columns of the action targets."""
    predictions: Mapping[str, int]
    """Width of each prediction that the encoder makes beside its tokens."""
    privileged: Mapping[str, int]
    """Width of each privileged key, scaled."""

    def privileged_width(self, loss: str, keys: Sequence[str]) -> int:
        """Columns of the privileged keys side by side.

        Raises:
            ConfigError: there are none, or one is not among `--data.privileged_keys`.
        """
        if not keys:
            raise ConfigError(f"--losses.{loss} needs privileged keys; give --data.privileged_keys, such as target_pos")
        for key in keys:
            if key not in self.privileged:
                known = ", ".join(self.privileged) or "none"
                raise ConfigError(
                    f"--losses.{loss} needs the privileged key {key!r}; --data.privileged_keys has: {known}"
                )
        return sum(self.privileged[key] for key in keys)


@dataclass(frozen=True)
class LossInputs:
    """One training batch and the policy's intermediate results on it."""

    batch: Batch
    """The batch as the loader gave it, in the demos' own units."""
    privileged: Mapping[str, Tensor]
    """Scaled privileged keys (B, S, d)."""
    predictions: Mapping[str, Tensor]
    """What the encoder predicted beside its tokens, (B, S, d)."""
    pooled: Tensor
    """(B, S, P) pooled frames."""
    hidden: Tensor
    """(B, V, W, H) memory outputs of the V windows, or (B, 1, S, H) of one unrolled segment."""

    @property
    def frame_valid(self) -> Tensor:
        """(B, S) True where the frame is one of the demo."""
        return torch.as_tensor(self.batch.frame_valid, device=self.hidden.device)

    def joined(self, keys: Sequence[str]) -> Tensor:
        """Privileged keys side by side, (B, S, d).

        Raises:
            ConfigError: these demos don't hold one of them.
        """
        if missing := [key for key in keys if key not in self.privileged]:
            raise ConfigError(
                f"privileged key {missing[0]!r} is not in these demos; drop it from --data.privileged_keys"
            )
        return torch.cat([self.privileged[key] for key in keys], dim=-1)
