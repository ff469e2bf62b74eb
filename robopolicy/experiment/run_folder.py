"""A policy as one folder: weights and statistics as safetensors, the rest as JSON and YAML; nothing is unpickled.

policy.safetensors   weights, and the normalizers' buffers
policy.json          format version, action spec, observation keys, vocabulary, components, provenance
config.yaml          the resolved experiment
README.md            a description for readers
"""

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file, save

from robopolicy.components import ConfigError, origin_of
from robopolicy.control import runtime
from robopolicy.experiment.building import DemoFacts, build_policy
from robopolicy.experiment.config import COMPONENT_SECTIONS, ExperimentConfig
from robopolicy.experiment.model_card import CARD, model_card
from robopolicy.experiment.reading import config_from_dict, config_to_dict
from robopolicy.files import read_json, write_file
from robopolicy.model.policy import ChunkPolicy
from robopolicy.model.texts import Vocabulary
from robopolicy.options import read_yaml
from robopolicy.types import ActionSpec, ArraySpec, one_line

FORMAT = 2
"""Version of the folder's layout; raised when an older reader could no longer understand it."""

WEIGHTS, DESCRIPTION, CONFIG = "policy.safetensors", "policy.json", "config.yaml"
GROUPS = "groups"
"""Subfolder of a run that was trained on several robots; it has a run folder for each."""
BACKBONE = "backbone"
"""Subfolder with the run's own backbone, if it has one."""


class CheckpointError(ValueError):
    """A run folder that can't be read as a policy; the message is one line."""


def save_policy(policy: ChunkPolicy, folder: str | Path, provenance: Mapping[str, Any] | None = None) -> Path:
    """Write a policy into a run folder; each file is complete or absent at any moment, the weights come last.

    Args:
        policy: the policy to save.
        folder: created if missing; earlier files of a policy are replaced.
        provenance: JSON-ready facts of where it came from: demo files, seeds, task, control_dt, renderer, versions.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.detach().contiguous().cpu() for name, tensor in policy.state_dict().items()}
    write_file(folder / CONFIG, yaml.safe_dump(config_to_dict(policy.config), sort_keys=False))
    write_file(folder / CARD, model_card(policy, provenance or {}))
    write_file(folder / DESCRIPTION, json.dumps(describe(policy, provenance), indent=1))
    write_file(folder / WEIGHTS, save(tensors))
    return folder


def describe(policy: ChunkPolicy, provenance: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The contents of `policy.json`: together with the config, what `policy_of` builds the policy from, weights excepted."""
    vocabulary = policy.vocabulary
    return {
        "format": FORMAT,
        "action_spec": policy.action_spec.to_dict(),
        "obs": {key: {"shape": list(spec.shape), "dtype": spec.dtype} for key, spec in policy.obs.items()},
        "vocabulary": None
        if vocabulary is None
        else {name: getattr(vocabulary, name) for name in ("words", "length", "weights", "longest")},
        "components": _origins(config_to_dict(policy.config), policy.head.action_head.loss_names),
        "provenance": dict(provenance or {}),
    }


def policy_of(description: Mapping[str, Any], config: ExperimentConfig, where: str = DESCRIPTION) -> ChunkPolicy:
    """The policy of a description, on the CPU; its weights and statistics are not set yet: load them next.

    Args:
        description: what `describe` returned.
        config: the experiment that made the policy.
        where: beginning of the error message for an invalid description.

    Raises:
        CheckpointError: the description is not as robopolicy writes it.
    """
    try:
        words = description["vocabulary"]
        facts = DemoFacts(
            action=ActionSpec.from_dict(description["action_spec"]),
            observation={key: ArraySpec(tuple(s["shape"]), s["dtype"]) for key, s in description["obs"].items()},
            vocabulary=Vocabulary(tuple(words["words"]), words["length"], tuple(words["weights"]), words["longest"])
            if words
            else None,
            provenance=dict(description["provenance"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{where}: not as robopolicy writes it ({one_line(error)})") from error
    return build_policy(config, facts)


def read_policy(folder: str | Path) -> ChunkPolicy:
    """The policy in a run folder, on the CPU, to be trained further."""
    folder = Path(folder)
    description, config = read_description(folder)
    if not needs_backbone(config):
        _require_shapes(folder, description, config)
    policy = policy_of(description, config, str(folder / DESCRIPTION))
    try:
        policy.load_state_dict(load_file(folder / WEIGHTS))
    except Exception as error:
        raise CheckpointError(
            f"{folder / WEIGHTS}: doesn't fit {CONFIG} and {DESCRIPTION} beside it: {one_line(error)}"
        ) from error
    return policy


def read_description(folder: Path) -> tuple[dict[str, Any], ExperimentConfig]:
    """The arguments of `policy_of` from a run folder; its weights must exist, but are not read.

    Raises:
        CheckpointError: a file is missing, damaged, or of another format version.
        ConfigError: the config holds an unknown option, or a component that is not installed.
    """
    description = _description(folder)
    for name in (CONFIG, WEIGHTS):
        _require_file(folder, name)
    return description, _read_config(folder, description)


def needs_backbone(config: ExperimentConfig) -> bool:
    """Whether building the policy loads a model that its folder only names."""
    return any(getattr(getattr(config, section), "model", None) for section in ("encoder", "text"))


def read_provenance(folder: str | Path) -> dict[str, Any]:
    """The provenance of the policy in a run folder or an exported one; an export holds only `PUBLIC_PROVENANCE`."""
    folder = Path(folder)
    if (folder / runtime.MANIFEST).is_file():
        return dict(runtime.read_manifest(folder)["spec"]["provenance"])
    return dict(_description(folder)["provenance"])


def _require_shapes(folder: Path, description: Mapping[str, Any], config: ExperimentConfig) -> None:
    """Refuse a config whose weights differ in shape from those in the folder, before memory is allocated for them."""
    where = f"{folder / WEIGHTS}: doesn't fit {CONFIG} and {DESCRIPTION} beside it"
    try:
        with safe_open(folder / WEIGHTS, "pt") as tensors:
            found = {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118
    except Exception as error:
        raise CheckpointError(f"{where}: not a safetensors file ({one_line(error)})") from error
    for section in COMPONENT_SECTIONS:
        for name in ("layers", "depth"):  # a million layers take minutes even without memory
            if (asked := getattr(getattr(config, section), name, 0)) > len(found):
                raise CheckpointError(f"{where}: {section}.{name} is {asked}, more than its {len(found)} tensors")
    try:
        with torch.device("meta"):  # shapes only
            policy = policy_of(description, config, str(folder / DESCRIPTION))
    except (CheckpointError, ConfigError):
        raise
    except Exception as error:  # torch raises many types for sizes that make no module
        raise CheckpointError(f"{where}: no policy can be built from them ({one_line(error)[:200]})") from error
    expected = {name: tuple(tensor.shape) for name, tensor in policy.state_dict().items()}
    if differing := {name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name)}:
        name = min(differing)
        raise CheckpointError(f"{where}: {name} has shape {found.get(name)}; they need {expected.get(name)}")


def _origins(config: Mapping[str, Any], own_losses: Collection[str]) -> dict[str, dict[str, str]]:
    """Place in the config -> kind and origin of the component there; the action head's own losses are not components."""
    used = {section: (section, config[section]["kind"]) for section in COMPONENT_SECTIONS}
    used |= {f"losses.{name}": ("loss", name) for name in config["losses"] if name not in own_losses}
    used |= {f"augmentation.{name}": ("augmentation", name) for name in config["augmentation"]}
    if config["task"] is not None:
        used["task"] = ("task", config["task"])
    return {place: {"kind": kind, "origin": origin_of(family, kind)} for place, (family, kind) in used.items()}


def _read_config(folder: Path, description: Mapping[str, Any]) -> ExperimentConfig:
    try:
        values = read_yaml(folder / CONFIG, aliases=False)
    except ConfigError as error:
        raise CheckpointError(str(error)) from error
    try:
        return config_from_dict(values, source=str(folder / CONFIG))
    except ConfigError as error:
        recorded = description.get("components")
        parts = [recorded.get(section) for section in COMPONENT_SECTIONS] if isinstance(recorded, Mapping) else ()
        foreign = sorted({str(part.get("origin")) for part in parts if isinstance(part, Mapping)} - {"robopolicy"})
        if not foreign:
            raise
        hint = (
            f"the run used components of {', '.join(foreign)}: install it, or name its module with --plugins "
            "(in Python plugins=[...])"
        )
        raise ConfigError(f"{error}; {hint}") from None


def _description(folder: Path) -> dict[str, Any]:
    _require_file(folder, DESCRIPTION)
    description = read_json(folder / DESCRIPTION, CheckpointError)
    found = description.get("format")
    if found != FORMAT:
        raise CheckpointError(
            f"{folder / DESCRIPTION}: format version {found}; this robopolicy reads {FORMAT}; "
            "use the version that wrote it, or train again"
        )
    return description


def _require_file(folder: Path, name: str) -> None:
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such run folder; give one that `robopolicy train` wrote")
    if not (folder / name).is_file():
        there = ", ".join(sorted(path.name for path in folder.iterdir())) or "nothing"
        raise CheckpointError(
            f"{folder}: no {name} in it. It has: {there}; give a folder that `robopolicy train` wrote"
        )
