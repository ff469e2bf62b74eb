"""Random changes to training batches, drawn per segment and computed on the batch's device.

A component of the family `augmentation` is built as `Kind(options, inputs)` and called as `kind(batch) -> batch`. All images of
a camera in a segment get the same change: a jump between two frames would teach the memory a motion that never happened.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from robopolicy.components import ConfigError, build, options_from, require
from robopolicy.types import Batch


@dataclass(frozen=True)
class AugmentationInputs:
    """The parts of a batch that can be changed."""

    cameras: tuple[str, ...] = ()
    """Keys of the images, uint8 (B, S, height, width, channels)."""
    obs_mean: Mapping[str, Tensor] = field(default_factory=dict)
    """Low-dimensional key -> its mean (d,) in the training split, in the demos' units."""
    obs_std: Mapping[str, Tensor] = field(default_factory=dict)
    """Low-dimensional key -> its standard deviation (d,) in the training split; 0 where a dimension is constant."""

    def require_cameras(self, kind: str) -> tuple[str, ...]:
        """The cameras.

        Raises:
            ConfigError: the policy has no camera.
        """
        require(
            self.cameras,
            f"--augmentation.{kind} changes images, and the policy has no camera; give --data.cameras",
        )
        return self.cameras

    def require_keys(self, kind: str) -> tuple[str, ...]:
        """The low-dimensional keys.

        Raises:
            ConfigError: the policy has no low-dimensional key.
        """
        require(self.obs_mean, f"--augmentation.{kind} changes low-dimensional keys, and the policy has none")
        return tuple(self.obs_mean)


def make_augmentation(kinds: Mapping[str, Any], inputs: AugmentationInputs) -> Callable[[Batch], Batch] | None:
    """A function that applies all augmentations of a config, one after another; None if there are none.

    Args:
        kinds: name of an augmentation -> its options.
        inputs: the parts of a batch that can be changed.

    Raises:
        ConfigError: a kind or an option is unknown, or there is nothing for it to change.
    """
    changes = []
    for kind, given in kinds.items():
        if not isinstance(given, Mapping):
            raise ConfigError(f"--augmentation.{kind} must be a mapping of options, got {given!r}")
        changes.append(build(options_from("augmentation", kind, given), inputs))
    if not changes:
        return None

    def augment(batch: Batch) -> Batch:
        for change in changes:
            batch = change(batch)
        return batch

    return augment


def with_obs(batch: Batch, changed: Mapping[str, Tensor]) -> Batch:
    """The batch with these observations replaced."""
    return replace(batch, obs={**batch.obs, **changed})
