"""What the built-in action heads share: two perceptrons, a binary gripper, masked losses."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

from robopolicy.components import ConfigError, expect
from robopolicy.model.losses import gripper_losses, split_labels
from robopolicy.types import ActionSpec, Chunk


@dataclass(frozen=True)
class HeadOptions:
    """Options that the built-in action heads share."""

    chunk: int = 8
    """K, actions predicted per frame."""
    widths: tuple[int, ...] = (256, 128)
    """Hidden widths of the perceptrons for arm and gripper."""
    arm_weights: tuple[float, ...] = ()
    """Weight of each arm column in the loss `arm`; empty: all 1."""

    def __post_init__(self) -> None:
        expect(self, "action_head", ">= 1", "chunk", "widths")
        expect(self, "action_head", ">= 0", "arm_weights")


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

    Subclasses say what the arm's outputs mean: `arm_loss` and `decode_arm`. Outputs of one step lie side by side: arm
    output k * A + a, gripper output k * G + g.

    Args:
        options: sizes.
        hidden_width: H.
        action: which columns are arm and which gripper.
        arm_outputs: outputs per step of the arm's perceptron.
    """

    loss_names: ClassVar[tuple[str, ...]] = ("arm", "gripper")
    samples: ClassVar[bool] = False
    uses_prefix: ClassVar[bool] = False

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
        self.actions = Perceptron(hidden_width, options.widths, options.chunk * arm_outputs)
        gripper_outputs = options.chunk * self.gripper_width
        self.gripper = Perceptron(hidden_width, options.widths, gripper_outputs) if gripper_outputs else None

    def arm_loss(self, hidden: Tensor, labels: Tensor, valid: Tensor) -> Tensor:
        """The scalar loss `arm`.

        Args:
            hidden: (*B, H).
            labels: (*B, K, A), 0 where invalid.
            valid: bool (*B, K, 1).
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
        """`arm`, `gripper` (cross-entropy) and the metric `gripper_accuracy`; see `ActionHead`."""
        arm_labels, gripper_labels, mask = split_labels(labels, valid, self.arm_width, self.gripper_width)
        gripper, accuracy = gripper_losses(self.gripper_logit(hidden), gripper_labels, mask)
        return {
            "arm": self.arm_loss(hidden, arm_labels, mask),
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
        """See `ActionHead`. The gripper's logits are those of its label 1; they are never sampled."""
        if prefix is not None:
            raise ValueError(f"{type(self).__name__} does not use a prefix (uses_prefix is False); call it without one")
        return Chunk(arm=self.decode_arm(hidden, generator), gripper_logit=self.gripper_logit(hidden))

    def gripper_logit(self, hidden: Float[Tensor, "*batch hidden"]) -> Float[Tensor, "*batch chunk gripper"]:
        """Logits of label 1 (closed), (*B, K, G); G is 0 without a binary gripper."""
        if self.gripper is None:
            return hidden.new_zeros((*hidden.shape[:-1], self.chunk, 0))
        return rearrange(self.gripper(hidden), "... (k g) -> ... k g", k=self.chunk)
