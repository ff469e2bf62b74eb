"""The policy head: vision-language tokens in, chunks of arm and gripper actions out, remembered over a window."""

from collections.abc import Sequence
from typing import Any, Literal, cast, get_args

from jaxtyping import Bool, Float
from torch import Tensor, nn

from robopolicy.model.heads import make_action_head
from robopolicy.model.old_packed import Precision, bf16_runs, packable, packed_copy
from robopolicy.model.pooling import PoolingKind, make_pooling
from robopolicy.model.recurrence import CellKind, RecurrentMemory, make_recurrence
from robopolicy.model.streaming import History, MemoryState
from robopolicy.types import ActionSpec, Chunk


class PolicyHead(nn.Module):
    """Pool each frame's tokens, remember, and predict the next K actions at every frame.

    In training, `head(tokens)` runs a window from a zero state. On the robot, `head.step(tokens, state)` gives the same
    numbers for the newest frame from a state that the caller holds.

    Args:
        token_width: D, the width of one token.
        action: which action columns are arm and which binary gripper.
        window: W, frames of memory.
        chunk: K, actions predicted per frame.
        layers: layers of the memory.
        hidden: H; the memory is `latent * hidden` wide.
        cell: `lstm`, `gru`, `transformer` or `none`.
        history: `window` (the last W frames exactly), `carry` (one state for the whole episode) or `none` (one frame).
        pooling: `max`, `mean`, `attention`, `resampler` or `none`.
        latent: vectors that pooling keeps per frame.
        dropout: probability, between the memory's layers.
        head: `regression`, `gmm` or `discrete`.
        head_widths: hidden widths of the action head's perceptrons.
        attention_heads: of the transformer cell.
        pooling_heads: attention heads of the `attention` and `resampler` poolings.
        pooling_depth: layers of the `resampler`.
        head_options: of the action head: `modes` and `min_std` of `gmm`, `bins` of `discrete`.
    """

    _precision: Precision

    def __init__(
        self,
        token_width: int,
        action: ActionSpec,
        window: int,
        chunk: int,
        layers: int = 4,
        hidden: int = 1024,
        cell: CellKind = "lstm",
        history: History = "window",
        pooling: PoolingKind = "max",
        latent: int = 1,
        dropout: float = 0.0,
        head: Literal["regression", "gmm", "discrete"] = "regression",
        head_widths: Sequence[int] = (1024, 512, 256),
        attention_heads: int = 8,
        pooling_heads: int = 1,
        pooling_depth: int = 2,
        **head_options: Any,
    ) -> None:
        super().__init__()
        self.token_width = token_width
        self.window = window
        self.chunk = chunk
        self.pooled_width = latent * token_width
        self.pooling = make_pooling(pooling, token_width, latent, heads=pooling_heads, depth=pooling_depth)
        self.rnn = make_recurrence(
            cell,
            history,
            self.pooled_width,
            latent * hidden,
            layers=layers,
            window=window,
            dropout=dropout,
            heads=attention_heads,
        )
        self.action_head = make_action_head(head, latent * hidden, action, chunk, head_widths, **head_options)
        self.precision = "float32"

    @property
    def precision(self) -> Precision:
        """Arithmetic of `step` on the CPU without gradients: `float32` (exact), `bf16` or `int8`; a setting, not saved.

        It is that of the LSTM or GRU and of the action head; pooling and a transformer stay float32.
        """
        return self._precision

    @precision.setter
    def precision(self, precision: str) -> None:
        if precision not in get_args(Precision):
            raise ValueError(f"precision {precision!r} is not known; choose {', '.join(get_args(Precision))}")
        if precision == "bf16" and not bf16_runs():
            raise ValueError("precision bf16: this CPU has no instructions for bfloat16; use float32 or int8")
        self._precision = cast(Precision, precision)
        if isinstance(self.rnn, RecurrentMemory):
            self.rnn.precision = self._precision

    def forward(
        self,
        tokens: Float[Tensor, "*batch window tokens width"],
        token_valid: Bool[Tensor, "*batch window tokens"] | None = None,
    ) -> Chunk:
        """The chunk at every frame of a window, from a zero state: arm (*B, W, K, A), gripper_logit (*B, W, K, G)."""
        return self.decode(self.pool(tokens, token_valid))

    def pool(
        self, tokens: Float[Tensor, "*batch tokens width"], token_valid: Bool[Tensor, "*batch tokens"] | None = None
    ) -> Float[Tensor, "*batch pooled"]:
        """Each frame's tokens -> one vector; a frame that several windows share is pooled once.

        Raises:
            ValueError: there are no tokens, they are of another width than the head's, or there isn't one flag for each.
        """
        if tokens.shape[-1] != self.token_width or not tokens.shape[-2]:
            raise ValueError(
                f"tokens of shape {tuple(tokens.shape)}; expected (..., N, {self.token_width}) with N of 1 or more"
            )
        if token_valid is not None and token_valid.shape != tokens.shape[:-1]:
            raise ValueError(
                f"token_valid of shape {tuple(token_valid.shape)}; expected {tuple(tokens.shape[:-1])}, a flag per token"
            )
        return self.pooling(tokens, token_valid)

    def remember(self, pooled: Float[Tensor, "*batch window pooled"]) -> Float[Tensor, "*batch window hidden"]:
        """The memory's hidden vector at every frame of a window, from a zero state."""
        return self.rnn(pooled)

    def decode(self, pooled: Float[Tensor, "*batch window pooled"]) -> Chunk:
        """The chunk at every frame of a window of pooled frames, from a zero state."""
        return self.action_head(self.remember(pooled))

    def unroll(
        self,
        tokens: Float[Tensor, "*batch time tokens width"],
        state: MemoryState,
        token_valid: Bool[Tensor, "*batch time tokens"] | None = None,
    ) -> tuple[Chunk, MemoryState]:
        """The chunk at each of T frames that follow on `state`, and the state after them: what truncated BPTT trains."""
        hidden, state = self.rnn.unroll(self.pool(tokens, token_valid), state)
        return self.action_head(hidden), state

    def initial_state(self, batch: int | Sequence[int]) -> MemoryState:
        """The state of a batch of episodes that have seen nothing; `batch` is a count or a shape as (envs, agents)."""
        return self.rnn.initial_state((batch,) if isinstance(batch, int) else tuple(batch))

    def step(
        self,
        tokens: Float[Tensor, "*batch tokens width"],
        state: MemoryState,
        token_valid: Bool[Tensor, "*batch tokens"] | None = None,
    ) -> tuple[Chunk, MemoryState]:
        """The chunk at the newest frame, arm (*B, K, A) and gripper_logit (*B, K, G), and the state that has seen it."""
        hidden, state = self.rnn.step(self.pool(tokens, token_valid), state)
        packed = packable(self.action_head)
        decode = packed_copy(self.action_head, self.precision) if packed else self.action_head
        return decode(hidden), state

    def loss(
        self,
        chunk: Chunk,
        target: Float[Tensor, "*batch chunk action"],
        action_valid: Bool[Tensor, "*mask"] | None = None,
        **options: Any,
    ) -> dict[str, Tensor]:
        """The action head's own loss: `loss`, `loss_arm`, `loss_gripper` and `gripper_accuracy`, over the valid entries.

        Args:
            chunk: as this head gave it, with its `raw` outputs.
            target: arm in [-1, 1], then gripper labels in {0, 1}.
            action_valid: (*B, W, K), or (*B, W) for whole frames; None: all valid.
            options: `gripper_weight`, `huber_delta` and `arm_weights`, as of `action_loss`.
        """
        return self.action_head.loss(chunk, target, action_valid, **options)
