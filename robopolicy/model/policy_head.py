"""The policy head: pooling, memory and action head, from tokens to chunks of arm and gripper actions."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from robopolicy.components import build, component
from robopolicy.model import packed
from robopolicy.model.losses import expand_mask
from robopolicy.model.packed import Precision
from robopolicy.model.streaming import History, MemoryState
from robopolicy.types import ActionSpec, Chunk, Prefix

ROBOVLMS_SIZES: Mapping[str, Any] = {"layers": 4, "hidden": 1024, "widths": (1024, 512, 256)}
"""Sizes of RoboVLMs' published head, used for parts that are given by kind, if they have these options."""


class PolicyHead(nn.Module):
    """Pools each frame's tokens, runs the memory over frames, and predicts the next K actions at every frame.

    In training, `head(tokens)` runs a window from a zero state. On the robot, `head.step(tokens, state)` gives the same
    outputs for the newest frame from a state that the caller holds.

    Args:
        token_width: D, the width of one token.
        action: which action columns belong to the arm, and which are binary gripper columns.
        window: W, frames of memory; None: the memory's default.
        chunk: K, actions predicted per frame; None: the action head's default.
        pooling: kind, or options of a pooling.
        memory: kind, or options of a memory.
        action_head: kind, or options of an action head.
        options: options of those parts that are given by kind, such as `layers=2, hidden=400, latent=4, modes=5`; sizes that
            are not given come from `ROBOVLMS_SIZES`. A memory given by kind is `latent * hidden` wide, as in RoboVLMs.

    Raises:
        ConfigError: a kind is unknown.
        TypeError: no part has an option of that name.
    """

    def __init__(
        self,
        token_width: int,
        action: ActionSpec,
        window: int | None = None,
        chunk: int | None = None,
        *,
        pooling: Any = "max",
        memory: Any = "lstm",
        action_head: Any = "regression",
        **options: Any,
    ) -> None:
        super().__init__()
        given = {**options, "window": window, "chunk": chunk}
        given = {name: value for name, value in given.items() if value is not None}
        parts = {"pooling": pooling, "memory": memory, "action_head": action_head}
        chosen = {family: _options(family, choice, given) for family, choice in parts.items()}
        known = {field.name for part in chosen.values() for field in fields(part)}
        if unknown := sorted(given.keys() - known - {"window"}):
            raise TypeError(
                f"PolicyHead got an unknown option {unknown[0]!r}; these parts have: {', '.join(sorted(known))}"
            )
        if isinstance(memory, str) and "hidden" in known:
            latent = getattr(chosen["pooling"], "latent", 1)
            chosen["memory"] = replace(chosen["memory"], hidden=chosen["memory"].hidden * latent)
        self.token_width, self.options = token_width, chosen
        """D, and the options of pooling, memory and action head."""
        self.chunk = chosen["action_head"].chunk
        self.pooling: Any = build(chosen["pooling"], token_width)
        self.pooled_width: int = self.pooling.output_width
        self.memory: Any = build(chosen["memory"], self.pooled_width)
        self.window: int = self.memory.window
        self.history: History = self.memory.history
        self.action_head: Any = build(chosen["action_head"], self.memory.output_width, action)

    def forward(
        self,
        tokens: Float[Tensor, "*batch window tokens width"],
        token_valid: Bool[Tensor, "*batch window tokens"] | None = None,
    ) -> Chunk:
        """The chunk at every frame of a window, from a zero state: arm (*B, W, K, A), gripper_logit (*B, W, K, G)."""
        hidden = self.memory(self.pool(tokens, token_valid))
        return replace(self.action_head.decode(hidden), hidden=hidden)

    def pool(
        self, tokens: Float[Tensor, "*batch tokens width"], token_valid: Bool[Tensor, "*batch tokens"] | None = None
    ) -> Float[Tensor, "*batch pooled"]:
        """Each frame's tokens -> one vector; a frame that several windows share is pooled once.

        Raises:
            ValueError: there are no tokens, their width is not the head's, or `token_valid` doesn't have one flag per token.
        """
        if tokens.shape[-1] != self.token_width or not tokens.shape[-2]:
            raise ValueError(
                f"tokens must have shape (..., N, {self.token_width}) with N >= 1, got {tuple(tokens.shape)}"
            )
        if token_valid is not None and token_valid.shape != tokens.shape[:-1]:
            raise ValueError(
                f"token_valid must have shape {tuple(tokens.shape[:-1])}, a flag per token, got {tuple(token_valid.shape)}"
            )
        return self.pooling(tokens, token_valid)

    def unroll(
        self,
        tokens: Float[Tensor, "*batch time tokens width"],
        state: MemoryState,
        token_valid: Bool[Tensor, "*batch time tokens"] | None = None,
    ) -> tuple[Chunk, MemoryState]:
        """The chunks at T frames that continue from `state`, and the state after them; for truncated BPTT."""
        hidden, state = self.memory.unroll(self.pool(tokens, token_valid), state)
        return replace(self.action_head.decode(hidden), hidden=hidden), state

    def initial_state(self, batch: int | Sequence[int]) -> MemoryState:
        """The state of a batch of new episodes; `batch` is a count or a shape such as (envs, agents)."""
        return self.memory.initial_state((batch,) if isinstance(batch, int) else tuple(batch))

    def step(
        self,
        tokens: Float[Tensor, "*batch tokens width"],
        state: MemoryState,
        token_valid: Bool[Tensor, "*batch tokens"] | None = None,
        *,
        generator: torch.Generator | None = None,
        prefix: Prefix | None = None,
    ) -> tuple[Chunk, MemoryState]:
        """The chunk at the newest frame, arm (*B, K, A) and gripper_logit (*B, K, G), and the state after it.

        Args:
            tokens: tokens of the newest frame.
            state: memory state of the episodes so far.
            token_valid: False where a token is padding.
            generator: source of noise, for an action head that samples; None: its most likely chunk.
            prefix: planned actions that the chunk continues, as action targets (*B, k, A+G), if the action head supports this.
        """
        hidden, state = self.memory.step(self.pool(tokens, token_valid), state)
        return self.decode(hidden, generator, prefix), state

    def decode(self, hidden: Tensor, generator: torch.Generator | None, prefix: Prefix | None) -> Chunk:
        """The chunk at hidden vectors (*B, H), with the arguments of `step`."""
        if prefix is None:
            return self.action_head.decode(hidden, generator=generator)
        actions = torch.as_tensor(prefix.actions)
        if prefix.best_of > 1:
            hidden = hidden.expand(prefix.best_of, *hidden.shape)
            actions = actions.expand(prefix.best_of, *actions.shape)
        given: dict[str, Any] = {}
        if getattr(self.action_head, "guided", False):
            given = {"prefix": actions, "frozen": prefix.frozen}
        elif frozen := actions.shape[-2] if prefix.frozen is None else prefix.frozen:
            given = {"prefix": actions[..., :frozen, :]}
        chunk = self.action_head.decode(hidden, generator=generator, **given)
        return chunk if prefix.best_of == 1 else _most_coherent(chunk, actions)

    def loss(
        self,
        chunk: Chunk,
        target: Float[Tensor, "*batch chunk action"],
        action_valid: Bool[Tensor, "*mask"] | None = None,
        gripper_weight: float = 0.01,
    ) -> dict[str, Tensor]:
        """The action head's losses over the valid entries: their sum `loss`, each as `loss_<name>`, and its metrics.

        Args:
            chunk: the prediction of this head.
            target: arm in [-1, 1], then gripper labels in {0, 1}.
            action_valid: (*B, W, K), or (*B, W) for whole frames; None: all valid.
            gripper_weight: weight of the gripper's loss in `loss`.
        """
        if chunk.hidden is None:
            raise ValueError("the chunk has no hidden vectors; give one that this head predicted, or use action_loss")
        valid = expand_mask(action_valid, chunk.arm)[..., 0]
        figures = dict(self.action_head.losses(chunk.hidden, target, valid))
        metrics = {name: figures.pop(name) for name in [*figures] if name not in self.action_head.loss_names}
        total = torch.stack([value * (gripper_weight if name == "gripper" else 1.0) for name, value in figures.items()])
        named = {f"loss_{name}": value for name, value in figures.items()}
        return {"loss": total.sum(), **named, **metrics}

    def freeze(self, precision: Precision = "float32") -> "PolicyHead":
        """A copy whose `step` uses packed weights, for inference on a CPU; it does not follow later changes of the weights.

        Args:
            precision: `float32` (exact), `bf16` or `int8`, of the memory and the action head.

        Raises:
            ValueError: the precision is unknown, or this CPU can't compute in it.
        """
        frozen = copy.copy(self)
        frozen._modules = dict(self._modules)
        frozen._modules["memory"] = packed.freeze(self.memory, precision)
        frozen._modules["action_head"] = packed.freeze(self.action_head, precision)
        return frozen


COHERENCE_DECAY = 0.5
"""Weight of an action's distance to the plan, relative to the weight of the action before it."""


def _most_coherent(chunks: Chunk, actions: Tensor) -> Chunk:
    """Of N chunks per episode (N, *B, K, ...), the one whose arm actions are nearest to the prefix (N, *B, k, A+G)."""
    arm, logit = torch.as_tensor(chunks.arm), torch.as_tensor(chunks.gripper_logit)
    width, steps = arm.shape[-1], actions.shape[-2]
    weight = COHERENCE_DECAY ** torch.arange(steps, device=arm.device)
    away = (arm[..., :steps, :] - actions[..., :width]).square().sum(dim=-1)
    best = (weight * away.nan_to_num(0.0)).sum(dim=-1).argmin(dim=0)  # NaN: no action is planned
    picked = []
    for values in (arm, logit):
        place = best[None, ..., None, None].expand(1, *values.shape[1:])
        picked.append(values.gather(0, place)[0])
    return Chunk(*picked)


def _options(family: str, choice: Any, given: Mapping[str, Any]) -> Any:
    """The options of one part.

    An options object `choice` is kept, except for `window` and `chunk` if `given` has them. A kind's options are filled from
    `given`, then from `ROBOVLMS_SIZES`.
    """
    if not isinstance(choice, str):
        own = {"memory": ("window",), "action_head": ("chunk",)}.get(family, ())
        changes = {name: given[name] for name in own if name in given and hasattr(choice, name)}
        return replace(choice, **changes)
    options = component(family, choice).options
    names = [field.name for field in fields(options)]
    values = {**ROBOVLMS_SIZES, **given}
    return options(**{name: values[name] for name in names if name in values})
