"""Augmentation changes what its options name, alike for all frames of a segment, and nothing else."""

from typing import Any

import pytest
import torch

from robopolicy.components import ConfigError, kinds
from robopolicy.training.augmentations import AugmentationInputs, make_augmentation
from robopolicy.types import Batch

MEAN, STD = {"qpos": torch.tensor([5.0, 7.0])}, {"qpos": torch.tensor([2.0, 0.0])}
INPUTS = AugmentationInputs(("front",), MEAN, STD)


def make_batch(count: int = 16, segment: int = 3, size: int = 12) -> Batch:
    torch.manual_seed(0)
    image = torch.randint(0, 256, (count, 1, size, size, 3), dtype=torch.uint8).expand(-1, segment, -1, -1, -1)
    return Batch(
        obs={"front": image, "qpos": torch.randn(count, segment, 2), "target_pos": torch.randn(count, segment, 3)},
        instruction_id=torch.full((count,), -1),
        instructions=(),
        target=torch.zeros(count, segment, 1, 1),
        action_valid=torch.ones(count, segment, 1, dtype=torch.bool),
        frame_valid=torch.ones(count, segment, dtype=torch.bool),
    )


def with_images(batch: Batch, images: torch.Tensor) -> Batch:
    return Batch(**{**vars(batch), "obs": {**batch.obs, "front": images}})


def augmented(batch: Batch, kind: str, **options: Any) -> Batch:
    change = make_augmentation({kind: options}, INPUTS)
    assert change is not None
    return change(batch)


def test_no_kinds_make_no_augmentation() -> None:
    """Guards against: an augmentation that is off but draws random numbers, so that resumed runs differ."""
    assert make_augmentation({}, INPUTS) is None


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("shift", {"pixels": 3}),
        ("crop", {"share": 0.7}),
        ("color", {"brightness": 0.5}),
        ("color", {"contrast": 0.5}),
        ("color", {"saturation": 0.9}),
    ],
)
def test_frames_of_a_segment_change_alike_segments_differ(kind: str, options: dict[str, float]) -> None:
    """Guards against: images that jump between frames, a motion that never happened; one draw for the whole batch."""
    batch = make_batch()
    images = augmented(batch, kind, **options).obs["front"]
    assert images.dtype == torch.uint8
    assert torch.equal(images, images[:, :1].expand_as(images))
    changed = (images != batch.obs["front"]).flatten(1).any(1)
    assert changed.sum() >= 12
    same = make_batch().obs["front"][:1].expand(16, -1, -1, -1, -1)
    differing = augmented(with_images(batch, same), kind, **options)
    assert len({tuple(image.flatten().tolist()) for image in differing.obs["front"][:, 0]}) > 3


@pytest.mark.parametrize("kind", ["shift", "crop", "color", "obs_noise", "obs_dropout"])
def test_the_batch_it_is_given_stays_as_it_is(kind: str) -> None:
    """Guards against: changing the store's own arrays in place, so that noise adds up over the epochs."""
    batch = make_batch()
    before = {key: value.clone() for key, value in batch.obs.items()}
    changed = augmented(batch, kind, **({"brightness": 0.5} if kind == "color" else {}))
    assert all(torch.equal(batch.obs[key], value) for key, value in before.items())
    touched = {key for key, value in changed.obs.items() if value is not batch.obs[key]}
    assert touched == ({"qpos"} if kind.startswith("obs_") else {"front"})


def test_a_shift_moves_the_image_and_repeats_its_edge() -> None:
    """Guards against: a shift that wraps around, or mixes rows with columns, and puts objects where they are not."""
    size, reach = 12, 3
    row, column = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    ramp = torch.stack([row, column, torch.zeros_like(row)], dim=-1).to(torch.uint8).expand(64, 2, -1, -1, -1)
    batch = make_batch(64, 2)
    torch.manual_seed(1)
    moved = augmented(with_images(batch, ramp), "shift", pixels=reach).obs["front"]
    offset = moved[:, 0, 5, 5, :2].int() - 5
    assert offset.abs().max() == reach
    expected = (torch.arange(size) + offset[:, :1]).clamp(0, size - 1)
    assert torch.equal(moved[:, 0, :, 5, 0].int(), expected)
    expected = (torch.arange(size) + offset[:, 1:]).clamp(0, size - 1)
    assert torch.equal(moved[:, 1, 5, :, 1].int(), expected)


def test_a_crop_is_scaled_back_to_the_whole_width() -> None:
    """Guards against: a crop that changes the image's size or leaves a border."""
    size = 100
    ramp = torch.arange(size, dtype=torch.uint8).view(1, 1, 1, size, 1).expand(32, 1, 4, -1, 3)
    batch = make_batch(32, 1)
    torch.manual_seed(0)
    cropped = augmented(with_images(batch, ramp), "crop", share=0.8).obs["front"]
    extent = (cropped[:, 0, 0, -1, 0].int() - cropped[:, 0, 0, 0, 0].int()).float()
    assert 78 <= extent.min() < 85
    assert 95 < extent.max() <= 99


def test_noise_has_its_std_and_spares_constant_dimensions() -> None:
    """Guards against: noise on a constant dimension, which is all the policy would see of it, or on a privileged key."""
    batch = make_batch(2000)
    changed = augmented(batch, "obs_noise", std=0.1)
    added = changed.obs["qpos"] - batch.obs["qpos"]
    torch.testing.assert_close(added[..., 0].std(), torch.tensor(0.2), rtol=0.05, atol=0)
    assert not added[..., 1].any()
    assert changed.obs["target_pos"] is batch.obs["target_pos"]


def test_past_frames_can_have_noise_of_their_own() -> None:
    """Guards against: `past_std` applied to the newest frame, or to no frame at all."""
    batch = make_batch(2000)
    added = augmented(batch, "obs_noise", std=0.1, past_std=0.4).obs["qpos"] - batch.obs["qpos"]
    torch.testing.assert_close(added[:, :-1, 0].std(), torch.tensor(0.8), rtol=0.05, atol=0)
    torch.testing.assert_close(added[:, -1, 0].std(), torch.tensor(0.2), rtol=0.05, atol=0)


def test_dropout_hides_whole_segments_behind_the_mean() -> None:
    """Guards against: hiding single frames, which leaves proprioception readable from their neighbors."""
    changed = augmented(make_batch(1000), "obs_dropout", probability=0.3).obs["qpos"]
    hidden = (changed == MEAN["qpos"]).all(-1)
    assert torch.equal(hidden.all(1), hidden.any(1))
    assert 0.25 < hidden[:, 0].float().mean() < 0.35


def test_dropout_hides_all_keys_of_the_same_segments() -> None:
    """Guards against: a draw per key, which leaves the pose readable from another key."""
    batch, zero = make_batch(1000), torch.zeros(3)
    inputs = AugmentationInputs((), {**MEAN, "target_pos": zero}, {**STD, "target_pos": zero})
    change = make_augmentation({"obs_dropout": {"probability": 0.3}}, inputs)
    assert change is not None
    changed = change(batch).obs
    hidden = [(changed[key] == mean).all(-1).all(1) for key, mean in inputs.obs_mean.items()]
    assert 250 < hidden[0].sum() < 350
    assert torch.equal(*hidden)


def test_several_augmentations_are_all_applied() -> None:
    """Guards against: the last augmentation of a config replacing those before it."""
    batch = make_batch()
    change = make_augmentation({"obs_noise": {}, "shift": {"pixels": 3}}, INPUTS)
    assert change is not None
    changed = change(batch).obs
    assert not torch.equal(changed["front"], batch.obs["front"])
    assert not torch.equal(changed["qpos"], batch.obs["qpos"])


@pytest.mark.parametrize(
    ("kind", "option", "value"),
    [
        ("crop", "share", 0.0),
        ("crop", "share", 1.5),
        ("obs_dropout", "probability", 2.0),
        ("shift", "pixels", -1),
        ("obs_noise", "std", -0.1),
        ("color", "contrast", -0.1),
    ],
)
def test_amounts_out_of_range_are_refused(kind: str, option: str, value: float) -> None:
    """Guards against: a negative amount, silently drawn with the opposite sign."""
    with pytest.raises(ConfigError, match=rf"--augmentation\.{kind}\.{option} must be .*, got {value}"):
        make_augmentation({kind: {option: value}}, INPUTS)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"shft": {}}, r"augmentation 'shft' is unknown; choose one of color, crop, obs_dropout, obs_noise, shift"),
        ({"shift": {"px": 4}}, r"unknown option --augmentation\.shift\.px; the options of .* are: pixels"),
        ({"shift": {"pixels": "far"}}, r"--augmentation\.shift\.pixels must be an integer, got far"),
        ({"shift": 4}, r"--augmentation\.shift must be a mapping of options, got 4"),
    ],
)
def test_an_unknown_kind_or_option_is_refused_in_one_line(given: dict[str, Any], message: str) -> None:
    """Guards against: a misspelled augmentation that is silently left out of the training."""
    with pytest.raises(ConfigError, match=message) as refused:
        make_augmentation(given, INPUTS)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("kind", kinds("augmentation"))
def test_an_augmentation_with_nothing_to_change_is_refused(kind: str) -> None:
    """Guards against: a configured augmentation that does nothing, since the policy has no such key."""
    with pytest.raises(ConfigError, match=rf"--augmentation\.{kind} changes .*, and the policy has no"):
        make_augmentation({kind: {}}, AugmentationInputs())
