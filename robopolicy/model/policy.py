"""ChunkPolicy = normalize -> encode -> pool -> recur -> head -> unnormalize; nothing else."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from robopolicy.config import ExperimentConfig
from robopolicy.model.inputs import checked_inputs
from robopolicy.model.losses import (
    ForwardPrediction,
    LinearPolicy,
    TargetPrediction,
    TermInputs,
    TermProvider,
    customary_weights,
    cut_windows,
    require_terms,
    weighted_sum,
)
from robopolicy.model.normalization import ActionNormalizer, Normalizer
from robopolicy.model.old_encoders import TOKEN_VALID_KEY, TOKENS_KEY, Encoding, make_encoder, make_reader
from robopolicy.model.policy_head import PolicyHead
from robopolicy.model.rotations import action_rotations, key_rotations
from robopolicy.model.statistics import Statistics
from robopolicy.model.streaming import MemoryState
from robopolicy.model.text import Vocabulary
from robopolicy.types import ActionSpec, ArraySpec, Batch, Chunk, Observation

ACTION_TERMS = ("arm", "gripper")


class ChunkPolicy(nn.Module):
    """Observations in the demos' own units in, chunks of action rows in the demos' own units and columns out.

    The state of running episodes is a value that the caller holds; the policy holds weights and statistics only.

    Args:
        config: the experiment; sizes, terms and their weights are read from it.
        action_spec: the columns of the demos' action rows.
        obs: every key the policy sees, with the shape and type of one frame.
        vocabulary: the training instructions' words; None for a policy that is told nothing.
        targets: keys that loss terms may use in training but the policy never sees.
        obs_statistics: of each low-dimensional key and target, from the training split; None when weights are loaded.
        action_statistics: of the action rows, from the training split; None when weights are loaded.
    """

    def __init__(
        self,
        config: ExperimentConfig,
        action_spec: ActionSpec,
        obs: Mapping[str, ArraySpec],
        vocabulary: Vocabulary | None = None,
        *,
        targets: Mapping[str, ArraySpec] | None = None,
        obs_statistics: Mapping[str, Statistics] | None = None,
        action_statistics: Statistics | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.action_spec = action_spec
        self.obs = dict(obs)
        self.targets = dict(targets or {})
        self.vocabulary = vocabulary if config.encoder.instruction else None
        as_is = (TOKENS_KEY, TOKEN_VALID_KEY)
        scaled = {
            key: spec for key, spec in (self.obs | self.targets).items() if not spec.is_image and key not in as_is
        }
        self.scaled_keys = tuple(scaled)
        scaling = config.normalization
        form, declared = scaling.rotation, scaling.rotations
        self.normalizers = nn.ModuleList(
            Normalizer(
                spec.width, scaling.obs, _of(key, obs_statistics), key_rotations(key, spec.width, form, declared), form
            )
            for key, spec in scaled.items()
        )
        turned = action_rotations(action_spec, form, declared)
        self.action_normalizer = ActionNormalizer(action_spec, action_statistics, turned, form)
        encoder, head = config.encoder, config.head
        self.text = make_reader(encoder, self.vocabulary) if self.vocabulary else None
        text_tokens = self.text.token_count if self.text is not None else 0
        self.encoder = make_encoder(encoder, self._scaled(self.obs), text_tokens, self._scaled(self.targets))
        options = {"gmm": {"modes": head.modes, "min_std": head.min_std}, "discrete": {"bins": head.bins}}
        self.head = PolicyHead(
            self.encoder.token_width,
            self.action_normalizer.learned_spec,
            head.window,
            head.chunk,
            layers=head.layers,
            hidden=head.hidden,
            cell=head.cell,
            history=head.history,
            pooling=head.pooling,
            latent=head.latent,
            dropout=head.dropout,
            head=head.head,
            head_widths=head.head_widths,
            attention_heads=head.attention_heads,
            pooling_heads=head.pooling_heads,
            pooling_depth=head.pooling_depth,
            **options.get(head.head, {}),
        )
        self.term_weights = dict(config.loss.terms)
        if self.encoder.chosen_width:
            self.term_weights.setdefault("choose", 1.0)
        self.added_terms, self.contributed_terms = nn.ModuleList(self._own_terms()), nn.ModuleList()
        self._prepared: dict[tuple[str | None, ...], Tensor] = {}

    def _own_terms(self) -> Iterator[nn.Module]:
        """The providers of terms that are weighted and belong to no encoder or head."""
        head = self.config.head
        hidden = head.latent * head.hidden
        if "forward" in self.term_weights:
            yield ForwardPrediction(hidden, self.head.pooled_width)
        if "remember" in self.term_weights:
            yield TargetPrediction(hidden, {key: spec.width for key, spec in self._scaled(self.targets).items()})
        if self.encoder.chosen_width:
            yield LinearPolicy(self.encoder.chosen_width, self.action_normalizer.learned_spec.arm_width)

    @property
    def obs_keys(self) -> tuple[str, ...]:
        """The low-dimensional keys, and tokens, that the policy sees."""
        return tuple(key for key, spec in self.obs.items() if not spec.is_image)

    @property
    def cameras(self) -> tuple[str, ...]:
        """The picture keys that the policy sees."""
        return tuple(key for key, spec in self.obs.items() if spec.is_image)

    @property
    def window(self) -> int:
        """W, frames of memory."""
        return self.head.window

    @property
    def chunk(self) -> int:
        """K, actions predicted per frame."""
        return self.head.chunk

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.action_normalizer.arm_scale.device

    def _scaled(self, specs: Mapping[str, ArraySpec]) -> dict[str, ArraySpec]:
        """The same keys with the shapes that scaling gives them."""
        return {
            key: ArraySpec((self.normalizer(key).width,)) if key in self.scaled_keys else spec
            for key, spec in specs.items()
        }

    def normalizer(self, key: str) -> Normalizer:
        """The scaling of one low-dimensional key."""
        return cast(Normalizer, self.normalizers[self.scaled_keys.index(key)])

    def add_terms(self, provider: nn.Module) -> None:
        """Let another part contribute loss terms, such as `cotraining` on other data, at the config's weights or RoboVLMs'.

        Its own parameters are trained with the policy's, and not saved with them: acting doesn't need them.

        Args:
            provider: a module that is a `TermProvider`.

        Raises:
            TypeError: it is none.
            ValueError: one of its terms has neither a weight in the config nor a customary one.
        """
        if not isinstance(provider, TermProvider):
            raise TypeError(
                f"{type(provider).__name__} provides no loss terms; it needs `term_names` and `terms(inputs)`"
            )
        self.term_weights |= customary_weights(provider.term_names, self.term_weights)
        self.contributed_terms.append(provider)

    @property
    def providers(self) -> tuple[TermProvider, ...]:
        """The parts that contribute loss terms, apart from the head's own `arm` and `gripper`."""
        parts = (self.encoder, *self.added_terms, *self.contributed_terms)
        return tuple(part for part in parts if isinstance(part, TermProvider))

    @property
    def available_terms(self) -> tuple[str, ...]:
        """Every loss term that a part of this policy provides."""
        return (*ACTION_TERMS, *(name for provider in self.providers for name in provider.term_names))

    # -- running -------------------------------------------------------------------------------------------------------

    def initial_state(self, batch: int | Sequence[int] = ()) -> MemoryState:
        """The state of episodes that have seen nothing; `batch` is a count, a shape, or () for one robot without axes."""
        return self.head.initial_state(batch)

    @torch.no_grad()
    def act(self, observation: Observation | Mapping[str, Any], state: MemoryState) -> tuple[Tensor, MemoryState]:
        """The next K action rows (*B, K, width) in the demos' units and column order, and the state that has seen them.

        Args:
            observation: key -> array or tensor (*B, ...), and `instruction`: a string, one per entry of the batch, or none.
            state: of the episodes so far, from `initial_state` or the last call.

        Raises:
            KeyError: a camera or key is missing.
            ValueError: a shape or type is not what the policy was trained on.
        """
        chunk, state = self.predict(observation, state)
        return self.action_normalizer.to_rows(chunk), state

    def predict(self, observation: Observation | Mapping[str, Any], state: MemoryState) -> tuple[Chunk, MemoryState]:
        """As `act`, but the normalized chunk with gripper logits."""
        if isinstance(observation, Observation):
            observation = {**observation.obs, "instruction": observation.instruction}
        obs = self.inputs(observation, self.obs)
        first = next(iter(self.obs))
        lead = obs[first].shape[: obs[first].dim() - len(self.obs[first].shape)]
        encoding = self.encode(obs, self.instruction_text(observation.get("instruction"), lead))
        return self.head.step(encoding.tokens, state, encoding.token_valid)

    def encode(self, obs: Mapping[str, Tensor], text: Tensor | None) -> Encoding:
        """Tokens of frames in the demos' units; `text` is what `instruction_text` gave. All tensor code: it can be exported."""
        normalized = {key: self._normalize(key, value) for key, value in obs.items()}
        return self.encoder(normalized, self.text(text) if self.text is not None and text is not None else None)

    def inputs(self, obs: Mapping[str, Any], expected: Mapping[str, ArraySpec]) -> dict[str, Tensor]:
        """The expected keys as tensors where the weights are: pictures uint8, the rest float32, with the same leading axes."""
        return checked_inputs(obs, expected, self.device)

    def instruction_text(
        self, instruction: str | Sequence[str | None] | None, lead: Sequence[int] = ()
    ) -> Tensor | None:
        """What the text model reads of an instruction, with axes that broadcast against the batch's; None if untold."""
        if self.text is None:
            return None
        entries = (instruction,) if instruction is None or isinstance(instruction, str) else tuple(instruction)
        if len(entries) > 1 and (not lead or len(entries) != lead[0]):
            raise ValueError(f"{len(entries)} instructions for a batch of {tuple(lead)}; give one, or one per entry")
        if entries not in self._prepared:
            self._prepared = {entries: self.text.prepare(entries)}
        prepared = self._prepared[entries].to(self.device)
        return prepared.reshape(*(prepared.shape[:1] if lead else ()), *(1,) * (len(lead) - 1), *prepared.shape[1:])

    # -- training ------------------------------------------------------------------------------------------------------

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """The weighted sum `loss`, each term as `loss_<term>`, and the metric `gripper_accuracy`.

        Each frame is encoded and pooled once; all S - W + 1 windows of a segment are then cut from the pooled frames.
        With `history="carry"` the segment is one episode's beginning, unrolled from a zero state.
        """
        return self.unroll_losses(batch, None)[0]

    def unroll_losses(self, batch: Batch, state: MemoryState | None) -> tuple[dict[str, Tensor], MemoryState | None]:
        """As `losses`, for segments that go on from `state` (`history="carry"`), and the state after them."""
        require_terms(self.term_weights, self.available_terms)
        obs = self.inputs(batch.obs, self._as_stored(batch))
        encoding = self.encode(obs, self._batch_text(batch))
        pooled = self.head.pool(encoding.tokens, encoding.token_valid)
        if self.config.head.history == "carry":
            start = self.initial_state(pooled.shape[0]) if state is None else state
            hidden, state = self.head.rnn.unroll(pooled, start)
            hidden = hidden[:, None]
        else:
            hidden = self.head.remember(cut_windows(pooled, self._span(pooled)))
        span = hidden.shape[2]
        chunk = self.head.action_head(hidden)
        target = torch.as_tensor(batch.target, device=self.device)
        valid = torch.as_tensor(batch.action_valid, device=self.device)
        loss = self.config.loss
        figures = self.head.loss(
            chunk,
            cut_windows(target, span),
            cut_windows(valid, span),
            huber_delta=loss.huber_delta,
            arm_weights=loss.arm_weights,
        )
        terms = {name: figures[f"loss_{name}"] for name in ACTION_TERMS}
        targets = {key: self._normalize(key, value) for key, value in self._present_targets(batch).items()}
        terms |= self._provided(TermInputs(batch, targets, encoding.predictions, pooled, hidden))
        result = {"loss": weighted_sum(terms, self.term_weights)}
        result |= {f"loss_{name}": value for name, value in terms.items()}
        return result | {"gripper_accuracy": figures["gripper_accuracy"]}, state

    def _span(self, pooled: Tensor) -> int:
        """Frames that are remembered together: W, or the whole segment where every frame stands alone."""
        if self.config.head.history == "none":
            return pooled.shape[1]
        if pooled.shape[1] < self.window:
            raise ValueError(
                f"segments of {pooled.shape[1]} frames for a window of {self.window}; expected at least a window"
            )
        return self.window

    def _provided(self, inputs: TermInputs) -> dict[str, Tensor]:
        wanted = set(self.term_weights)
        terms: dict[str, Tensor] = {}
        for provider in self.providers:
            if wanted & set(provider.term_names):
                terms |= provider.terms(inputs)
        return terms

    def _as_stored(self, batch: Batch) -> dict[str, ArraySpec]:
        """The keys as a batch may hold them: of tokens that need no more than pooling, those that it leaves, all valid."""
        tokens = batch.obs.get(TOKENS_KEY)
        pooled = (self.config.head.latent, *self.obs[TOKENS_KEY].shape[1:]) if tokens is not None else ()
        if tokens is None or tuple(tokens.shape[-2:]) != pooled:
            return self.obs
        kept = {key: spec for key, spec in self.obs.items() if key != TOKEN_VALID_KEY}
        return {**kept, TOKENS_KEY: ArraySpec(pooled)}

    def _present_targets(self, batch: Batch) -> dict[str, Tensor]:
        return self.inputs(batch.obs, {key: spec for key, spec in self.targets.items() if key in batch.obs})

    def _batch_text(self, batch: Batch) -> Tensor | None:
        if self.text is None:
            return None
        entries = (*batch.instructions, None)
        if entries not in self._prepared:
            self._prepared = {entries: self.text.prepare(entries)}
        rows = torch.as_tensor(batch.instruction_id, device=self.device)
        return self._prepared[entries].to(self.device)[rows][:, None]

    def _normalize(self, key: str, value: Tensor) -> Tensor:
        if key not in self.scaled_keys:
            return value
        spec = self.obs.get(key) or self.targets[key]
        flat = value.reshape(*value.shape[: value.dim() - len(spec.shape)], spec.width)
        return self.normalizer(key).normalize(flat)


def _of(key: str, statistics: Mapping[str, Statistics] | None) -> Statistics | None:
    if statistics is None:
        return None
    if key not in statistics:
        raise ValueError(f"no statistics of {key!r}. There are: {', '.join(statistics)}")
    return statistics[key]
