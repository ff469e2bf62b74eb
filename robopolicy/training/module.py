"""One policy under training: steps, optimizer, schedule and averaged weights; no model code."""

import copy
import math
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, distributed, nn

from robopolicy.model.policy import ChunkPolicy
from robopolicy.model.streaming import MemoryState
from robopolicy.types import Batch


class Schedule:
    """How far training has come, by steps or by the clock, whichever is further, and the learning rate there.

    Linear warm-up, then a cosine from 1 down to `min_lr_scale`. With `max_minutes`, the cosine follows the clock where
    time would run out before the steps do, so that training always ends at the lowest rate.
    """

    def __init__(
        self, max_steps: int, warmup_steps: int = 0, min_lr_scale: float = 0.0, max_minutes: float | None = None
    ) -> None:
        self.max_steps = max_steps
        self.warmup_steps = warmup_steps
        self.min_lr_scale = min_lr_scale
        self.limit_s = math.inf if max_minutes is None else 60 * max_minutes
        self._earlier_s = 0.0
        self._since: float | None = None

    def start(self, earlier_s: float | None = None) -> None:
        """Start the clock; `earlier_s` is the time [s] that the run took before it was interrupted."""
        self._earlier_s = self._earlier_s if earlier_s is None else earlier_s
        self._since = time.monotonic()

    @property
    def elapsed_s(self) -> float:
        """Time this run has taken [s], before interruptions included."""
        return self._earlier_s + (0.0 if self._since is None else time.monotonic() - self._since)

    def progress(self, step: int) -> float:
        """Share of the training done, 0 .. 1."""
        return min(1.0, max(step / self.max_steps, self.elapsed_s / self.limit_s))

    def lr_scale(self, step: int, progress: float) -> float:
        """Learning rate relative to its peak for optimizer step `step` (0 is the first)."""
        warmup = min(1.0, (step + 1) / self.warmup_steps) if self.warmup_steps else 1.0
        cosine = 0.5 * (1 + math.cos(math.pi * progress))
        return warmup * (self.min_lr_scale + (1 - self.min_lr_scale) * cosine)


class Tally:
    """Means of named terms over many batches, each weighted by its valid actions; nothing waits for the device."""

    def __init__(self) -> None:
        self._names: tuple[str, ...] = ()
        self._sums: Tensor | None = None

    def add(self, terms: Mapping[str, Tensor], count: Tensor) -> None:
        """Count a batch of `count` valid actions."""
        self._names = tuple(terms)
        values = (
            torch.stack([*(term.detach().float() for term in terms.values()), torch.ones_like(count).float()]) * count
        )
        self._sums = values if self._sums is None else self._sums + values

    def take(self) -> dict[str, float]:
        """The means so far, over all processes, as numbers; begins anew. Empty where nothing was added."""
        if self._sums is None:
            return {}
        sums, self._sums = self._sums, None
        if distributed.is_initialized():
            distributed.all_reduce(sums)
        *totals, count = sums.tolist()
        return {name: total / max(count, 1.0) for name, total in zip(self._names, totals, strict=True)}


class PolicyTraining(LightningModule):
    """Trains a `ChunkPolicy` on batches of segments; `evaluated` is the policy to be measured and kept.

    Args:
        policy: what is trained.
        schedule: learning rate over time, and when training ends.
        lr: peak learning rate of everything but the encoder.
        encoder_lr_scale: the encoder's learning rate relative to `lr`.
        betas: AdamW's moment decays.
        weight_decay: AdamW's decay of matrices; norms, biases and embeddings of one axis are spared.
        clip_norm: largest norm of the gradient.
        ema: average the weights with decay min(0.999, (1 + n) / (10 + n)) and evaluate the average.
        augmentation: changes a training batch on its device.
    """

    def __init__(
        self,
        policy: ChunkPolicy,
        schedule: Schedule,
        *,
        lr: float,
        encoder_lr_scale: float = 1.0,
        betas: tuple[float, float] = (0.9, 0.95),
        weight_decay: float = 0.0,
        clip_norm: float = 1.0,
        ema: bool = True,
        augmentation: Callable[[Batch], Batch] | None = None,
    ) -> None:
        super().__init__()
        self.policy = policy
        self.averaged = copy_sharing_frozen(policy) if ema else None
        self.schedule = schedule
        self.lr, self.encoder_lr_scale, self.betas, self.weight_decay = lr, encoder_lr_scale, betas, weight_decay
        self.clip_norm = clip_norm
        self.augmentation = augmentation
        self.tally = Tally()
        self.carried: MemoryState | None = None
        self._trained: list[Tensor] = [parameter for parameter in policy.parameters() if parameter.requires_grad]
        self._averages = [] if self.averaged is None else _matching(policy, self.averaged)

    @property
    def evaluated(self) -> ChunkPolicy:
        """The averaged policy with the trained one's present buffers, or the trained one where averaging is off."""
        if self.averaged is None:
            return self.policy
        for kept, buffer in zip(self.averaged.buffers(), self.policy.buffers(), strict=True):
            kept.copy_(buffer)
        return self.averaged

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW over `parameter_groups`, fused into one kernel."""
        groups = parameter_groups(self.policy, self.lr, self.encoder_lr_scale, self.weight_decay)
        return torch.optim.AdamW(groups, betas=self.betas, fused=True)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The loss of one batch."""
        batch = batch if self.augmentation is None else self.augmentation(batch)
        terms, self.carried = segment_losses(self.policy, batch, self.carried)
        count = batch.action_valid.sum()
        self.tally.add(terms, count)
        return terms["loss"] * share_of_all(count)

    def optimizer_step(
        self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Callable[[], Any] | None = None
    ) -> None:
        """One step at the scheduled rate, then the average moves."""
        step = self.trainer.global_step
        scale = self.schedule.lr_scale(step, self.progress())
        for group in optimizer.param_groups:
            group["lr"] = scale * group["peak_lr"] if step >= group["learns_after"] else 0.0
        optimizer.step(closure=optimizer_closure)
        if self._averages:
            decay = min(0.999, (1 + step) / (10 + step))
            with torch.no_grad():
                torch._foreach_lerp_(self._averages, self._trained, 1 - decay)  # pyright: ignore

    def progress(self) -> float:
        """Share of the training done, 0 .. 1; where the clock decides, that of the first process."""
        share = self.schedule.progress(self.trainer.global_step)
        return self.from_first(share) if math.isfinite(self.schedule.limit_s) else share

    def from_first(self, value: float) -> float:
        """A number as the first process has it, so that all processes decide alike."""
        if not distributed.is_initialized():
            return value
        agreed = torch.tensor(value, dtype=torch.float64, device=self.device)
        distributed.broadcast(agreed, src=0)
        return float(agreed)

    def configure_gradient_clipping(self, optimizer: Any, *_: Any, **__: Any) -> None:
        """Clip the gradient's norm over all trained parameters; nothing waits for the device."""
        nn.utils.clip_grad_norm_(self._trained, self.clip_norm)

    @torch.no_grad()
    def validate(self, batches: Iterable[Batch]) -> dict[str, float]:
        """`loss` and its terms of the evaluated policy over held-out batches; empty where there are none."""
        policy, tally, state = self.evaluated, Tally(), None
        was_training = policy.training
        policy.eval()
        for batch in batches:
            terms, state = segment_losses(policy, batch, state)
            tally.add(terms, batch.action_valid.sum())
        policy.train(was_training)
        return tally.take()


def segment_losses(
    policy: ChunkPolicy, batch: Batch, carried: MemoryState | None
) -> tuple[dict[str, Tensor], MemoryState | None]:
    """`loss` and its terms; with `history: carry` also the state for the next segments of the same episodes.

    Truncated back-propagation through time: the state goes on from batch to batch without its gradient, and begins
    anew where `episode_start` says so.
    """
    if policy.config.head.history != "carry":
        return policy.losses(batch), None
    count = len(batch.instruction_id)
    state = carried if carried is not None and carried.batch_shape == (count,) else policy.initial_state(count)
    if batch.episode_start is not None:
        state = state.reset(batch.episode_start)
    terms, after = policy.unroll_losses(batch, state)
    return terms, None if after is None else after.detach()


def parameter_groups(
    policy: nn.Module, lr: float, encoder_lr_scale: float = 1.0, weight_decay: float = 0.0
) -> list[dict[str, Any]]:
    """Trained parameters by peak learning rate, decay and first step.

    `encoder.*` has a rate of its own, there is no decay where there is one axis only, and the parameters of a module with
    an attribute `learns_after` stay as they are for so many optimizer steps.
    """
    late = {
        id(parameter): int(getattr(module, "learns_after", 0))
        for module in policy.modules()
        if hasattr(module, "learns_after")
        for parameter in module.parameters()
    }
    groups: dict[tuple[float, float, int], list[nn.Parameter]] = {}
    for name, parameter in policy.named_parameters():
        if parameter.requires_grad:
            peak = lr * encoder_lr_scale if name.startswith("encoder.") else lr
            decay = weight_decay if parameter.ndim > 1 else 0.0
            groups.setdefault((peak, decay, late.get(id(parameter), 0)), []).append(parameter)
    return [
        {"params": members, "peak_lr": peak, "lr": peak, "weight_decay": decay, "learns_after": first}
        for (peak, decay, first), members in groups.items()
    ]


def share_of_all(count: Tensor) -> Tensor | float:
    """By what a process's mean loss is weighted so that the mean over processes is that over all valid actions."""
    if not distributed.is_initialized():
        return 1.0
    total = count.clone()
    distributed.all_reduce(total)
    return count * distributed.get_world_size() / total.clamp(min=1)


def copy_sharing_frozen(policy: ChunkPolicy) -> ChunkPolicy:
    """A copy for the averaged weights; parameters that are not trained are shared, since they never differ."""
    frozen = {id(parameter): parameter for parameter in policy.parameters() if not parameter.requires_grad}
    return copy.deepcopy(policy, memo=dict(frozen)).requires_grad_(False)


def _matching(policy: nn.Module, averaged: nn.Module) -> list[Tensor]:
    pairs = zip(policy.parameters(), averaged.parameters(), strict=True)
    return [average for parameter, average in pairs if parameter.requires_grad]
