"""The action head `flow`: conditional flow matching, which samples chunks from a distribution with several modes.

Sources: Lipman et al. 2023 (arXiv 2210.02747) for flow matching, pi0 (arXiv 2410.24164) for the distribution of training
times, real-time chunking (arXiv 2506.07339) for the guided inpainting of a prefix.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from robopolicy.arrays import soft_mask
from robopolicy.components import option, register
from robopolicy.model.action_heads.base import HeadOptions, PerceptronHead, is_committed
from robopolicy.model.losses import masked_mean, weigh_columns
from robopolicy.types import ActionSpec, Chunk

ACTION_STD = 0.5
"""Standard deviation of normalized actions that the scaling of the network's input assumes."""
TIME_POWER = 1.5
"""Exponent of the spacing of integration times. Above 1, steps are shorter towards the end, where narrow distributions form."""
FIXED_NOISE_STD = 0.3
"""Standard deviation of the noise that is used without a generator. It is less than 1, so that the flow ends near the middle of
a mode. It is not 0, since a flow that starts midway between two modes may end between them."""
FREQUENCIES = 8
"""Number of sines, and of cosines, that encode the time. Their frequencies are low, 1/8 to 1 period over the whole flow, since
the flow is smooth in time."""


@dataclass(frozen=True)
class FlowOptions(HeadOptions):
    """Options of the action head `flow`."""

    steps: int = option(4, ">= 1")
    """Integration steps from noise to the chunk; `--flow-steps` changes it after training."""
    solver: Literal["euler", "midpoint"] = "midpoint"
    """euler evaluates the network once per step, midpoint twice."""
    times: Literal["beta", "uniform"] = "beta"
    """Distribution of the training times: beta (1 - Beta(1.5, 1), which favors noise) or uniform."""
    draws: int = option(4, ">= 1")
    """Pairs of noise and time per hidden vector in the loss."""
    width: int = option(256, ">= 1")
    """Width of the network that predicts the velocity."""
    layers: int = option(3, ">= 1")
    """Residual layers of that network."""
    guidance: float = option(5.0, ">= 0")
    """Largest weight of the guidance towards a prefix (beta of the paper), for a head that was not trained with prefixes."""


class VelocityNetwork(nn.Module):
    """A residual perceptron over the whole chunk, modulated (FiLM) by the hidden vector and the time.

    It predicts the chunk at the end of the flow; the velocity is (end - chunk) / (1 - time). The last layer predicts a
    correction, scaled to unit variance, to the end that would be expected if actions were normally distributed (the
    preconditioning of Karras et al. 2022).

    Args:
        hidden_width: H.
        outputs: K * A, columns of the flattened chunk.
        options: sizes.
    """

    def __init__(self, hidden_width: int, outputs: int, options: FlowOptions) -> None:
        super().__init__()
        width = options.width
        self.condition = nn.Linear(hidden_width, width)
        self.time = nn.Linear(2 * FREQUENCIES, width)
        self.input = nn.Linear(outputs, width)
        self.modulation = nn.ModuleList(nn.Linear(width, 2 * width) for _ in range(options.layers))
        self.inner = nn.ModuleList(nn.Linear(width, width) for _ in range(options.layers))
        self.outer = nn.ModuleList(nn.Linear(width, width) for _ in range(options.layers))
        self.output = nn.Linear(width, outputs)
        self.register_buffer("frequencies", torch.pi * 2.0 ** torch.linspace(-2, 1, FREQUENCIES), persistent=False)

    def modulations(self, hidden: Tensor, time: Tensor) -> list[Tensor]:
        """Scale and shift of each layer, (..., 2 * width), for hidden vectors (*B, H) at times (..., 1)."""
        angles = time * cast(Tensor, self.frequencies)
        context = self.condition(hidden) + self.time(torch.cat([angles.sin(), angles.cos()], dim=-1))
        context = functional.silu(context)
        return [layer(context) for layer in self.modulation]

    def forward(self, flat: Tensor, time: Tensor | float, modulations: Sequence[Tensor]) -> Tensor:
        """The expected demonstrated chunk (*B, K * A) given a noisy one.

        Args:
            flat: (*B, K * A), the flattened noisy chunk.
            time: (*B, 1), or one number for all chunks.
            modulations: the result of `modulations` for these times.
        """
        deviation, spread = _deviations(time)
        features = self.input(flat / deviation)
        for modulation, inner, outer in zip(modulations, self.inner, self.outer, strict=True):
            scale, shift = modulation.chunk(2, dim=-1)
            modulated = inner(functional.layer_norm(features, features.shape[-1:])) * (1 + scale) + shift
            features = features + outer(functional.silu(modulated))
        correction = self.output(functional.layer_norm(features, features.shape[-1:]))
        return (time * (ACTION_STD / deviation) ** 2) * flat + spread * correction


@register("action_head", "flow", FlowOptions)
class FlowHead(PerceptronHead):
    """The arm's chunk is the end of a flow from Gaussian noise; the gripper has logits, as in the other heads.

    In training, the noisy chunk at time t is the point at t on the straight line from noise (t = 0) to the demonstrated chunk
    (t = 1). The network learns to predict the demonstrated chunk; its squared errors are divided by the variance of the
    demonstrated chunk given the noisy one.

    Without a generator the noise is `fixed_noise`, one draw with a small standard deviation that is the same for every hidden
    vector, so that the chunk is near the mean of one mode.

    A head trained with prefixes (`prefix` > 0) is conditioned on the prefix. A head trained without is guided: at each
    evaluation of the network, a gradient through it pulls the chunk towards the prefix. In both cases the chunk begins with
    exactly the prefix. With `frozen`, a guided head keeps only that many rows exactly; the others pull the chunk with weights
    that decrease towards the end of the prefix.
    """

    samples: ClassVar[bool] = True
    fixed_noise: Tensor

    def __init__(self, options: FlowOptions, hidden_width: int, action: ActionSpec) -> None:
        super().__init__(options, hidden_width, action, arm_outputs=0)
        self.uses_prefix, self.guided = True, self.prefix is None
        self.steps, self.solver, self.times = options.steps, options.solver, options.times
        self.draws, self.guidance = options.draws, options.guidance
        self.uniforms = options.draws * (1 + options.chunk * action.arm_width)
        self.network = VelocityNetwork(hidden_width, options.chunk * action.arm_width, options)
        # In a tuple, so that it is not a submodule and `freeze` does not pack it: guidance needs gradients.
        self._differentiable = (self.network,)
        generator = torch.Generator().manual_seed(0)
        noise = FIXED_NOISE_STD * torch.randn(options.chunk, action.arm_width, generator=generator)
        self.register_buffer("fixed_noise", noise, persistent=False)

    def arm_loss(self, hidden: Tensor, labels: Tensor, valid: Tensor, drawn: Tensor) -> Tensor:
        """Mean squared error of the predicted end of the flow over its variance, per valid column; `drawn`: times and noise."""
        shape = (self.draws, *labels.shape)
        drawn = drawn.unflatten(-1, (self.draws, -1)).movedim(-2, 0)
        time = drawn[..., :1]
        if self.times == "beta":
            time = 1 - time ** (2 / 3)  # u ** (2 / 3) has the distribution Beta(1.5, 1) if u is uniform
        time = time.clamp(max=0.999)  # at time 1 the variance that divides the error is 0
        # torch.rand can give 0, of which the inverse normal distribution function is infinite.
        noise = torch.special.ndtri(drawn[..., 1:].clamp(1e-7, 1 - 1e-7))
        clean = labels.flatten(-2).expand(*shape[:-2], -1)
        noisy = (1 - time) * noise + time * clean
        end = self.network(noisy, time, self.network.modulations(hidden, time)).float()
        error = ((end - clean) / _deviations(time)[1]).square().unflatten(-1, labels.shape[-2:])
        return masked_mean(weigh_columns(error, self.arm_weights), valid)

    def decode(
        self,
        hidden: Float[Tensor, "*batch hidden"],
        *,
        generator: torch.Generator | None = None,
        prefix: Tensor | None = None,
        frozen: int | None = None,
        noise: Tensor | None = None,
    ) -> Chunk:
        """See `ActionHead`.

        Args:
            hidden: (*B, H).
            generator: source of the noise; None: `fixed_noise`.
            prefix: (*B, k, A+G), rows of NaN where an episode has no action.
            frozen: number of prefix rows that are kept exactly, for a head that is `guided`; None: all.
            noise: (*B, K, A) standard normal, instead of a generator; what an exported graph takes.
        """
        self.check_prefix(hidden, prefix)
        context = self.with_prefix(hidden, prefix)
        shape = (*hidden.shape[:-1], self.chunk, self.arm_width)
        if noise is None:
            noise = self.fixed_noise.expand(shape)
            if generator is not None:
                noise = torch.randn(shape, generator=generator, device=hidden.device, dtype=noise.dtype)
        goal = None
        if prefix is not None and self.guided and prefix.shape[-2]:
            goal = self._goal(prefix, prefix.shape[-2] if frozen is None else frozen)
        chunk = Chunk(arm=self.integrate(context, noise, goal), gripper_logit=self.gripper_logit(context))
        return self.keep_prefix(chunk, prefix if prefix is None or frozen is None else prefix[..., :frozen, :])

    def integrate(self, hidden: Tensor, noise: Tensor, goal: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """Arm columns (*B, K, A) in [-1, 1] at the end of the flow that starts at `noise` (*B, K, A).

        Args:
            hidden: (*B, H).
            noise: standard normal.
            goal: chunk (*B, K * A) that the flow is guided towards, and the weight (*B, K * A) of each entry.
        """
        borders = [1 - (1 - step / self.steps) ** TIME_POWER for step in range(self.steps + 1)]
        midpoint = self.solver == "midpoint"
        times: list[float] = []
        for time, after in itertools.pairwise(borders):
            times += [time, (time + after) / 2] if midpoint else [time]
        # The modulations of all times in one call, which reads their weights once instead of once per time.
        stacked = hidden.new_tensor(times).reshape(-1, *(1,) * hidden.dim())
        modulations = self.network.modulations(hidden, stacked)

        def velocity(flat: Tensor, place: int) -> Tensor:
            now = [layer[place] for layer in modulations]
            if goal is None:
                return (self.network(flat, times[place], now) - flat) / (1 - times[place])
            return self._guided(flat, times[place], now, *goal)

        flat = noise.flatten(-2)
        for step, (time, after) in enumerate(itertools.pairwise(borders)):
            size = after - time
            slope = velocity(flat, 2 * step if midpoint else step)
            if midpoint:
                slope = velocity(flat + size / 2 * slope, 2 * step + 1)
            flat = flat + size * slope
        return flat.unflatten(-1, noise.shape[-2:]).clamp(-1, 1)

    def _goal(self, prefix: Tensor, frozen: int) -> tuple[Tensor, Tensor]:
        """Goal of the guidance, and the weight of each entry, both (*B, K * A)."""
        missing = self.chunk - prefix.shape[-2]
        padded = functional.pad(prefix, (0, 0, 0, missing), value=torch.nan)
        committed = is_committed(padded)
        known = committed.squeeze(-1).to(prefix.dtype)
        place = torch.arange(self.chunk, device=prefix.device, dtype=prefix.dtype)
        weight = (soft_mask(place, known.sum(dim=-1, keepdim=True), frozen) * known)[..., None]
        desired = torch.where(committed, padded[..., : self.arm_width], 0.0)
        return desired.flatten(-2), weight.expand_as(desired).flatten(-2)

    def _guided(self, flat: Tensor, time: float, modulations: Sequence[Tensor], goal: Tensor, weight: Tensor) -> Tensor:
        """The velocity plus real-time chunking's guidance: the gradient of the predicted chunk's agreement with `goal`."""
        with torch.inference_mode(False), torch.enable_grad():
            start = flat.detach().clone().requires_grad_()
            end = self._differentiable[0](start, time, [layer.detach().clone() for layer in modulations])
            missing = weight.clone() * (goal.clone() - end.detach())
            (pull,) = torch.autograd.grad(end, start, missing)
        strength = self.guidance
        if time > 0:
            strength = min(strength, (time**2 + (1 - time) ** 2) / (time * (1 - time)))
        return (end.detach() - flat) / (1 - time) + strength * pull


def _deviations(time: Any) -> tuple[Any, Any]:
    """Standard deviation of a noisy chunk, and of the flow's end given that chunk, for normally distributed actions.

    The demonstrated actions are taken to have the standard deviation `ACTION_STD`.
    """
    deviation = ((time * ACTION_STD) ** 2 + (1 - time) ** 2) ** 0.5
    return deviation, ACTION_STD * (1 - time) / deviation
