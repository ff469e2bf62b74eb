"""Augmentation changes what it says, alike for all frames of a segment, and nothing else."""

import pytest
import torch

from robopolicy.training.augmentation import Augmentation
from robopolicy.types import Batch


def make_batch(count: int = 16, segment: int = 3, size: int = 12) -> Batch:
    torch.manual_seed(0)
    picture = torch.randint(0, 256, (count, 1, size, size, 3), dtype=torch.uint8).expand(-1, segment, -1, -1, -1)
    return Batch(
        obs={"front": picture, "qpos": torch.randn(count, segment, 2), "target_pos": torch.randn(count, segment, 3)},
        instruction_id=torch.full((count,), -1),
        instructions=(),
        target=torch.zeros(count, segment, 1, 1),
        action_valid=torch.ones(count, segment, 1, dtype=torch.bool),
        frame_valid=torch.ones(count, segment, dtype=torch.bool),
    )


MEAN, STD = {"qpos": torch.tensor([5.0, 7.0])}, {"qpos": torch.tensor([2.0, 0.0])}


def test_nothing_asked_changes_nothing() -> None:
    """Augmentation that is off must cost nothing and draw no random number, or resumed runs would differ."""
    batch = make_batch()
    assert Augmentation(cameras=["front"], obs_mean=MEAN, obs_std=STD)(batch) is batch


@pytest.mark.parametrize(
    "change", [{"shift_px": 3}, {"crop": 0.7}, {"brightness": 0.5}, {"contrast": 0.5}, {"saturation": 0.9}]
)
def test_every_frame_of_a_segment_is_changed_alike_and_segments_differ(change: dict) -> None:
    """A picture that jumps from frame to frame teaches a motion that never was; one draw per batch is no augmentation."""
    batch = make_batch()
    pictures = Augmentation(cameras=["front"], **change)(batch).obs["front"]
    assert pictures.dtype == torch.uint8
    assert torch.equal(pictures, pictures[:, :1].expand_as(pictures))
    changed = (pictures != batch.obs["front"]).flatten(1).any(1)
    assert changed.sum() >= 12
    same = make_batch().obs["front"][:1].expand(16, -1, -1, -1, -1)
    differing = Augmentation(cameras=["front"], **change)(Batch(**{**vars(batch), "obs": {**batch.obs, "front": same}}))
    assert len({tuple(picture.flatten().tolist()) for picture in differing.obs["front"][:, 0]}) > 3


def test_a_shift_moves_the_picture_and_repeats_its_edge() -> None:
    """Shifting that wraps round, or mixes rows with columns, puts objects where they are not."""
    size, reach = 12, 3
    row, column = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    ramp = torch.stack([row, column, torch.zeros_like(row)], dim=-1).to(torch.uint8).expand(64, 2, -1, -1, -1)
    batch = make_batch(64, 2)
    torch.manual_seed(1)
    moved = Augmentation(cameras=["front"], shift_px=reach)(Batch(**{**vars(batch), "obs": {"front": ramp}})).obs[
        "front"
    ]
    offset = moved[:, 0, 5, 5, :2].int() - 5
    assert offset.abs().max() == reach
    expected = (torch.arange(size) + offset[:, :1]).clamp(0, size - 1)
    assert torch.equal(moved[:, 0, :, 5, 0].int(), expected)
    expected = (torch.arange(size) + offset[:, 1:]).clamp(0, size - 1)
    assert torch.equal(moved[:, 1, 5, :, 1].int(), expected)


def test_a_crop_shows_a_part_of_the_picture_over_its_whole_width() -> None:
    """A crop that is not scaled back would change the picture's size or leave a border."""
    size = 100
    ramp = torch.arange(size, dtype=torch.uint8).view(1, 1, 1, size, 1).expand(32, 1, 4, -1, 3)
    torch.manual_seed(0)
    batch = make_batch(32, 1)
    cropped = Augmentation(cameras=["front"], crop=0.8)(Batch(**{**vars(batch), "obs": {"front": ramp}})).obs["front"]
    extent = (cropped[:, 0, 0, -1, 0].int() - cropped[:, 0, 0, 0, 0].int()).float()
    assert 78 <= extent.min() < 85
    assert 95 < extent.max() <= 99


def test_noise_has_the_asked_deviation_and_spares_constant_dimensions_and_targets() -> None:
    """Noise on a constant dimension is all the policy would see of it; noise on a target is a wrong label."""
    batch = make_batch(2000)
    changed = Augmentation(obs_mean=MEAN, obs_std=STD, obs_noise=0.1)(batch)
    added = changed.obs["qpos"] - batch.obs["qpos"]
    torch.testing.assert_close(added[..., 0].std(), torch.tensor(0.2), rtol=0.05, atol=0)
    assert not added[..., 1].any()
    assert changed.obs["target_pos"] is batch.obs["target_pos"]


def test_dropout_hides_whole_segments_behind_the_mean() -> None:
    """Hiding single frames leaves proprioception readable from their neighbours."""
    changed = Augmentation(obs_mean=MEAN, obs_std=STD, obs_dropout=0.3)(make_batch(1000)).obs["qpos"]
    hidden = (changed == MEAN["qpos"]).all(-1)
    assert torch.equal(hidden.all(1), hidden.any(1))
    assert 0.25 < hidden[:, 0].float().mean() < 0.35


@pytest.mark.parametrize(
    "change", [{"crop": 0.0}, {"crop": 1.5}, {"obs_dropout": 2.0}, {"shift_px": -1}, {"obs_noise": -0.1}]
)
def test_amounts_out_of_range_are_refused(change: dict) -> None:
    """A negative amount would be drawn silently with the opposite sign."""
    with pytest.raises(ValueError, match=f"augmentation.{next(iter(change))}"):
        Augmentation(**change)
