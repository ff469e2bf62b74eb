"""A policy as one folder: weights and statistics as safetensors, the rest as JSON and YAML; nothing is unpickled.

policy.safetensors   weights, and the normalizers' buffers
policy.json          format version, action spec, observation keys, vocabulary, provenance
config.yaml          the resolved experiment
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file, save

from robopolicy.config import config_from_dict, config_to_dict
from robopolicy.files import write_file
from robopolicy.model.packed import Precision
from robopolicy.model.policy import ChunkPolicy
from robopolicy.model.text import Vocabulary
from robopolicy.types import ActionSpec, ArraySpec

FORMAT = 1
"""Version of the folder's layout; raised when an older reader could no longer understand it."""

WEIGHTS, DESCRIPTION, CONFIG = "policy.safetensors", "policy.json", "config.yaml"


class CheckpointError(ValueError):
    """A run folder that can't be read as a policy; the message is one line."""


def save_policy(policy: ChunkPolicy, folder: str | Path, provenance: Mapping[str, Any] | None = None) -> Path:
    """Write a policy into a run folder; each file is complete or absent at any moment, the weights come last.

    Args:
        policy: what to keep.
        folder: made if it doesn't exist; earlier files of a policy are replaced.
        provenance: JSON-ready facts of where it came from: demo files, seeds, task, control_dt, renderer, versions.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    description = {
        "format": FORMAT,
        "action_spec": policy.action_spec.to_dict(),
        "obs": _specs_to_dict(policy.obs),
        "targets": _specs_to_dict(policy.targets),
        "vocabulary": None
        if policy.vocabulary is None
        else {
            "words": list(policy.vocabulary.words),
            "length": policy.vocabulary.length,
            "weights": list(policy.vocabulary.weights),
        },
        "provenance": dict(provenance or {}),
    }
    config = yaml.safe_dump(config_to_dict(policy.config), sort_keys=False)
    tensors = {
        name: tensor.detach().contiguous().cpu()
        for name, tensor in policy.state_dict().items()
        if not name.startswith("contributed_terms.")
    }
    write_file(folder / CONFIG, config)
    write_file(folder / DESCRIPTION, json.dumps(description, indent=1))
    write_file(folder / WEIGHTS, save(tensors))
    return folder


def load_policy(
    folder: str | Path, device: str | torch.device = "cpu", precision: Precision = "float32"
) -> ChunkPolicy:
    """The policy that `save_policy` wrote, in eval mode.

    Args:
        folder: a run folder.
        device: where it shall run.
        precision: arithmetic of its steps on the CPU: `float32` (exact), `bf16` or `int8`; see `PolicyHead.precision`.

    Raises:
        CheckpointError: the folder or one of its files is missing, of another format version, or doesn't fit together.
        ValueError: the precision is not known, this CPU can't compute in it, or the device is no CPU.
    """
    if precision != "float32" and torch.device(device).type != "cpu":
        raise ValueError(f"precision {precision} is for steps on the CPU; with device {device} leave it out")
    folder = Path(folder)
    description = _description(folder)
    for name in (CONFIG, WEIGHTS):
        _require_file(folder, name)
    config = config_from_dict(yaml.safe_load((folder / CONFIG).read_text()), source=str(folder / CONFIG))
    vocabulary = description["vocabulary"]
    policy = ChunkPolicy(
        config,
        ActionSpec.from_dict(description["action_spec"]),
        _specs_from_dict(description["obs"]),
        Vocabulary(tuple(vocabulary["words"]), vocabulary["length"], tuple(vocabulary.get("weights", ())))
        if vocabulary
        else None,
        targets=_specs_from_dict(description["targets"]),
    )
    try:
        policy.load_state_dict(load_file(folder / WEIGHTS))
    except Exception as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(
            f"{folder / WEIGHTS}: doesn't fit {CONFIG} and {DESCRIPTION} beside it: {reason}"
        ) from error
    policy.head.precision = precision
    return policy.to(device).eval()


def read_provenance(folder: str | Path) -> dict[str, Any]:
    """Where the policy came from, as `save_policy` was told."""
    return dict(_description(Path(folder))["provenance"])


def _description(folder: Path) -> dict[str, Any]:
    _require_file(folder, DESCRIPTION)
    try:
        description = json.loads((folder / DESCRIPTION).read_text())
    except ValueError as error:
        raise CheckpointError(
            f"{folder / DESCRIPTION}: no valid JSON ({error}); the folder is damaged, train again"
        ) from error
    found = description.get("format") if isinstance(description, dict) else None
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


def _specs_to_dict(specs: Mapping[str, ArraySpec]) -> dict[str, Any]:
    return {key: {"shape": list(spec.shape), "dtype": spec.dtype} for key, spec in specs.items()}


def _specs_from_dict(specs: Mapping[str, Any]) -> dict[str, ArraySpec]:
    return {key: ArraySpec(tuple(spec["shape"]), spec["dtype"]) for key, spec in specs.items()}
