"""ChunkPolicy: normalize -> encode -> pool -> memory -> decode -> unnormalize."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from robopolicy.model.encoders import Encoding, TokenEncoder
from robopolicy.model.inputs import checked_inputs, instruction_entries
from robopolicy.model.normalization import ActionNormalizer, KeyScaling
from robopolicy.model.packed import Precision
from robopolicy.model.policy_head import PolicyHead
from robopolicy.model.streaming import MemoryState
from robopolicy.types import ActionSpec, Array, ArraySpec, Observation, PolicySpec, Prediction, Prefix


class ChunkPolicy(nn.Module):
    """The trained `Policy`: maps observations to chunks of action rows, both in the demos' own units.

    It holds weights and normalization statistics, but not the memory state of running episodes: the caller holds that.

    Args:
        spec: keys and shapes of the observation, columns of the action rows, window and chunk.
        scaling: scales the low-dimensional observation keys.
        action_normalizer: converts between action rows (demos' units) and action targets (normalized).
        text: text model that encodes the instruction; None for an unconditioned policy.
        encoder: observation and instruction -> tokens.
        head: tokens -> chunks.
    """

    def __init__(
        self,
        spec: PolicySpec,
        scaling: KeyScaling,
        action_normalizer: ActionNormalizer,
        text: nn.Module | None,
        encoder: TokenEncoder,
        head: PolicyHead,
    ) -> None:
        super().__init__()
        self.spec = spec
        self.scaling = scaling
        self.action_normalizer = action_normalizer
        self.text: Any = text
        self.encoder = encoder
        self.head = head
        # In a list, so that it is not a submodule: the frozen copy's packed weights must be neither saved nor trained.
        self._frozen: list[PolicyHead] = []
        self.config: Any = None
        """Config of the experiment that built the policy; `save_policy` writes it beside the weights."""
        self.vocabulary: Any = None
        """Words of the training instructions; `save_policy` writes them beside the weights, too."""
        # The last instructions and the text model's input for them; see `prepared`.
        self._prepared: dict[tuple[str | None, ...], Tensor] = {}

    @property
    def obs(self) -> Mapping[str, ArraySpec]:
        """Every key that the policy reads, with the shape and type of one frame."""
        return self.spec.observation

    @property
    def action_spec(self) -> ActionSpec:
        """The columns of the action rows."""
        return self.spec.action

    @property
    def cameras(self) -> tuple[str, ...]:
        """The image keys that the policy reads."""
        return self.spec.cameras

    @property
    def window(self) -> int:
        """W, frames of memory."""
        return self.spec.window

    @property
    def chunk(self) -> int:
        """K, actions predicted per frame."""
        return self.spec.chunk

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self.action_normalizer.arm_scale.device

    def initial_state(self, batch: int | Sequence[int] = ()) -> MemoryState:
        """The memory state before the first frame; `batch` is a size, a shape, or () for one robot without a batch axis."""
        return self.head.initial_state(batch)

    def act(
        self,
        observation: Observation | Mapping[str, Any],
        state: MemoryState,
        *,
        generator: torch.Generator | None = None,
        prefix: Prefix | Array | None = None,
    ) -> tuple[Tensor, MemoryState]:
        """The next K action rows (*B, K, width) in the demos' units and column order, and the state after this frame.

        Args:
            observation: key -> array or tensor (*B, ...), and `instruction`: a string, one per entry of the batch, or None.
            state: memory state, from `initial_state` or from the previous call.
            generator: source of noise for an action head that samples; None: return the most likely chunk.
            prefix: action rows (*B, k, width) that are already being executed, alone or in a `Prefix`. The chunk begins with
                exactly these rows, or with the first `frozen` of them. Only for action heads that support it.

        Raises:
            KeyError: a camera or key is missing.
            ValueError: a shape or type differs from the training demos, or a value is not finite.
        """
        prediction, state = self.predict(observation, state, generator=generator, prefix=prefix)
        return prediction.actions, state

    @torch.no_grad()
    def predict(
        self,
        observation: Observation | Mapping[str, Any],
        state: MemoryState,
        *,
        generator: torch.Generator | None = None,
        prefix: Prefix | Array | None = None,
    ) -> tuple[Prediction, MemoryState]:
        """As `act`, but returns a `Prediction`, which also holds the gripper logits."""
        if isinstance(observation, Observation):
            observation = {**observation.obs, "instruction": observation.instruction}
        obs = checked_inputs(observation, self.obs, self.device, finite=True)
        first = next(iter(self.obs))
        batch = obs[first].shape[: obs[first].dim() - len(self.obs[first].shape)]
        encoding = self.encode(obs, self.instruction_text(observation.get("instruction"), batch))
        return self.step(encoding, state, generator, prefix)

    def step(
        self,
        encoding: Encoding,
        state: MemoryState,
        generator: torch.Generator | None = None,
        prefix: Prefix | Array | None = None,
    ) -> tuple[Prediction, MemoryState]:
        """As `predict`, from an encoded frame (*B, N, D); never synchronizes with the device."""
        head = self._frozen[0] if self._frozen else self.head
        if prefix is not None and not isinstance(prefix, Prefix):
            prefix = Prefix(prefix)
        targets = None if prefix is None else self._targets(prefix)
        chunk, state = head.step(encoding.tokens, state, encoding.token_valid, generator=generator, prefix=targets)
        rows = self.action_normalizer.to_rows(chunk)
        # The head's prefix was normalized and unnormalized, which rounds. Copy the given rows, so that they are exact.
        if prefix is not None:
            given = torch.as_tensor(prefix.actions).to(rows)[..., : prefix.frozen, :]
            kept = torch.where(given.isnan(), rows[..., : given.shape[-2], :], given)
            rows = torch.cat([kept, rows[..., given.shape[-2] :, :]], dim=-2)
        return Prediction(rows, chunk.gripper_logit), state

    def _targets(self, prefix: Prefix) -> Prefix:
        """The prefix as normalized action targets; rows with a missing (NaN) column become NaN."""
        rows = torch.as_tensor(prefix.actions).to(self.action_normalizer.arm_scale)
        missing = rows.isnan().any(dim=-1, keepdim=True)
        return replace(prefix, actions=self.action_normalizer.to_target(rows).masked_fill(missing, torch.nan))

    def encode(self, obs: Mapping[str, Tensor], text: Tensor | None) -> Encoding:
        """Tokens of frames in the demos' units; `text` is the result of `instruction_text`. Can be traced by torch."""
        return self.encoder(self.scaling(obs), self.text(text) if self.text is not None and text is not None else None)

    def instruction_text(
        self, instruction: str | Sequence[str | None] | None, batch: Sequence[int] = ()
    ) -> Tensor | None:
        """The text model's input for an instruction, shaped to broadcast against the batch.

        Args:
            instruction: one for the whole batch, or one per entry of its first axis; None: no instruction.
            batch: shape of the batch.

        Returns:
            A tensor whose first axes broadcast against `batch`; None for an unconditioned policy.
        """
        if self.text is None:
            return None
        prepared = self.prepared(instruction_entries(instruction, batch))
        return prepared.reshape(*(prepared.shape[:1] if batch else ()), *(1,) * (len(batch) - 1), *prepared.shape[1:])

    def prepared(self, instructions: tuple[str | None, ...]) -> Tensor:
        """The text model's input (instructions, ...) for these instructions; only the last result is cached."""
        if instructions not in self._prepared:
            self._prepared = {instructions: self.text.prepare(instructions)}
        return self._prepared[instructions].to(self.device)

    def freeze(self, precision: Precision = "float32") -> "ChunkPolicy":
        """Use a packed copy of the head's weights in `step`: faster on a CPU. It does not follow later changes of the weights.

        `train()`, and a move to another device or dtype, undo it.

        Args:
            precision: `float32` (exact), `bf16` or `int8`.
        """
        self._frozen = [self.head.freeze(precision)]
        return self

    def train(self, mode: bool = True) -> "ChunkPolicy":
        """As `nn.Module.train`; train mode undoes `freeze`."""
        if mode:
            self._frozen = []
        return super().train(mode)

    def _apply(self, *args: Any, **kwargs: Any) -> "ChunkPolicy":
        # `nn.Module` calls this for every move to another device or dtype, which would not move the packed copy.
        self._frozen = []
        return super()._apply(*args, **kwargs)
