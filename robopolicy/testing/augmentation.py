"""The conformance kit of augmentations; each check takes a function that builds one from `AugmentationInputs`.

Give it options that change something with near certainty: `it_changes_the_batch` tries a few draws.
"""

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

from robopolicy.testing._assert import generator, random_like, require, require_equal, require_error, seeded
from robopolicy.training.augmentations import AugmentationInputs
from robopolicy.types import Batch

SEGMENTS, FRAMES = 6, 4
CAMERAS = {"front": (12, 16, 3), "wrist": (9, 10, 3)}
KEYS = {"ee_pose": 7, "gripper": 1}
DRAWS = 20
"""Batches drawn to find a change."""
INPUTS = AugmentationInputs(
    cameras=tuple(CAMERAS),
    obs_mean={key: torch.zeros(width) for key, width in KEYS.items()},
    obs_std={key: torch.ones(width) for key, width in KEYS.items()},
)
Make: TypeAlias = Callable[[AugmentationInputs], Callable[[Batch], Batch]]
"""Builds the augmentation."""


def observations_keep_shape_and_type(make: Make) -> None:
    """The same keys, shapes and dtypes; low-dimensional values are finite."""
    batch = _batch()
    changed = _drawn(make(INPUTS), batch)
    require(set(changed.obs) == set(batch.obs), f"keys {sorted(changed.obs)}; expected {sorted(batch.obs)}")
    for key, before in batch.obs.items():
        after = changed.obs[key]
        require(after.shape == before.shape, f"{key} of shape {tuple(after.shape)}; expected {tuple(before.shape)}")
        require(after.dtype == before.dtype, f"{key} is {after.dtype}; expected {before.dtype}")
        require(bool(torch.as_tensor(after).isfinite().all()), f"{key} is not finite")


def labels_and_masks_stay(make: Make) -> None:
    """Actions, masks and instructions are those of the demos."""
    batch = _batch()
    changed = _drawn(make(INPUTS), batch)
    for name in ("target", "action_valid", "frame_valid", "instruction_id"):
        require_equal(torch.as_tensor(getattr(changed, name)), torch.as_tensor(getattr(batch, name)), name)


def the_given_batch_is_not_written_to(make: Make) -> None:
    """The batch may share memory with the demos, which later batches are read from."""
    batch = _batch()
    before = {key: torch.as_tensor(values).clone() for key, values in batch.obs.items()}
    _drawn(make(INPUTS), batch)
    for key, values in before.items():
        require_equal(torch.as_tensor(batch.obs[key]), values, f"{key} of the given batch, afterwards")


def draws_follow_the_seed(make: Make) -> None:
    """All randomness comes from torch's generator, so that a resumed run draws what an uninterrupted one would."""
    first, again = (_drawn(make(INPUTS), _batch(), seed=3) for _ in range(2))
    for key, values in first.obs.items():
        require_equal(
            torch.as_tensor(again.obs[key]), torch.as_tensor(values), f"{key} of a second draw with the same seed"
        )


def it_changes_the_batch(make: Make) -> None:
    """Some draw differs from the demos, and draws differ from each other."""
    change, batch = make(INPUTS), _batch()
    drawn = [_drawn(change, batch, seed) for seed in range(DRAWS)]
    require(any(not _same(each, batch) for each in drawn), f"no observation changes in {DRAWS} draws")
    require(any(not _same(each, drawn[0]) for each in drawn), f"{DRAWS} draws are all alike")


def images_of_a_segment_change_alike(make: Make) -> None:
    """A still camera stays still: a jump between two frames would be a motion that never happened."""
    batch = _batch()
    for camera in CAMERAS:
        torch.as_tensor(batch.obs[camera])[:] = torch.as_tensor(batch.obs[camera])[:, :1]
    changed = _drawn(make(INPUTS), batch)
    for camera in CAMERAS:
        images = torch.as_tensor(changed.obs[camera])
        require_equal(images, images[:, :1].expand_as(images), f"frames of {camera} in a segment of equal frames")


def nothing_to_change_is_refused(make: Make) -> None:
    """An augmentation that silently does nothing would be reported as used."""
    require_error(lambda: make(AugmentationInputs()), "a policy without cameras and low-dimensional keys")


def _batch() -> Batch:
    random = generator()
    obs: dict[str, Tensor] = {
        camera: torch.randint(0, 256, (SEGMENTS, FRAMES, *shape), generator=random, dtype=torch.uint8)
        for camera, shape in CAMERAS.items()
    }
    obs |= {key: random_like(random, SEGMENTS, FRAMES, width) for key, width in KEYS.items()}
    return Batch(
        obs=obs,
        instruction_id=torch.zeros(SEGMENTS, dtype=torch.int64),
        instructions=("",),
        target=random_like(random, SEGMENTS, FRAMES, 2, 4),
        action_valid=torch.ones(SEGMENTS, FRAMES, 2, dtype=torch.bool),
        frame_valid=torch.ones(SEGMENTS, FRAMES, dtype=torch.bool),
    )


def _drawn(change: Callable[[Batch], Batch], batch: Batch, seed: int = 0) -> Batch:
    return seeded(change, batch, seed=seed)


def _same(batch: Batch, other: Batch) -> bool:
    return all(torch.equal(torch.as_tensor(batch.obs[key]), torch.as_tensor(other.obs[key])) for key in other.obs)


CHECKS: tuple[Callable[[Make], None], ...] = (
    observations_keep_shape_and_type,
    labels_and_masks_stay,
    the_given_batch_is_not_written_to,
    draws_follow_the_seed,
    it_changes_the_batch,
    images_of_a_segment_change_alike,
    nothing_to_change_is_refused,
)
