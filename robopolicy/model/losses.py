"""Masked losses of actions.

Every mean here is a sum over valid entries divided by their number, so that padding has no influence: an empty mask gives 0,
and a value at an invalid entry (NaN included) affects neither the loss nor the gradient.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from robopolicy.types import Chunk


def action_loss(
    chunk: Chunk,
    target: Float[Tensor, "*batch chunk action"],
    action_valid: Bool[Tensor, "*mask"] | None,
    gripper_weight: float = 0.01,
    huber_delta: float = 1.0,
    arm_weights: Sequence[float] = (),
) -> dict[str, Tensor]:
    """Masked Huber on the arm plus weighted masked cross-entropy on the gripper, as RoboVLMs trains its head.

    Args:
        chunk: prediction, arm (*B, W, K, A) and gripper logits (*B, W, K, G).
        target: arm in [-1, 1], then gripper labels in {0, 1}; ignored where invalid, even if NaN.
        action_valid: (*B, W, K), or (*B, W) for whole frames; None: all valid.
        gripper_weight: weight of the gripper's term in `loss`.
        huber_delta: error at which the arm's loss changes from quadratic to linear.
        arm_weights: weight of each arm dimension; empty: all 1.

    Returns:
        loss, loss_arm, loss_gripper, gripper_accuracy: scalars; those without a valid entry are 0.
    """
    arm_width, gripper_width = chunk.arm.shape[-1], chunk.gripper_logit.shape[-1]
    expected = (*chunk.arm.shape[:-1], arm_width + gripper_width)
    if target.shape != expected:
        raise ValueError(
            f"target has shape {tuple(target.shape)}; expected {expected}, the chunk's with {arm_width} arm and "
            f"{gripper_width} gripper columns"
        )
    mask = expand_mask(action_valid, chunk.arm)[..., 0]
    arm_target, label, valid = split_labels(target, mask, arm_width, gripper_width)
    arm = torch.where(valid, chunk.arm.float(), 0.0)
    huber = functional.huber_loss(arm, arm_target, reduction="none", delta=huber_delta)
    loss_arm = masked_mean(weigh_columns(huber, arm_weights), valid)
    loss_gripper, accuracy = gripper_losses(chunk.gripper_logit, label, valid)
    return {
        "loss": loss_arm + gripper_weight * loss_gripper,
        "loss_arm": loss_arm,
        "loss_gripper": loss_gripper,
        "gripper_accuracy": accuracy,
    }


def split_labels(
    labels: Float[Tensor, "*batch chunk action"],
    valid: Bool[Tensor, "*mask"],
    arm_width: int,
    gripper_width: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Arm labels (*B, K, A), gripper labels (*B, K, G), both 0 where invalid, and the mask (*B, K, 1).

    Raises:
        ValueError: the labels have other columns, or the mask is not one flag per action.
    """
    if labels.shape[-1] != arm_width + gripper_width:
        raise ValueError(
            f"labels have shape {tuple(labels.shape)}; expected {arm_width + gripper_width} columns, "
            f"{arm_width} arm and {gripper_width} gripper"
        )
    if valid.shape != labels.shape[:-1]:
        raise ValueError(
            f"valid has shape {tuple(valid.shape)}; expected {tuple(labels.shape[:-1])}, a flag per action"
        )
    mask = valid[..., None]
    safe = torch.where(mask, labels.float(), 0.0)
    return safe[..., :arm_width], safe[..., arm_width:], mask


def gripper_losses(logit: Tensor, label: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Mean cross-entropy and accuracy of gripper logits (*B, K, G) over the entries where `valid` (*B, K, 1)."""
    logit = torch.where(valid, logit.float(), 0.0)
    entropy = functional.binary_cross_entropy_with_logits(logit, label, reduction="none")
    correct = (logit.detach() > 0) == (label > 0.5)
    return masked_mean(entropy, valid), masked_mean(correct.float(), valid)


def weigh_columns(values: Float[Tensor, "*batch arm"], arm_weights: Sequence[float]) -> Float[Tensor, "*batch arm"]:
    """Each arm column times its weight; unchanged without weights.

    Raises:
        ValueError: there isn't one weight for each column.
    """
    if not arm_weights:
        return values
    if len(arm_weights) != values.shape[-1]:
        raise ValueError(
            f"--action_head.arm_weights has {len(arm_weights)} entries for {values.shape[-1]} arm columns; give one each"
        )
    return values * values.new_tensor(arm_weights)


def masked_mean(values: Tensor, valid: Tensor) -> Tensor:
    """Mean of `values` over the entries where `valid` (broadcast against them) is True; 0 if there are none.

    It never synchronizes with the device.
    """
    count = valid.expand_as(values).sum().clamp(min=1)
    return torch.where(valid, values, 0.0).sum() / count


def cut_windows(frames: Tensor, window: int) -> Tensor:
    """Views (B, V, W, ...) of all V = S - W + 1 windows in segments (B, S, ...); nothing is copied."""
    return frames.unfold(1, window, 1).movedim(-1, 2)


def expand_mask(action_valid: Tensor | None, arm: Tensor) -> Tensor:
    """The mask as (*B, W, K, 1) for arm predictions (*B, W, K, A); None means all valid; (*B, W) holds one flag per frame."""
    if action_valid is None:
        return torch.ones((*arm.shape[:-1], 1), dtype=torch.bool, device=arm.device)
    if action_valid.shape == arm.shape[:-1]:
        return action_valid[..., None]
    if action_valid.shape == arm.shape[:-2]:
        return action_valid[..., None, None].expand(*arm.shape[:-1], 1)
    raise ValueError(
        f"action_valid has shape {tuple(action_valid.shape)}; expected {tuple(arm.shape[:-1])} for actions "
        f"or {tuple(arm.shape[:-2])} for whole frames"
    )
