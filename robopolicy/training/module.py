"""The Lightning module that trains a policy: training step, optimizer, schedule and averaged weights."""

import copy
import math
import re
import time
from collections.abc import Callable, Iterable
from itertools import compress
from typing import Any, TypeVar

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, distributed, nn

from robopolicy.experiment.config import OptimizerConfig
from robopolicy.model.streaming import MemoryState
from robopolicy.training.objective import Tally

_Module = TypeVar("_Module", bound=nn.Module)
_GROUP = re.compile(r"^0\.members\.[^.]+\.")
"""Prefix of parameter names when `data.groups` is set; replaced by `0.`, the prefix used otherwise."""


class Schedule:
    """Training progress, by steps or by time, whichever is further, and the learning rate at that progress.

    A cosine decay from 1 to `min_lr_scale` over the whole training, multiplied by a linear warm-up. With `max_minutes`, the
    cosine follows the time if the time limit will be reached before the last step, so that training always ends at the
    lowest learning rate.
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
        """Start the clock; `earlier_s` is the training time [s] of the run before it was interrupted."""
        self._earlier_s = self._earlier_s if earlier_s is None else earlier_s
        self._since = time.monotonic()

    @property
    def elapsed_s(self) -> float:
        """Training time of this run [s], including the time before interruptions."""
        return self._earlier_s + (0.0 if self._since is None else time.monotonic() - self._since)

    def progress(self, step: int) -> float:
        """Fraction of the training done, 0 .. 1."""
        return min(1.0, max(step / self.max_steps, self.elapsed_s / self.limit_s))

    def lr_scale(self, step: int, progress: float) -> float:
        """Learning rate relative to its peak for optimizer step `step` (0 is the first)."""
        warmup = min(1.0, (step + 1) / self.warmup_steps) if self.warmup_steps else 1.0
        cosine = 0.5 * (1 + math.cos(math.pi * progress))
        return warmup * (self.min_lr_scale + (1 - self.min_lr_scale) * cosine)


class PolicyTraining(LightningModule):
    """Trains a `ChunkPolicy` on batches of segments; `evaluated` is the policy to evaluate and save.

    Args:
        policy: the policy to train: a `ChunkPolicy`, or `GroupPolicies` (`robopolicy.training.groups`).
        objective: computes the policy's losses: an `Objective`, or a `GroupObjective`.
        schedule: the learning rate, and when training ends.
        optimizer: settings of AdamW; with `ema`, a moving average of the weights is evaluated and saved.
        augmentation: random changes of a training batch, on its device; None: no changes.
    """

    def __init__(
        self,
        policy: nn.Module,
        objective: nn.Module,
        schedule: Schedule,
        optimizer: OptimizerConfig,
        augmentation: Callable[[Any], Any] | None = None,
    ) -> None:
        super().__init__()
        # The objective is trained too: auxiliary losses have parameters of their own.
        self.trained = nn.ModuleList([policy, objective])
        self.averaged = copy_sharing_frozen(self.trained).requires_grad_(False) if optimizer.ema else None
        self.schedule, self.settings, self.augmentation = schedule, optimizer, augmentation
        self.tally = Tally()
        self.carried: MemoryState | None = None
        """Memory state after the latest batch, from which the next batch continues; None unless `history: carry`."""
        learned = [parameter.requires_grad for parameter in self.trained.parameters()]
        self._parameters_trained = list(compress(self.trained.parameters(), learned))
        self._averages = [] if self.averaged is None else list(compress(self.averaged.parameters(), learned))

    @property
    def policy(self) -> Any:
        """The policy with the weights that the optimizer updates (not the averaged ones)."""
        return self.trained[0]

    @property
    def objective(self) -> Any:
        """The objective with the weights that the optimizer updates (not the averaged ones)."""
        return self.trained[1]

    @property
    def evaluated(self) -> Any:
        """The averaged policy, with the current buffers of the trained one; the trained policy if averaging is off."""
        if self.averaged is None:
            return self.policy
        for kept, buffer in zip(self.averaged.buffers(), self.trained.buffers(), strict=True):
            kept.copy_(buffer)
        return self.averaged[0]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW over `parameter_groups`, fused into one kernel."""
        return torch.optim.AdamW(parameter_groups(self.trained, self.settings), betas=self.settings.betas, fused=True)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """The loss of one batch."""
        batch = self.augmented(batch)
        terms, self.carried = self.objective(self.policy, batch, self.carried)
        count = self.objective.count(batch)
        self.tally.add(terms, count)
        return terms["loss"] * share_of_all(count)

    def augmented(self, batch: Any) -> Any:
        """The batch after augmentation, if the config has any."""
        return batch if self.augmentation is None else self.augmentation(batch)

    def optimizer_step(
        self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Callable[[], Any] | None = None
    ) -> None:
        """One optimizer step at the scheduled learning rate, then an update of the averaged weights."""
        step = self.trainer.global_step
        scale = self.schedule.lr_scale(step, self.progress())
        for group in optimizer.param_groups:
            group["lr"] = scale * group["peak_lr"] if step >= group["freeze_steps"] else 0.0
        optimizer.step(closure=optimizer_closure)
        self.average(step)

    @torch.no_grad()
    def average(self, step: int) -> None:
        """Update the moving average of the weights, if there is one, after optimizer step `step`."""
        if self._averages:
            # The decay grows from 0.1 to 0.999, so that the random initial weights are soon forgotten.
            decay = min(0.999, (1 + step) / (10 + step))
            torch._foreach_lerp_(self._averages, self._parameters_trained, 1 - decay)  # pyright: ignore

    def progress(self) -> float:
        """Fraction of the training done, 0 .. 1; with a time limit, that of the first process, since clocks differ."""
        share = self.schedule.progress(self.trainer.global_step)
        return self.from_first(share) if math.isfinite(self.schedule.limit_s) else share

    def from_first(self, value: float) -> float:
        """The value in the first process, so that all processes make the same decision."""
        if not distributed.is_initialized():
            return value
        agreed = torch.tensor(value, dtype=torch.float64, device=self.device)
        distributed.broadcast(agreed, src=0)
        return float(agreed)

    def configure_gradient_clipping(self, optimizer: Any, *_: Any, **__: Any) -> None:
        """Clip the gradient's norm over all trained parameters, without synchronizing with the device."""
        nn.utils.clip_grad_norm_(self._parameters_trained, self.settings.clip_norm)

    @torch.no_grad()
    def validate(self, batches: Iterable[Any]) -> dict[str, float]:
        """`loss` and its terms for the evaluated policy over the validation batches; empty if there are no batches."""
        policy: nn.Module = self.evaluated
        objective: Any = (self.trained if self.averaged is None else self.averaged)[1]
        was_training = policy.training
        policy.eval()
        terms = objective.measure(policy, batches)
        policy.train(was_training)
        return terms


def parameter_groups(trained: nn.ModuleList, settings: OptimizerConfig) -> list[dict[str, Any]]:
    """Trained parameters of [policy, objective], grouped by peak learning rate, weight decay and `freeze_steps`.

    The encoder's backbone, or the whole encoder if it has none, has its own learning rate, and the memory may have its own
    weight decay. Biases, norms and other one-dimensional parameters have no weight decay. The parameters of a module with
    an attribute `freeze_steps` do not change for that number of optimizer steps.
    """
    frozen = {
        id(parameter): int(getattr(module, "freeze_steps", 0))
        for module in trained.modules()
        if hasattr(module, "freeze_steps")
        for parameter in module.parameters()
    }
    groups: dict[tuple[float, float, int], list[nn.Parameter]] = {}
    names = [_GROUP.sub("0.", name) for name, _ in trained.named_parameters()]
    own = "0.encoder.backbone." if any(name.startswith("0.encoder.backbone.") for name in names) else "0.encoder."
    for name, parameter in zip(names, trained.parameters(), strict=True):
        if not parameter.requires_grad:
            continue
        peak = settings.lr * (settings.encoder_lr_scale if name.startswith(own) else 1.0)
        decay = settings.weight_decay
        if name.startswith("0.head.memory.") and settings.memory_weight_decay is not None:
            decay = settings.memory_weight_decay
        key = (peak, decay if parameter.ndim > 1 else 0.0, frozen.get(id(parameter), 0))
        groups.setdefault(key, []).append(parameter)
    return [
        {"params": members, "peak_lr": peak, "lr": peak, "weight_decay": decay, "freeze_steps": first}
        for (peak, decay, first), members in groups.items()
    ]


def share_of_all(count: Tensor) -> Tensor | float:
    """Weight of this process's mean loss, such that averaging over processes gives the mean over all valid actions.

    Processes have different counts of valid actions, while distributed training averages their gradients equally.
    """
    if not distributed.is_initialized():
        return 1.0
    total = count.clone()
    distributed.all_reduce(total)
    return count * distributed.get_world_size() / total.clamp(min=1)


def copy_sharing_frozen(module: _Module) -> _Module:
    """A copy that shares the frozen parameters, which never change, with the original."""
    return copy.deepcopy(module, {id(part): part for part in module.parameters() if not part.requires_grad})
