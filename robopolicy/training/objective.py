"""The training objective: weighted losses of the action head and auxiliary losses; it is not saved with the policy."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, distributed, nn

from robopolicy.components import ConfigError, build, component, options_from, require
from robopolicy.model.inputs import checked_inputs
from robopolicy.model.losses import cut_windows
from robopolicy.model.normalization import KeyScaling
from robopolicy.model.policy import ChunkPolicy
from robopolicy.model.streaming import MemoryState
from robopolicy.training.losses import LossContext, LossInputs
from robopolicy.types import TOKEN_VALID_KEY, TOKENS_KEY, ArraySpec, Batch


class Tally:
    """Means of named terms over many batches, each weighted by its valid actions; does not synchronize with the device."""

    def __init__(self) -> None:
        self._names: tuple[str, ...] = ()
        self._sums: Tensor | None = None

    def add(self, terms: Mapping[str, Tensor], count: Tensor) -> None:
        """Add the terms of a batch with `count` valid actions."""
        self._names = tuple(terms)
        values = (
            torch.stack([*(term.detach().float() for term in terms.values()), torch.ones_like(count).float()]) * count
        )
        self._sums = values if self._sums is None else self._sums + values

    def take(self) -> dict[str, float]:
        """Return the means so far, over all processes, and begin again; empty if nothing was added."""
        if self._sums is None:
            return {}
        sums, self._sums = self._sums, None
        if distributed.is_initialized():
            distributed.all_reduce(sums)
        *totals, count = sums.tolist()
        return {name: total / max(count, 1.0) for name, total in zip(self._names, totals, strict=True)}


class Objective(nn.Module):
    """The weighted sum of named losses of a policy on a batch of segments.

    Args:
        losses: loss -> weight, or for an auxiliary loss its weight and options; `ExperimentConfig.losses`.
        policy: the policy to train; not stored, so that an averaged copy can be measured by the same objective.
        privileged: scaling of the keys that only losses use; None: there are none.

    Raises:
        ConfigError: the action head and the family `loss` both lack a loss, its options are refused, or no loss is given.
    """

    def __init__(
        self,
        losses: Mapping[str, Any],
        policy: ChunkPolicy,
        privileged: KeyScaling | None = None,
    ) -> None:
        super().__init__()
        self.privileged = KeyScaling({}, None) if privileged is None else privileged
        head = policy.head
        context = LossContext(
            pooled_width=head.pooled_width,
            hidden_width=head.memory.output_width,
            arm_width=policy.action_normalizer.learned_spec.arm_width,
            predictions=policy.encoder.prediction_widths,
            privileged={key: spec.width for key, spec in self.privileged.scaled_specs.items()},
        )
        self.weights: dict[str, float] = {}
        # A list, since a ModuleDict can't hold names such as `forward` or those with dots.
        self.auxiliary, self.auxiliary_names = nn.ModuleList(), list[str]()
        for name, value in losses.items():
            options = dict(value) if isinstance(value, Mapping) else {"weight": value}
            weight = float(options.pop("weight"))
            if name in head.action_head.loss_names:
                require(not options, f"--losses.{name} takes a weight only; its options belong to --action_head")
            else:
                _check_auxiliary(name, head.action_head.loss_names)
                if not weight:  # lets the command line switch off a loss of the config file
                    continue
                self.auxiliary.append(build(options_from("loss", name, options), context))
                self.auxiliary_names.append(name)
            self.weights[name] = weight
        require(self.weights, f"no loss; give a weight to one or more of: {', '.join(head.action_head.loss_names)}")

    def forward(
        self, policy: ChunkPolicy, batch: Batch, state: MemoryState | None = None
    ) -> tuple[dict[str, Tensor], MemoryState | None]:
        """The weighted sum `loss`, each loss as `loss_<name>`, the action head's metrics, and the memory state after the batch.

        Each frame is encoded and pooled once; all S - W + 1 windows of a segment are then cut from the pooled frames. A
        carried memory is unrolled over the segment from `state`, which is first reset where `batch.episode_start` is True; no
        gradient flows into earlier segments.
        """
        head = policy.head
        obs = checked_inputs(batch.obs, _as_stored(policy, batch), policy.device)
        encoding = policy.encode(obs, batch_text(policy, batch))
        pooled = head.pool(encoding.tokens, encoding.token_valid)
        if head.history == "carry":
            hidden, after = head.memory.unroll(pooled, _start(policy, batch, state))
            hidden, state = hidden[:, None], after.detach()
        elif pooled.shape[1] < head.window:
            raise ValueError(f"segments must hold a window of {head.window} frames, got {pooled.shape[1]}")
        else:
            hidden, state = head.memory(cut_windows(pooled, head.window)), None
        window = hidden.shape[2]
        labels = cut_windows(torch.as_tensor(batch.target, device=policy.device), window)
        valid = cut_windows(torch.as_tensor(batch.action_valid, device=policy.device), window)
        figures = dict(head.action_head.losses(hidden, labels, valid))
        metrics = {name: figures.pop(name) for name in [*figures] if name not in head.action_head.loss_names}
        present = {key: spec for key, spec in self.privileged.specs.items() if key in batch.obs}
        privileged = self.privileged(checked_inputs(batch.obs, present, policy.device))
        inputs = LossInputs(batch, privileged, encoding.predictions, pooled, hidden)
        figures |= {name: loss(inputs) for name, loss in zip(self.auxiliary_names, self.auxiliary, strict=True)}
        total = torch.stack([weight * figures[name] for name, weight in self.weights.items()]).sum()
        return {"loss": total, **{f"loss_{name}": value for name, value in figures.items()}, **metrics}, state

    def count(self, batch: Batch) -> Tensor:
        """Valid actions of a batch."""
        return torch.as_tensor(batch.action_valid).sum()

    def measure(self, policy: ChunkPolicy, batches: Iterable[Batch]) -> dict[str, float]:
        """Means of `loss` and its terms over consecutive batches; empty if there are no batches."""
        tally, state = Tally(), None
        for batch in batches:
            terms, state = self(policy, batch, state)
            tally.add(terms, self.count(batch))
        return tally.take()


def _check_auxiliary(name: str, own: tuple[str, ...]) -> None:
    """Refuse a loss that does not exist; `own` are the names of the action head's losses, which the message lists too."""
    try:
        component("loss", name)
    except ConfigError as error:
        raise ConfigError(f"--losses.{name}: {error}; the action head's own are {', '.join(own)}") from None


def batch_text(policy: ChunkPolicy, batch: Batch) -> Tensor | None:
    """The text model's input for each segment, (B, 1, ...); None for an unconditioned policy."""
    if policy.text is None:
        return None
    # One more entry, so that -1 (a segment without an instruction) picks None.
    prepared = policy.prepared((*batch.instructions, None))
    return prepared[torch.as_tensor(batch.instruction_id, device=policy.device)][:, None]


def _start(policy: ChunkPolicy, batch: Batch, state: MemoryState | None) -> MemoryState:
    """The memory state before the batch: the state after the previous batch, reset where an episode begins."""
    count = len(batch.instruction_id)
    if state is None or state.batch_shape != (count,):
        state = policy.initial_state(count)
    return state if batch.episode_start is None else state.reset(batch.episode_start)


def _as_stored(policy: ChunkPolicy, batch: Batch) -> Mapping[str, ArraySpec]:
    """The specs of the keys in the batch: tokens pooled ahead of time are fewer and, being all valid, have no mask."""
    tokens, obs = batch.obs.get(TOKENS_KEY), policy.obs
    if tokens is None or TOKENS_KEY not in obs or tokens.shape[-2] == obs[TOKENS_KEY].shape[0]:
        return obs
    kept = {key: spec for key, spec in obs.items() if key != TOKEN_VALID_KEY}
    return {**kept, TOKENS_KEY: ArraySpec((tokens.shape[-2], obs[TOKENS_KEY].shape[1]))}
