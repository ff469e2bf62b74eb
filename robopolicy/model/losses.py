"""What is minimized: masked action losses, and the weighted sum of named terms.

Every mean here is a sum over valid entries divided by their number, so that padding neither counts nor leaks: an empty
mask gives 0, and whatever stands at an invalid place (NaN included) reaches neither the value nor the gradient.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional

from robopolicy.types import Batch, Chunk

DEFAULT_WEIGHTS: Mapping[str, float] = {
    "arm": 1.0,
    "gripper": 0.01,
    "forward": 0.0,
    "caption": 0.05,
    "cotraining": 0.1,
}
"""RoboVLMs' weights, for terms that no config weights; a term that isn't here has no customary weight."""


@dataclass(frozen=True)
class TermInputs:
    """What the providers of loss terms may look at: one training batch on its way through the policy."""

    batch: Batch
    """The batch as the loader gave it, in the demos' own units."""
    targets: Mapping[str, Tensor]
    """Normalized target keys (B, S, d): what the demos know and the policy doesn't see."""
    predictions: Mapping[str, Tensor]
    """What the encoder predicted beside its tokens, (B, S, ...)."""
    pooled: Tensor
    """(B, S, P) pooled frames."""
    hidden: Tensor
    """(B, V, W, H) memory outputs of the V windows, or (B, 1, S, H) of one unrolled segment."""


@runtime_checkable
class TermProvider(Protocol):
    """A part of the model that contributes named loss terms."""

    term_names: Sequence[str]
    """The terms it can give."""

    def terms(self, inputs: TermInputs) -> dict[str, Tensor]:
        """Each of `term_names` as a scalar."""
        ...


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
        huber_delta: where the arm's loss turns from square to linear.
        arm_weights: weight of each arm dimension; empty: all 1.

    Returns:
        loss, loss_arm, loss_gripper, gripper_accuracy: scalars; those without a valid entry are 0.
    """
    arm_target, label, valid = split_target(chunk, target, action_valid)
    arm = torch.where(valid, chunk.arm.float(), 0.0)
    huber = functional.huber_loss(arm, arm_target, reduction="none", delta=huber_delta)
    loss_arm = masked_mean(weigh_columns(huber, arm_weights), valid)
    loss_gripper, accuracy = gripper_terms(chunk, label, valid)
    return {
        "loss": loss_arm + gripper_weight * loss_gripper,
        "loss_arm": loss_arm,
        "loss_gripper": loss_gripper,
        "gripper_accuracy": accuracy,
    }


def split_target(chunk: Chunk, target: Tensor, action_valid: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Arm target, gripper label, both 0 where invalid, and the mask (*B, W, K, 1) that says where."""
    arm_width, gripper_width = chunk.arm.shape[-1], chunk.gripper_logit.shape[-1]
    if target.shape != (*chunk.arm.shape[:-1], arm_width + gripper_width):
        raise ValueError(
            f"target has shape {tuple(target.shape)}; expected {(*chunk.arm.shape[:-1], arm_width + gripper_width)}, "
            f"the chunk's with {arm_width} arm and {gripper_width} gripper columns"
        )
    valid = _expand_mask(action_valid, chunk.arm)
    safe = torch.where(valid, target.float(), 0.0)
    return safe[..., :arm_width], safe[..., arm_width:], valid


def gripper_terms(chunk: Chunk, label: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Mean cross-entropy and accuracy of the gripper over its valid entries."""
    return gripper_losses(chunk.gripper_logit, label, valid)


def split_labels(
    labels: Float[Tensor, "*batch chunk action"],
    valid: Bool[Tensor, "..."],
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
    """Each arm column times its weight; as they are where there are no weights.

    Raises:
        ValueError: there isn't one weight for each column.
    """
    if not arm_weights:
        return values
    if len(arm_weights) != values.shape[-1]:
        raise ValueError(
            f"--loss.arm_weights has {len(arm_weights)} entries for {values.shape[-1]} arm columns; give one each, or none"
        )
    return values * values.new_tensor(arm_weights)


def masked_mean(values: Tensor, valid: Tensor) -> Tensor:
    """Mean of `values` over the entries where `valid` (broadcast against them) holds; 0 if there is none.

    Nothing waits for the device.
    """
    count = valid.expand_as(values).sum().clamp(min=1)
    return torch.where(valid, values, 0.0).sum() / count


def weighted_sum(terms: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """The sum of the named terms, each times its weight.

    Raises:
        ValueError: a weight names a term that isn't there, or nothing is weighted.
    """
    require_terms(weights, terms)
    if not weights:
        raise ValueError(f"no loss term has a weight; weight one or more of: {', '.join(sorted(terms))}")
    return torch.stack([weight * terms[name] for name, weight in weights.items()]).sum()


def customary_weights(names: Iterable[str], given: Mapping[str, float]) -> dict[str, float]:
    """The weight of each named term that none is given for, as RoboVLMs has it.

    Raises:
        ValueError: there is no customary weight.
    """
    unweighted = [name for name in names if name not in given]
    unknown = [name for name in unweighted if name not in DEFAULT_WEIGHTS]
    if unknown:
        raise ValueError(
            f"loss term {', '.join(map(repr, unknown))} has no weight, and no customary one as "
            f"{', '.join(DEFAULT_WEIGHTS)} have; give it one in --loss.terms"
        )
    return {name: DEFAULT_WEIGHTS[name] for name in unweighted}


def require_terms(wanted: Iterable[str], available: Iterable[str]) -> None:
    """Refuse weights of terms that no part of the model provides, and list those that there are."""
    known = sorted(available)
    missing = [name for name in wanted if name not in known]
    if missing:
        raise ValueError(
            f"loss term {', '.join(map(repr, missing))} is provided by no part of this model. "
            f"Available: {', '.join(known)}; drop it from --loss.terms or add what provides it"
        )


class ForwardPrediction(nn.Module):
    """The term `forward`: the memory predicts the next pooled frame, so that it keeps what matters later."""

    term_names = ("forward",)

    def __init__(self, hidden: int, pooled: int) -> None:
        super().__init__()
        self.predict = nn.Linear(hidden, pooled)

    def terms(self, inputs: TermInputs) -> dict[str, Tensor]:
        """Mean squared error of the next frame's pooled vector, itself not moved, over the real next frames.

        Raises:
            ValueError: windows of one frame hold no next one.
        """
        span = inputs.hidden.shape[2]
        if span < 2:
            raise ValueError("loss term 'forward' needs two frames that are remembered together; --head.window is 1")
        predicted = self.predict(inputs.hidden[:, :, :-1])
        following = cut_windows(inputs.pooled.detach(), span)[:, :, 1:]
        valid = cut_windows(torch.as_tensor(inputs.batch.frame_valid, device=predicted.device), span)[:, :, 1:, None]
        error = torch.where(valid, predicted.float() - following.float(), 0.0).square()
        return {"forward": masked_mean(error, valid)}


class TargetPrediction(nn.Module):
    """The term `remember`: the memory tells the target keys at every frame, also when nothing shows them any more."""

    term_names = ("remember",)

    def __init__(self, hidden: int, target_widths: Mapping[str, int]) -> None:
        super().__init__()
        if not target_widths:
            raise ValueError("loss term 'remember' predicts target keys; give --data.target_keys, such as target_pos")
        self.keys = tuple(target_widths)
        self.predict = nn.Linear(hidden, sum(target_widths.values()))

    def terms(self, inputs: TermInputs) -> dict[str, Tensor]:
        """Mean squared error of the target keys, normalized, over the real frames."""
        span = inputs.hidden.shape[2]
        predicted = self.predict(inputs.hidden).float()
        target = cut_windows(joined_targets(inputs, self.keys, "remember"), span)
        valid = cut_windows(torch.as_tensor(inputs.batch.frame_valid, device=predicted.device), span)[..., None]
        return {"remember": masked_mean((predicted - torch.where(valid, target, 0.0)).square(), valid)}


class LinearPolicy(nn.Module):
    """The term `choose`: a linear policy on the values that the encoder chose by the instruction.

    It is too small to learn the demos' scenes by heart, so that its gradient keeps telling which of several alike objects
    the demonstrated actions follow, where that of the policy proper soon tells nothing. It begins at zero: what it then
    follows first it follows the right way round.
    """

    term_names = ("choose",)

    def __init__(self, chosen: int, arm: int) -> None:
        super().__init__()
        self.act = nn.Linear(chosen, arm)
        nn.init.zeros_(self.act.weight)

    def terms(self, inputs: TermInputs) -> dict[str, Tensor]:
        """Mean squared error of the present action's arm columns, in [-1, 1], over the valid ones."""
        predicted = self.act(inputs.predictions["chosen"]).float()
        target = torch.as_tensor(inputs.batch.target, device=predicted.device)[..., 0, : predicted.shape[-1]]
        valid = torch.as_tensor(inputs.batch.action_valid, device=predicted.device)[..., :1]
        return {"choose": masked_mean((predicted - torch.where(valid, target, 0.0)).square(), valid)}


def joined_targets(inputs: TermInputs, keys: Iterable[str], term: str) -> Tensor:
    """The target keys that a term predicts, normalized and side by side, (B, S, d).

    Raises:
        ValueError: the demos don't carry one of them.
    """
    missing = [key for key in keys if key not in inputs.targets]
    if missing:
        raise ValueError(
            f"loss term {term!r} needs the target key {', '.join(map(repr, missing))}, which these demos don't carry. "
            f"They have: {', '.join(inputs.batch.obs)}; drop the term from --loss.terms or the key from --data.target_keys"
        )
    return torch.cat([inputs.targets[key] for key in keys], dim=-1)


def cut_windows(frames: Tensor, window: int) -> Tensor:
    """Views (B, V, W, ...) of all V = S - W + 1 windows in segments (B, S, ...); nothing is copied."""
    return frames.unfold(1, window, 1).movedim(-1, 2)


def _expand_mask(action_valid: Tensor | None, arm: Tensor) -> Tensor:
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
