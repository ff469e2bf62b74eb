"""Auxiliary losses: small networks that are trained together with the policy but not saved with it.

A loss is an `nn.Module`, built as `Kind(options, context)`, whose `forward(inputs)` returns one scalar. The config gives
its weight under its registered name: `losses: {forward: 0.1}`, or with options `{forward: {weight: 0.1, ...}}`. The action head
computes its own losses (`arm`, `gripper`); they are not part of this family.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from robopolicy.components import ConfigError, require
from robopolicy.types import Batch


@dataclass(frozen=True)
class PrivilegedKeysOptions:
    """Options of a loss that predicts privileged keys."""

    keys: tuple[str, ...] | None = None
    """Privileged keys to predict; null: all of `--data.privileged_keys`."""


@dataclass(frozen=True)
class LossContext:
    """Sizes that an auxiliary loss is built from."""

    pooled_width: int
    """P, width of a pooled frame."""
    hidden_width: int
    """H, width of the memory's output."""
    arm_width: int
    """A, number of arm columns of the action targets."""
    predictions: Mapping[str, int]
    """Width of each prediction that the encoder outputs in addition to its tokens."""
    privileged: Mapping[str, int]
    """Width of each privileged key after scaling."""

    def privileged_keys(self, loss: str, options: PrivilegedKeysOptions) -> tuple[tuple[str, ...], int]:
        """The privileged keys that the loss named `loss` predicts, and their total width.

        Raises:
            ConfigError: there are no privileged keys, or a key is not among `--data.privileged_keys`.
        """
        keys = tuple(self.privileged) if options.keys is None else options.keys
        require(keys, f"--losses.{loss} needs privileged keys; give --data.privileged_keys, such as target_pos")
        for key in keys:
            if key not in self.privileged:
                known = ", ".join(self.privileged) or "none"
                raise ConfigError(
                    f"--losses.{loss} needs the privileged key {key!r}; --data.privileged_keys has: {known}"
                )
        return keys, sum(self.privileged[key] for key in keys)


@dataclass(frozen=True)
class LossInputs:
    """One training batch and the policy's intermediate results on it."""

    batch: Batch
    """The batch from the data loader: observations in the demos' units, action targets normalized."""
    privileged: Mapping[str, Tensor]
    """Key -> scaled values (B, S, d); B segments of S frames."""
    predictions: Mapping[str, Tensor]
    """Name -> the encoder's prediction in addition to its tokens, (B, S, d)."""
    pooled: Tensor
    """(B, S, P) pooled frames."""
    hidden: Tensor
    """(B, V, W, H) memory outputs of the V windows, or, of a carried memory, (B, 1, S, H) for the whole segment."""

    @property
    def frame_valid(self) -> Tensor:
        """(B, S) True where the frame is real, False where it is padding."""
        return torch.as_tensor(self.batch.frame_valid, device=self.hidden.device)

    def joined(self, keys: Sequence[str]) -> Tensor:
        """These privileged keys, concatenated, (B, S, d).

        Raises:
            ConfigError: the demos lack one of them.
        """
        if missing := [key for key in keys if key not in self.privileged]:
            raise ConfigError(
                f"privileged key {missing[0]!r} is not in these demos; drop it from --data.privileged_keys"
            )
        return torch.cat([self.privileged[key] for key in keys], dim=-1)
