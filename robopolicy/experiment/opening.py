"""Opening a policy to act with: from a run folder or an exported one, with its backbone in front where it needs one."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, overload

import torch

from robopolicy.components import ConfigError, load_plugins, require
from robopolicy.control import runtime
from robopolicy.experiment.backbone import AUTO, LivePolicy, bind_backbone
from robopolicy.experiment.run_folder import BACKBONE, GROUPS, CheckpointError, read_policy, read_provenance
from robopolicy.files import read_json, write_file
from robopolicy.model.encoders._tokens import FrameTokens
from robopolicy.model.packed import Precision
from robopolicy.model.policy import ChunkPolicy
from robopolicy.types import TOKENS_KEY, Policy, one_line

TOKEN_ENCODER = "tokens.json"
"""File beside an exported graph that reads tokens; it records which backbone makes them."""


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
        group: for a run that was trained on several robots, the name of one.
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
    recorded, prompted = provenance.get("token_encoder"), _prompted(policy, provenance)
    return bind_backbone(policy, recorded, backbone, prompted=prompted, device=device)


def open_policy(
    folder: str | Path,
    backbone: str | FrameTokens | None = None,
    device: str | torch.device = "cpu",
    precision: Precision | None = None,
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
    return load_policy(folder, backbone, device, precision, flow_steps=flow_steps)


def _set_flow_steps(policy: ChunkPolicy, steps: int) -> None:
    head = policy.head.action_head
    if not hasattr(head, "steps"):
        raise ConfigError(f"--flow-steps {steps} is for the action head flow; this policy has a {type(head).__name__}")
    require(steps >= 1, f"--flow-steps {steps}: expected 1 or more")
    head.steps = steps  # type: ignore[assignment]


def group_folder(folder: str | Path, group: str | None = None) -> Path:
    """The run folder of one robot of a run that was trained on several; of another run, the folder itself.

    Raises:
        CheckpointError: the run has groups and `group` is None or unknown, or it has none and `group` is given.
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


def save_token_encoder(policy: ChunkPolicy, run: str | Path, folder: str | Path) -> Path | None:
    """Write `tokens.json`, which records what makes the tokens of an exported graph; None for a policy that reads no tokens."""
    provenance = read_provenance(run)
    recorded = provenance.get("token_encoder")
    if TOKENS_KEY not in policy.obs or not recorded:
        return None
    path = Path(folder) / TOKEN_ENCODER
    write_file(path, json.dumps({"token_encoder": recorded, "prompted": _prompted(policy, provenance)}, indent=1))
    return path


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
