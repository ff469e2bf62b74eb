"""A mixture of Gaussians over each action, as in robomimic's BC-RNN-GMM."""

from dataclasses import dataclass
from math import log, pi
from typing import ClassVar, NamedTuple

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional

from robopolicy.components import option, register
from robopolicy.model.action_heads.base import BoundedOptions, PerceptronHead
from robopolicy.model.losses import masked_mean, weigh_columns
from robopolicy.types import ActionSpec


@dataclass(frozen=True)
class GaussianMixtureOptions(BoundedOptions):
    """Options of the action head `gmm`."""

    modes: int = option(5, ">= 1")
    """M, components of the mixture."""
    min_std: float = option(0.01, "> 0")
    """Smallest standard deviation of a component, in normalized action units."""
    temperature: float = option(1.0, "> 0")
    """When sampling: mode logits are divided by it and standard deviations multiplied by its square root."""


class Mixture(NamedTuple):
    """Parameters of the mixture at each step of a chunk."""

    logits: Tensor
    """(*B, K, M)."""
    means: Tensor
    """(*B, K, M, A), in [-1, 1] with `bound: tanh`."""
    stds: Tensor
    """(*B, K, M, A), at least `min_std`."""


@register("action_head", "gmm", GaussianMixtureOptions)
class GaussianMixtureHead(PerceptronHead):
    """A mixture of diagonal Gaussians over each action, trained by maximum likelihood.

    Standard deviations are `min_std` plus a softplus. Without a generator the decoded action is the mean of the most probable
    mode; robomimic's low-noise evaluation draws the mode at random and adds a little noise.
    """

    samples: ClassVar[bool] = True

    def __init__(self, options: GaussianMixtureOptions, hidden_width: int, action: ActionSpec) -> None:
        super().__init__(options, hidden_width, action, arm_outputs=options.modes * (2 * action.arm_width + 1))
        self.options = options

    def mixture(self, hidden: Tensor) -> Mixture:
        """The mixture at each step of the chunk at each hidden vector (*B, H)."""
        parameters = rearrange(self.actions(hidden), "... (k m p) -> ... k m p", k=self.chunk, m=self.options.modes)
        means = self.options.squashed(parameters[..., 1 : 1 + self.arm_width])
        stds = functional.softplus(parameters[..., 1 + self.arm_width :]) + self.options.min_std
        return Mixture(parameters[..., 0], means, stds)

    def arm_loss(self, hidden: Tensor, labels: Tensor, valid: Tensor, drawn: Tensor) -> Tensor:
        """Mean negative log likelihood per valid action [nats]; `arm_weights` scale each column's log density."""
        mixture = self.mixture(hidden)
        logits = torch.where(valid, mixture.logits.float(), 1.0)
        means = torch.where(valid[..., None], mixture.means.float(), 1.0)
        stds = torch.where(valid[..., None], mixture.stds.float(), 1.0)
        offset = (labels[..., None, :] - means) / stds
        log_density = -0.5 * offset.square() - stds.log() - 0.5 * log(2 * pi)
        log_density = weigh_columns(log_density, self.arm_weights).sum(dim=-1)
        log_likelihood = torch.logsumexp(functional.log_softmax(logits, dim=-1) + log_density, dim=-1)
        return masked_mean(-log_likelihood, valid[..., 0])

    def decode_arm(self, hidden: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """See `PerceptronHead`."""
        logits, means, stds = self.mixture(hidden)
        if generator is None:
            return _select(means, logits.argmax(dim=-1)).clamp(-1, 1)
        temperature = self.options.temperature
        probabilities = functional.softmax(logits / temperature, dim=-1)
        mode = torch.multinomial(probabilities.reshape(-1, self.options.modes), 1, generator=generator)
        mode = mode.reshape(logits.shape[:-1])
        mean, std = _select(means, mode), _select(stds, mode)
        noise = torch.randn(mean.shape, generator=generator, device=mean.device, dtype=mean.dtype)
        return (mean + temperature**0.5 * std * noise).clamp(-1, 1)


def _select(values: Tensor, mode: Tensor) -> Tensor:
    """The values (*B, K, A) of one mode (*B, K) per step, out of (*B, K, M, A)."""
    index = mode[..., None, None].expand(*values.shape[:-2], 1, values.shape[-1])
    return values.gather(-2, index).squeeze(-2)
