"""Hidden -> Chunk: the action heads, one interface.

`head(hidden)` gives a Chunk whose `arm` is always the decoded action; `head.loss(chunk, target, action_valid)` gives what
`action_loss` gives, with `loss_arm` in the head's own terms: Huber for `regression`, negative log likelihood for `gmm`,
cross-entropy for `discrete`.
"""

from collections.abc import Sequence
from math import log, pi
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional

from robopolicy.model.losses import action_loss, gripper_terms, masked_mean, split_target, weigh_columns
from robopolicy.types import ActionSpec, Chunk


class Perceptron(nn.Module):
    """Linear layers with ReLU between them; `mlp.0, mlp.2, ...` hold the weights, as in RoboVLMs' files."""

    def __init__(self, inputs: int, widths: Sequence[int], outputs: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for width in widths:
            layers += [nn.Linear(inputs, width), nn.ReLU()]
            inputs = width
        self.mlp = nn.Sequential(*layers, nn.Linear(inputs, outputs))

    def forward(self, hidden: Float[Tensor, "*batch hidden"]) -> Float[Tensor, "*batch out"]:
        """The last layer's output, with nothing after it."""
        return self.mlp(hidden)


class ActionHead(nn.Module):
    """What the heads share: K steps of A arm columns and G gripper columns, the gripper a binary choice.

    Parameters of a step stand together: arm output k * A + a, gripper output k * G + g.
    """

    def __init__(
        self, hidden_width: int, action: ActionSpec, chunk: int, widths: Sequence[int], arm_parameters: int = 1
    ) -> None:
        super().__init__()
        if chunk < 1:
            raise ValueError(f"a chunk of {chunk} actions; expected 1 or more")
        self.chunk = chunk
        self.arm_width = action.arm_width
        self.gripper_width = action.gripper_width
        self.actions = Perceptron(hidden_width, widths, chunk * arm_parameters)
        self.gripper = Perceptron(hidden_width, widths, chunk * self.gripper_width) if self.gripper_width else None

    def gripper_logit(self, hidden: Float[Tensor, "*batch hidden"]) -> Float[Tensor, "*batch chunk gripper"]:
        """Closed where positive; width 0 without a binary gripper."""
        if self.gripper is None:
            return hidden.new_zeros((*hidden.shape[:-1], self.chunk, 0))
        return rearrange(self.gripper(hidden), "... (k g) -> ... k g", k=self.chunk)


class RegressionHead(ActionHead):
    """tanh arm and gripper logits, trained with Huber and binary cross-entropy: RoboVLMs' head."""

    def __init__(self, hidden_width: int, action: ActionSpec, chunk: int, widths: Sequence[int]) -> None:
        super().__init__(hidden_width, action, chunk, widths, arm_parameters=action.arm_width)

    def forward(self, hidden: Float[Tensor, "*batch hidden"]) -> Chunk:
        """The chunk at each hidden vector."""
        arm = rearrange(torch.tanh(self.actions(hidden)), "... (k a) -> ... k a", k=self.chunk)
        return Chunk(arm=arm, gripper_logit=self.gripper_logit(hidden))

    def loss(
        self,
        chunk: Chunk,
        target: Float[Tensor, "*batch chunk action"],
        action_valid: Bool[Tensor, "*mask"] | None = None,
        *,
        gripper_weight: float = 0.01,
        huber_delta: float = 1.0,
        arm_weights: Sequence[float] = (),
    ) -> dict[str, Tensor]:
        """`action_loss`."""
        return action_loss(chunk, target, action_valid, gripper_weight, huber_delta, arm_weights)


class GaussianMixtureHead(ActionHead):
    """A mixture of diagonal Gaussians over each action, as in robomimic's BC-RNN-GMM.

    Means are bounded by tanh, deviations by softplus over a floor. The decoded action is the mean of the most probable
    mode: robomimic's low-noise evaluation with neither its noise nor its random choice of a mode.
    """

    def __init__(
        self,
        hidden_width: int,
        action: ActionSpec,
        chunk: int,
        widths: Sequence[int],
        modes: int = 5,
        min_std: float = 1e-2,
    ) -> None:
        if modes < 1 or not min_std > 0:
            raise ValueError(
                f"gmm with {modes} modes and a least deviation of {min_std}; expected 1 or more, and above 0"
            )
        super().__init__(hidden_width, action, chunk, widths, arm_parameters=modes * (2 * action.arm_width + 1))
        self.modes = modes
        self.min_std = min_std

    def forward(self, hidden: Float[Tensor, "*batch hidden"]) -> Chunk:
        """The chunk at each hidden vector; `raw` holds logits (.., K, M), means and stds (.., K, M, A)."""
        parameters = rearrange(self.actions(hidden), "... (k m p) -> ... k m p", k=self.chunk, m=self.modes)
        logits = parameters[..., 0]
        means = torch.tanh(parameters[..., 1 : 1 + self.arm_width])
        stds = functional.softplus(parameters[..., 1 + self.arm_width :]) + self.min_std
        best = logits.argmax(dim=-1)[..., None, None].expand(*means.shape[:-2], 1, self.arm_width)
        return Chunk(
            arm=means.gather(-2, best).squeeze(-2),
            gripper_logit=self.gripper_logit(hidden),
            raw={"logits": logits, "means": means, "stds": stds},
        )

    def loss(
        self,
        chunk: Chunk,
        target: Float[Tensor, "*batch chunk action"],
        action_valid: Bool[Tensor, "*mask"] | None = None,
        *,
        gripper_weight: float = 0.01,
        huber_delta: float = 1.0,
        arm_weights: Sequence[float] = (),
    ) -> dict[str, Tensor]:
        """Negative log likelihood of the arm [nats per action], and the gripper's cross-entropy.

        `huber_delta` has no meaning here; `arm_weights` scale each dimension's share of the log likelihood.
        """
        arm_target, label, valid = split_target(chunk, target, action_valid)
        logits, means, stds = (
            torch.where(valid if raw.dim() == valid.dim() else valid[..., None], raw.float(), 1.0)
            for raw in (chunk.raw["logits"], chunk.raw["means"], chunk.raw["stds"])
        )
        deviation = (arm_target[..., None, :] - means) / stds
        density = -0.5 * deviation.square() - stds.log() - 0.5 * log(2 * pi)
        density = weigh_columns(density, arm_weights).sum(dim=-1)
        likelihood = torch.logsumexp(functional.log_softmax(logits, dim=-1) + density, dim=-1)
        return _composed(masked_mean(-likelihood, valid[..., 0]), chunk, label, valid, gripper_weight)


class DiscreteHead(ActionHead):
    """Each arm column one of 256 bins over [-1, 1], trained with cross-entropy, decoded to the bin's centre."""

    def __init__(
        self, hidden_width: int, action: ActionSpec, chunk: int, widths: Sequence[int], bins: int = 256
    ) -> None:
        if bins < 2:
            raise ValueError(f"discrete with {bins} bins; expected 2 or more")
        super().__init__(hidden_width, action, chunk, widths, arm_parameters=action.arm_width * bins)
        self.bins = bins

    def forward(self, hidden: Float[Tensor, "*batch hidden"]) -> Chunk:
        """The chunk at each hidden vector; `raw` holds logits (.., K, A, bins)."""
        logits = rearrange(self.actions(hidden), "... (k a b) -> ... k a b", k=self.chunk, b=self.bins)
        centre = (2 * logits.argmax(dim=-1) + 1).to(logits.dtype) / self.bins - 1
        return Chunk(arm=centre, gripper_logit=self.gripper_logit(hidden), raw={"logits": logits})

    def loss(
        self,
        chunk: Chunk,
        target: Float[Tensor, "*batch chunk action"],
        action_valid: Bool[Tensor, "*mask"] | None = None,
        *,
        gripper_weight: float = 0.01,
        huber_delta: float = 1.0,
        arm_weights: Sequence[float] = (),
    ) -> dict[str, Tensor]:
        """Cross-entropy of the arm's bins [nats per column], and the gripper's cross-entropy.

        Targets outside [-1, 1] belong to the outermost bins. `huber_delta` has no meaning here.
        """
        arm_target, label, valid = split_target(chunk, target, action_valid)
        logits = torch.where(valid[..., None], chunk.raw["logits"].float(), 0.0)
        bin_index = ((arm_target + 1) * (self.bins / 2)).long().clamp(0, self.bins - 1)
        entropy = -functional.log_softmax(logits, dim=-1).gather(-1, bin_index[..., None]).squeeze(-1)
        entropy = weigh_columns(entropy, arm_weights)
        return _composed(masked_mean(entropy, valid), chunk, label, valid, gripper_weight)


HEADS: dict[str, type[RegressionHead] | type[GaussianMixtureHead] | type[DiscreteHead]] = {
    "regression": RegressionHead,
    "gmm": GaussianMixtureHead,
    "discrete": DiscreteHead,
}


def make_action_head(
    kind: str,
    hidden_width: int,
    action: ActionSpec,
    chunk: int,
    widths: Sequence[int] = (1024, 512, 256),
    **options: Any,
) -> RegressionHead | GaussianMixtureHead | DiscreteHead:
    """The action head of this kind.

    Args:
        kind: `regression`, `gmm` (option `modes`, `min_std`) or `discrete` (option `bins`).
        hidden_width: width of the memory's output.
        action: which columns are arm and which gripper.
        chunk: K, actions per hidden vector.
        widths: hidden widths of the perceptrons.
        options: of the kind.
    """
    if kind not in HEADS:
        raise ValueError(f"action head {kind!r} is unknown; choose one of {', '.join(HEADS)}")
    return HEADS[kind](hidden_width, action, chunk, widths, **options)


def _composed(loss_arm: Tensor, chunk: Chunk, label: Tensor, valid: Tensor, gripper_weight: float) -> dict[str, Tensor]:
    loss_gripper, accuracy = gripper_terms(chunk, label, valid)
    return {
        "loss": loss_arm + gripper_weight * loss_gripper,
        "loss_arm": loss_arm,
        "loss_gripper": loss_gripper,
        "gripper_accuracy": accuracy,
    }
