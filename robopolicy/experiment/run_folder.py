"""A policy as one folder: weights and statistics as safetensors, the rest as JSON and YAML; nothing is unpickled.

policy.safetensors   weights, and the normalizers' buffers
policy.json          format version, action spec, observation keys, vocabulary, components, provenance
config.yaml          the resolved experiment
README.md            the same for people
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, overload

import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file, save

from robopolicy.components import ConfigError, component_of, load_plugins, origin_of
from robopolicy.control import runtime
from robopolicy.experiment.backbone import AUTO, LivePolicy, bind_backbone
from robopolicy.experiment.building import DemoFacts, build_policy
from robopolicy.experiment.config import COMPONENT_SECTIONS, ExperimentConfig
from robopolicy.experiment.model_card import CARD, model_card
from robopolicy.experiment.reading import config_from_dict, config_to_dict
from robopolicy.files import read_json, write_file
from robopolicy.model.encoders._tokens import FrameTokens
from robopolicy.model.packed import Precision
from robopolicy.model.policy import ChunkPolicy
from robopolicy.model.texts import Vocabulary
from robopolicy.options import read_yaml
from robopolicy.types import TOKENS_KEY, ActionSpec, ArraySpec, Policy, one_line

FORMAT = 2
"""Version of the folder's layout; raised when an older reader could no longer understand it."""

WEIGHTS, DESCRIPTION, CONFIG = "policy.safetensors", "policy.json", "config.yaml"
GROUPS = "groups"
"""Subfolder of a run that was trained on several robots; it has a run folder for each."""
BACKBONE = "backbone"
"""Folder of the backbone that belongs to the run alone, where there is one."""
TOKEN_ENCODER = "tokens.json"
"""File beside an exported graph that reads tokens; it tells which backbone makes them."""


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
    description = describe(policy, provenance)
    text = yaml.safe_dump(config_to_dict(policy.config), sort_keys=False)
    tensors = {name: tensor.detach().contiguous().cpu() for name, tensor in policy.state_dict().items()}
    write_file(folder / CONFIG, text)
    write_file(folder / CARD, model_card(policy, provenance or {}))
    write_file(folder / DESCRIPTION, json.dumps(description, indent=1))
    write_file(folder / WEIGHTS, save(tensors))
    return folder


def describe(policy: ChunkPolicy, provenance: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """What `policy.json` holds: with the config, all that `policy_of` needs to build the policy, without its weights."""
    vocabulary, config = policy.vocabulary, policy.config
    return {
        "format": FORMAT,
        "action_spec": policy.action_spec.to_dict(),
        "obs": {key: {"shape": list(spec.shape), "dtype": spec.dtype} for key, spec in policy.obs.items()},
        "vocabulary": None
        if vocabulary is None
        else {name: getattr(vocabulary, name) for name in ("words", "length", "weights", "longest")},
        "components": _origins(config, policy.head.action_head.loss_names),
        "provenance": dict(provenance or {}),
    }


def policy_of(description: Mapping[str, Any], config: ExperimentConfig, where: str = DESCRIPTION) -> ChunkPolicy:
    """The policy of a description, on the CPU; its weights and statistics are not set yet: load them next.

    Args:
        description: what `describe` returned.
        config: the experiment that made the policy.
        where: start of the message for a description that is not one.

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


@overload
def load_policy(
    folder: str | Path,
    backbone: None = None,
    device: str | torch.device = "cpu",
    precision: Precision | None = None,
    plugins: Iterable[str] = (),
    group: str | None = None,
    flow_steps: int | None = None,
) -> ChunkPolicy: ...


@overload
def load_policy(
    folder: str | Path,
    backbone: str | FrameTokens,
    device: str | torch.device = "cpu",
    precision: Precision | None = None,
    plugins: Iterable[str] = (),
    group: str | None = None,
    flow_steps: int | None = None,
) -> LivePolicy: ...


def load_policy(
    folder: str | Path,
    backbone: str | FrameTokens | None = None,
    device: str | torch.device = "cpu",
    precision: Precision | None = None,
    plugins: Iterable[str] = (),
    group: str | None = None,
    flow_steps: int | None = None,
) -> ChunkPolicy | LivePolicy:
    """The policy that `save_policy` wrote, in eval mode, ready to act.

    Args:
        folder: a run folder. Nothing that it names is imported.
        backbone: for a policy trained on encoded tokens, the backbone that made them: its folder or name, or `auto` for the
            one that the run folder records. The policy then reads images.
        device: where to run it, and the backbone.
        precision: arithmetic of its steps on the CPU: `float32` (exact, the default), `bf16` or `int8`.
        plugins: modules that register the components it needs, unless they are installed.
        group: of a run that was trained on several robots, which one.
        flow_steps: integration steps of the action head `flow`, instead of those of its config.

    Raises:
        CheckpointError: the folder or one of its files is missing, of another format version, or doesn't fit together.
        ConfigError: it needs a component that is neither built in, nor installed, nor in `plugins`; or the backbone is
            missing, or not the one that made the training tokens; or its action head takes no steps.
        ValueError: the precision is unknown, this CPU can't compute in it, or the device is not a CPU.
    """
    on_cpu = torch.device(device).type == "cpu"
    if precision is not None and not on_cpu:
        raise ValueError(f"precision {precision} is for steps on the CPU; with device {device} leave it out")
    load_plugins(plugins)
    folder = group_folder(folder, group)
    policy = read_policy(folder).to(device).eval()
    if flow_steps is not None:  # before `freeze`, which copies the head
        _set_flow_steps(policy, flow_steps)
    policy = policy.freeze(precision or "float32") if on_cpu else policy
    if backbone is None:
        return policy
    provenance = read_provenance(folder)
    if backbone == AUTO and (own := Path(folder) / BACKBONE).is_dir():
        backbone = str(own)
    prompted = _prompted(policy, provenance)
    return bind_backbone(policy, provenance.get("token_encoder"), backbone, prompted=prompted, device=device)


def open_policy(
    folder: str | Path,
    backbone: str | FrameTokens | None = None,
    device: str | torch.device = "cpu",
    precision: Precision | None = None,
    plugins: Iterable[str] = (),
    flow_steps: int | None = None,
    threads: int | None = None,
) -> Policy:
    """A policy to act with, from a run folder or an exported one; see `load_policy`.

    `threads` is the number that an exported policy computes with; None leaves it to onnxruntime.

    Raises:
        ExportError: an exported policy, whose precision and steps were chosen at its export, is asked for others.
    """
    if (Path(folder) / runtime.MANIFEST).is_file():
        runtime.require_as_exported(folder, precision or "float32", flow_steps)
        policy = runtime.load(folder, threads)
        if backbone is None:
            return policy
        recorded, prompted = _exported_token_encoder(Path(folder))
        return bind_backbone(policy, recorded, backbone, prompted=prompted, device=device)
    return load_policy(folder, backbone, device, precision, plugins, flow_steps=flow_steps)


def _set_flow_steps(policy: ChunkPolicy, steps: int) -> None:
    head = policy.head.action_head
    if not hasattr(head, "steps"):
        raise ConfigError(f"--flow-steps {steps} is for the action head flow; this policy has a {type(head).__name__}")
    if steps < 1:
        raise ConfigError(f"--flow-steps {steps}: expected 1 or more")
    head.steps = steps  # type: ignore[assignment]


def group_folder(folder: str | Path, group: str | None = None) -> Path:
    """The run folder of one robot of a run that was trained on several; of another run, the folder itself.

    Raises:
        CheckpointError: no group, or an unknown one, is named of a run that has groups; or one is named of a run without.
    """
    folder = Path(folder)
    groups = sorted(path.name for path in (folder / GROUPS).iterdir()) if (folder / GROUPS).is_dir() else []
    if group is None and not groups:
        return folder
    if group not in groups:
        found = "no group is given" if group is None else f"no group {group!r}"
        raise CheckpointError(
            f"{folder}: {found}; it has {', '.join(groups) or 'none'}" + ("; give --group NAME" if groups else "")
        )
    return folder / GROUPS / str(group)


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
    """Where the policy in a run folder or an exported one came from; an export holds only what may be shown to strangers."""
    folder = Path(folder)
    if (folder / runtime.MANIFEST).is_file():
        return dict(runtime.read_manifest(folder)["spec"]["provenance"])
    return dict(_description(folder)["provenance"])


def save_token_encoder(policy: ChunkPolicy, run: str | Path, folder: str | Path) -> Path | None:
    """Write `tokens.json` beside an exported graph: what makes its tokens. None for a policy that reads no tokens."""
    provenance = read_provenance(run)
    recorded = provenance.get("token_encoder")
    if TOKENS_KEY not in policy.obs or not recorded:
        return None
    path = Path(folder) / TOKEN_ENCODER
    write_file(path, json.dumps({"token_encoder": recorded, "prompted": _prompted(policy, provenance)}, indent=1))
    return path


def _require_shapes(folder: Path, description: Mapping[str, Any], config: ExperimentConfig) -> None:
    """Refuse a config that asks for other weights than the folder holds, before memory and time are taken for them."""
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
        raise CheckpointError(f"{where}: they describe no policy ({one_line(error)[:200]})") from error
    expected = {name: tuple(tensor.shape) for name, tensor in policy.state_dict().items()}
    if differing := {name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name)}:
        name = min(differing)
        raise CheckpointError(f"{where}: {name} has shape {found.get(name)}; they ask for {expected.get(name)}")


def _prompted(policy: ChunkPolicy, provenance: Mapping[str, Any]) -> bool:
    """Whether the backbone read instructions when it made the training tokens."""
    return bool(provenance.get("prompted", policy.vocabulary is not None))


def _exported_token_encoder(folder: Path) -> tuple[dict[str, Any] | None, bool]:
    """What `save_token_encoder` wrote beside a graph: the encoder's identity, and whether it reads instructions."""
    path = folder / TOKEN_ENCODER
    if not path.is_file():
        return None, False
    found = read_json(path, CheckpointError)
    try:
        return dict(found["token_encoder"]), bool(found["prompted"])
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: not as robopolicy writes it ({one_line(error)})") from error


def _origins(config: ExperimentConfig, own_losses: Iterable[str]) -> dict[str, dict[str, str]]:
    """Place in the config -> kind and origin of the component there; the action head's own losses are not components."""
    used = {section: (section, component_of(getattr(config, section)).kind) for section in COMPONENT_SECTIONS}
    used |= {f"losses.{name}": ("loss", name) for name in config.losses if name not in own_losses}
    used |= {f"augmentation.{name}": ("augmentation", name) for name in config.augmentation}
    if config.task is not None:
        used["task"] = ("task", config.task)
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
