"""Shared by the built-in action heads: two MLPs, a binary gripper, masked losses."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional

from robopolicy.components import ConfigError, Options, option, require
from robopolicy.model.losses import gripper_losses, split_labels
from robopolicy.types import ActionSpec, Chunk

CERTAIN_LOGIT = 20.0
"""Magnitude of the gripper's logit at a prefix action, whose label is certain."""


@dataclass(frozen=True)
class HeadOptions(Options):
    """Options that the built-in action heads share."""

    chunk: int = option(8, ">= 1")
    """K, actions predicted per frame."""
    widths: tuple[int, ...] = option((256, 128), ">= 1")
    """Hidden widths of the perceptrons for arm and gripper."""
    arm_weights: tuple[float, ...] = option((), ">= 0")
    """Weight of each arm column in the loss `arm`; empty: all 1."""
    prefix: int = option(0, ">= 0")
    """Longest prefix of committed actions that the head is trained to continue; 0: it is trained without prefixes."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.prefix < self.chunk,
            f"--action_head.prefix must be less than --action_head.chunk {self.chunk}, got {self.prefix}",
        )


@dataclass(frozen=True)
class BoundedOptions(HeadOptions):
    """Options of the heads whose perceptron predicts the action itself."""

    bound: Literal["tanh", "clamp"] = "tanh"
    """How outputs are kept in [-1, 1], the demos' range. tanh: by tanh, as in RoboVLMs. clamp: linear in the loss, clamped by
    `decode`. If demos often act at the ends of the range, tanh saturates and its gradient vanishes."""

    def squashed(self, outputs: Tensor) -> Tensor:
        """The tanh of the outputs; with `clamp` the outputs unchanged, even outside [-1, 1]."""
        return outputs.tanh() if self.bound == "tanh" else outputs


class Perceptron(nn.Module):
    """Linear layers with ReLU between them; the weights are named `mlp.0, mlp.2, ...` as in RoboVLMs' files."""

    def __init__(self, inputs: int, widths: Sequence[int], outputs: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for width in widths:
            layers += [nn.Linear(inputs, width), nn.ReLU()]
            inputs = width
        self.mlp = nn.Sequential(*layers, nn.Linear(inputs, outputs))

    def forward(self, hidden: Float[Tensor, "*batch hidden"]) -> Float[Tensor, "*batch out"]:
        """The output of the last linear layer."""
        return self.mlp(hidden)


class PerceptronHead(nn.Module):
    """K steps of A arm columns and G binary gripper columns from two perceptrons; see `ActionHead`.

    Subclasses define the meaning of the arm's outputs in `arm_loss` and `decode_arm`. The outputs of one action are adjacent:
    with `arm_outputs` = N, output n of action k has index k * N + n; gripper column g has index k * G + g.

    Args:
        options: sizes.
        hidden_width: H.
        action: which columns are arm and which gripper.
        arm_outputs: outputs of the arm's perceptron `actions` per action; 0: the subclass has its own network.
    """

    loss_names: ClassVar[tuple[str, ...]] = ("arm", "gripper")
    samples: ClassVar[bool] = False
    guided = False
    """Whether `decode` takes `frozen`, the number of prefix rows kept exactly; the chunk is only guided towards the rest."""
    uniforms = 0
    """Random numbers per hidden vector in the loss `arm`."""

    def __init__(self, options: HeadOptions, hidden_width: int, action: ActionSpec, arm_outputs: int) -> None:
        super().__init__()
        if options.arm_weights and len(options.arm_weights) != action.arm_width:
            raise ConfigError(
                f"--action_head.arm_weights has {len(options.arm_weights)} entries for {action.arm_width} arm columns; "
                "give one each, or none"
            )
        self.chunk = options.chunk
        self.arm_width = action.arm_width
        self.gripper_width = action.gripper_width
        self.arm_weights = options.arm_weights
        if arm_outputs:
            self.actions = Perceptron(hidden_width, options.widths, options.chunk * arm_outputs)
        gripper_outputs = options.chunk * self.gripper_width
        self.gripper = Perceptron(hidden_width, options.widths, gripper_outputs) if gripper_outputs else None
        self.uses_prefix = options.prefix > 0
        self.max_prefix = options.prefix if options.prefix else options.chunk
        prefix_inputs = options.prefix * (action.arm_width + self.gripper_width + 1)
        self.prefix = nn.Linear(prefix_inputs, hidden_width) if options.prefix else None

    def arm_loss(self, hidden: Tensor, labels: Tensor, valid: Tensor, drawn: Tensor) -> Tensor:
        """The scalar loss `arm`.

        Args:
            hidden: (*B, H).
            labels: (*B, K, A), 0 where invalid.
            valid: bool (*B, K, 1).
            drawn: (*B, `uniforms`), uniform in [0, 1).
        """
        raise NotImplementedError

    def decode_arm(self, hidden: Tensor, generator: torch.Generator | None) -> Tensor:
        """Arm columns (*B, K, A) in [-1, 1]."""
        raise NotImplementedError

    def forward(self, hidden: Float[Tensor, "*batch hidden"]) -> Chunk:
        """`decode` without a generator."""
        return self.decode(hidden)

    def losses(
        self,
        hidden: Float[Tensor, "*batch hidden"],
        labels: Float[Tensor, "*batch chunk action"],
        valid: Bool[Tensor, "..."],
    ) -> dict[str, Tensor]:
        """`arm`, `gripper` (cross-entropy) and the metric `gripper_accuracy`; see `ActionHead`.

        With the option `prefix`, half of the rows are given the first n of their own labels as a prefix, with n drawn
        uniformly from 1 to `prefix` by torch's global generator. Only the actions after the prefix count in the losses.
        """
        arm_labels, gripper_labels, mask = split_labels(labels, valid, self.arm_width, self.gripper_width)
        # One call for all random numbers of a row, so that they do not depend on the rows after it.
        drawn = labels.new_empty((*valid.shape[:-1], 0), dtype=torch.float32)
        if count := self.uniforms + (self.prefix is not None):
            drawn = torch.rand(*valid.shape[:-1], count, device=labels.device)
        if self.prefix is not None:
            length, drawn = ((2 * drawn[..., :1] - 1) * self.max_prefix).ceil().clamp(min=0), drawn[..., 1:]
            committed = mask & (torch.arange(self.chunk, device=labels.device) < length)[..., None]
            known = torch.cat([arm_labels, gripper_labels], dim=-1)[..., : self.max_prefix, :]
            hidden = hidden + self._prefix_features(known, committed[..., : self.max_prefix, :])
            mask = mask & ~committed
        gripper, accuracy = gripper_losses(self.gripper_logit(hidden), gripper_labels, mask)
        return {
            "arm": self.arm_loss(hidden, arm_labels, mask, drawn),
            "gripper": gripper,
            "gripper_accuracy": accuracy,
        }

    def decode(
        self,
        hidden: Float[Tensor, "*batch hidden"],
        *,
        generator: torch.Generator | None = None,
        prefix: Tensor | None = None,
    ) -> Chunk:
        """See `ActionHead`. `gripper_logit` is the logit of label 1; the gripper is never sampled."""
        self.check_prefix(hidden, prefix)
        hidden = self.with_prefix(hidden, prefix)
        chunk = Chunk(arm=self.decode_arm(hidden, generator), gripper_logit=self.gripper_logit(hidden))
        return self.keep_prefix(chunk, prefix)

    def check_prefix(self, hidden: Tensor, prefix: Tensor | None) -> None:
        """Check that this head can use `prefix` with the hidden vectors (*B, H).

        Raises:
            ValueError: the head does not use prefixes, or `prefix` has the wrong shape or is too long.
        """
        if prefix is None:
            return
        if not self.uses_prefix:
            raise ValueError(
                f"{type(self).__name__} was not trained with prefixes (uses_prefix is False); call it without one, or "
                "train with --action_head.prefix"
            )
        lead, width = tuple(hidden.shape[:-1]), self.arm_width + self.gripper_width
        if prefix.shape[:-2] != lead or prefix.shape[-1] != width:
            raise ValueError(f"prefix has shape {tuple(prefix.shape)}; expected {(*lead, 'k', width)}")
        if prefix.shape[-2] > self.max_prefix:
            limit = f"--action_head.{'chunk' if self.prefix is None else 'prefix'}"
            raise ValueError(f"prefix of {prefix.shape[-2]} actions; expected at most {limit} {self.max_prefix}")

    def with_prefix(self, hidden: Tensor, prefix: Tensor | None) -> Tensor:
        """Hidden vectors (*B, H) plus the prefix layer's output for a prefix (*B, k, A+G); None is an empty prefix.

        A head trained without prefixes has no such layer, and the hidden vectors are returned unchanged.
        """
        if self.prefix is None:
            return hidden
        if prefix is None:
            prefix = hidden.new_zeros((*hidden.shape[:-1], 0, self.arm_width + self.gripper_width))
        padded = functional.pad(prefix, (0, 0, 0, self.max_prefix - prefix.shape[-2]), value=torch.nan)
        return hidden + self._prefix_features(padded, is_committed(padded))

    def keep_prefix(self, chunk: Chunk, prefix: Tensor | None) -> Chunk:
        """The chunk with its first actions replaced by the rows of the prefix (*B, k, A+G) that are not NaN."""
        if prefix is None:
            return chunk
        arm, label = prefix.to(chunk.arm).split([self.arm_width, self.gripper_width], dim=-1)
        committed, length = is_committed(prefix), prefix.shape[-2]
        logit = torch.where(label > 0.5, CERTAIN_LOGIT, -CERTAIN_LOGIT).to(chunk.gripper_logit)
        first = torch.where(committed, arm, chunk.arm[..., :length, :])
        first_logit = torch.where(committed, logit, chunk.gripper_logit[..., :length, :])
        return Chunk(
            arm=torch.cat([first, chunk.arm[..., length:, :]], dim=-2),
            gripper_logit=torch.cat([first_logit, chunk.gripper_logit[..., length:, :]], dim=-2),
        )

    def _prefix_features(self, actions: Tensor, committed: Tensor) -> Tensor:
        """The prefix layer's output (*B, H) for actions (*B, P, A+G), ignored where `committed` (*B, P, 1) is False."""
        assert self.prefix is not None
        known = torch.cat([torch.where(committed, actions, 0.0), committed.to(actions)], dim=-1)
        return self.prefix(known.flatten(-2))

    def gripper_logit(self, hidden: Float[Tensor, "*batch hidden"]) -> Float[Tensor, "*batch chunk gripper"]:
        """Logits of label 1 (closed), (*B, K, G); G is 0 without a binary gripper."""
        if self.gripper is None:
            return hidden.new_zeros((*hidden.shape[:-1], self.chunk, 0))
        return self.gripper(hidden).unflatten(-1, (self.chunk, self.gripper_width))


def is_committed(actions: Float[Tensor, "*batch k width"]) -> Bool[Tensor, "*batch k 1"]:
    """True for rows that hold an action: those without NaN."""
    return ~actions.isnan().any(dim=-1, keepdim=True)
