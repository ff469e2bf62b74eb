"""Builds an untrained policy from an experiment's config and the facts about its demos."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from robopolicy.components import build, values_of
from robopolicy.control.execution import require_supported
from robopolicy.experiment.config import ExperimentConfig, NormalizationConfig
from robopolicy.model.encoders import EncoderInputs
from robopolicy.model.normalization import ActionNormalizer, KeyScaling
from robopolicy.model.policy import ChunkPolicy
from robopolicy.model.policy_head import PolicyHead
from robopolicy.model.rotation_math import action_rotations
from robopolicy.model.statistics import Statistics
from robopolicy.model.texts import TextInputs, Vocabulary
from robopolicy.types import ActionSpec, ArraySpec, PolicySpec

PUBLIC_PROVENANCE = ("task", "control_dt", "renderer", "gripper_opens", "versions")
"""Parts of a policy's provenance that a server may publish: no path, no seed."""


@dataclass(frozen=True)
class DemoFacts:
    """The facts about the demos that a policy is built from, beside the config."""

    action: ActionSpec
    """The columns of the action rows."""
    observation: Mapping[str, ArraySpec]
    """Every key that the policy reads, with the shape and type of one frame."""
    vocabulary: Vocabulary | None = None
    """Words of the training instructions; None where there are no instructions."""
    obs_statistics: Mapping[str, Statistics] | None = None
    """Statistics of each low-dimensional key, from the training split; None when weights are loaded afterwards."""
    action_statistics: Statistics | None = None
    """Statistics of the action rows, from the training split; None when weights are loaded afterwards."""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """Where the demos come from."""


def build_policy(config: ExperimentConfig, facts: DemoFacts) -> ChunkPolicy:
    """An untrained policy of this config for these demos.

    Raises:
        ConfigError: a component can't use the demos' keys.
    """
    keys = key_scaling(config.normalization, facts.observation, facts.obs_statistics)
    actions = action_normalizer(config.normalization, facts.action, facts.action_statistics)
    text = None
    if facts.vocabulary is not None:
        inputs = TextInputs(facts.vocabulary, config.text_width, getattr(config.encoder, "model", None))
        text = build(config.text, inputs)
    words = (config.text_width, text.token_count) if text is not None else (None, 0)
    statistics = facts.obs_statistics and {key: each.coded or each for key, each in facts.obs_statistics.items()}
    encoder = build(config.encoder, EncoderInputs(keys.scaled_specs, *words, statistics, keys.units))
    head = PolicyHead(
        encoder.token_width,
        actions.learned_spec,
        pooling=config.pooling,
        memory=config.memory,
        action_head=config.action_head,
    )
    part = head.action_head
    rate_hz, provenance = facts.action.rate_hz, facts.provenance
    spec = PolicySpec(
        observation={key: spec if spec.is_image else ArraySpec(spec.shape) for key, spec in facts.observation.items()},
        action=facts.action,
        chunk=config.action_head.chunk,
        window=config.window,
        history=config.history,
        instruction=text is not None,
        frame_stride=config.data.frame_stride,
        control_dt=provenance.get("control_dt") or (1.0 / rate_hz if rate_hz else None),
        samples=part.samples,
        prefix=getattr(part, "max_prefix", config.action_head.chunk) if part.uses_prefix else 0,
        execution=values_of(config.execution),
        provenance={key: provenance[key] for key in PUBLIC_PROVENANCE if key in provenance},
    )
    if spec.control_dt is not None:
        require_supported(spec, config.execution, spec.control_dt)
    policy = ChunkPolicy(spec, keys, actions, text, encoder, head)
    policy.config, policy.vocabulary = config, facts.vocabulary
    return policy


def key_scaling(
    scaling: NormalizationConfig, specs: Mapping[str, ArraySpec], statistics: Mapping[str, Statistics] | None
) -> KeyScaling:
    """The scaling of observation keys."""
    return KeyScaling(specs, statistics, scaling.obs, scaling.rotation, scaling.rotations)


def action_normalizer(
    scaling: NormalizationConfig, spec: ActionSpec, statistics: Statistics | None
) -> ActionNormalizer:
    """The map between action rows and action targets."""
    rotations = action_rotations(spec, scaling.rotation, scaling.rotations)
    return ActionNormalizer(spec, statistics, rotations, scaling.rotation, scaling.action == "common")
