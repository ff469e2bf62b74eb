"""A RoboVLMs checkpoint -> a run folder, with its backbone where one is given."""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from safetensors.torch import save_file
from torch import Tensor

from robopolicy.components import ConfigError, Options, component, option, require
from robopolicy.experiment.building import DemoFacts, build_policy
from robopolicy.experiment.config import DataConfig, ExperimentConfig
from robopolicy.experiment.run_folder import BACKBONE, save_policy
from robopolicy.model.robovlms import (
    action_token,
    backbone_tensors,
    is_discrete,
    log_unused,
    read_checkpoint,
    state_dict,
    words_head,
)
from robopolicy.model.statistics import Statistics
from robopolicy.types import TOKEN_VALID_KEY, TOKENS_KEY, ActionSpec, ArraySpec

if TYPE_CHECKING:
    from robopolicy.model.encoders._tokens import FrameTokens

PROMPT_TOKENS = 64
"""Tokens of every prompt; the longest instruction of CALVIN takes about 20."""
TEMPLATES: Mapping[str, str] = {"paligemma": "{eos}{images}{instruction}{action}\n"}
"""RoboVLMs' prompt template by kind of backbone; for its other backbones the template is not known here."""
WORDS_TEMPLATES: Mapping[str, str] = {
    "paligemma": "{bos}{images}Input: What action should the robot take to {instruction}?\nOutput: \n"
}
"""The prompt after which the discrete decoder generates actions, for policies trained on one action at a time."""
CALVIN_LIMIT = 0.65
"""RoboVLMs clips CALVIN's arm actions to +-0.65 and divides by it; the gripper's -1 and 1 become labels 0 and 1."""
ARM = 6
"""Arm columns in every RoboVLMs configuration; needed for the discrete decoder, whose files do not record it."""


@dataclass(frozen=True)
class CheckpointOptions(Options):
    """Facts that a RoboVLMs checkpoint does not record."""

    window: int | None = option(None, ">= 1")
    """W, frames of memory; null: that of the file, which only a GPT head records."""
    latent: int = option(1, ">= 1")
    """Tokens kept per frame."""
    pooling: Literal["max", "none"] = "max"
    """`max` for RoboVLMs' down-sampling `pooling`, `none` for its `none`."""
    bins: int = option(256, ">= 1")
    """Edges of the discrete decoder's bins (`n_bin`)."""
    arm_limit: float = option(CALVIN_LIMIT, "> 0")
    """The arm action that the head's output 1 means (`norm_max`); CALVIN's by default, 1 for unscaled actions."""
    rate_hz: float | None = option(None, "> 0")
    """Actions per second; null: unknown."""
    backbone: str | None = None
    """Folder of the backbone before its fine-tuning: config, tokenizer, image processor, and weights where the checkpoint
    holds none; null: the policy reads tokens."""
    template: str | None = None
    """The prompt, with `{images}`, `{instruction}` and `{action}`; null: as RoboVLMs writes it for this backbone."""
    cameras: tuple[str, ...] = ("front",)
    """Keys of the images, in the order in which the backbone reads them; RoboVLMs puts the wrist camera first."""
    image_size: int = option(224, ">= 1")
    """Height and width of the images that the policy is given [pixels]."""


def convert_checkpoint(source: str | Path, folder: str | Path, options: CheckpointOptions | None = None) -> Path:
    """Write a RoboVLMs checkpoint as a run folder that `robopolicy.load_policy` reads.

    The policy reads the key `tokens`, the backbone's hidden states. With a backbone, `folder/backbone` holds its fine-tuned
    weights and the learned action token, and `backbone="auto"` runs it in front of the head.

    Args:
        source: a checkpoint; see `robopolicy.model.robovlms.read_head`.
        folder: created if missing.
        options: facts that the checkpoint does not record.

    Raises:
        RoboVlmsError: the checkpoint can't be read.
        ConfigError: there is no such backbone, its prompt in RoboVLMs is unknown, or weights of it are missing.
    """
    options, state = options or CheckpointOptions(), state_dict(source)
    if words := is_discrete(state):
        if options.backbone is None:
            raise ConfigError(
                f"{source}: the discrete decoder's actions are words of its language model; give --backbone"
            )
        head, unused = words_head(ARM, options.bins), tuple(state)
    else:
        head, unused = read_checkpoint(source, options.window, options.latent, options.pooling)
    spec = ActionSpec(arm=head.action_head.arm_width, gripper=1, kind="delta", space="ee", rate_hz=options.rate_hz)
    shapes = {TOKENS_KEY: ArraySpec((options.latent, head.token_width))}
    provenance: dict[str, Any] = {"source": Path(source).name, "origin": "RoboVLMs"}
    if options.backbone is not None:
        made = _with_backbone(state, options, Path(folder) / BACKBONE, spec.width if words else 0)
        unused = tuple(key for key in unused if not key.endswith("action_token") and ".backbone." not in f".{key}")
        shapes = {TOKENS_KEY: ArraySpec(made.shape)}
        if made.backbone.reading.readout == "all":
            shapes[TOKEN_VALID_KEY] = ArraySpec(made.shape[:1])
        provenance |= {"token_encoder": made.identity, "prompted": True}
    log_unused(source, unused)
    config = ExperimentConfig(
        data=DataConfig(obs_keys=(TOKENS_KEY,)),
        encoder=component("encoder", "precomputed").options(width=head.token_width, hidden=0),
        text=component("text", "none").options(),
        **head.options,
    )
    statistics = calvin_statistics(spec, options.arm_limit)
    policy = build_policy(config, DemoFacts(spec, shapes, action_statistics=statistics))
    policy.head.load_state_dict(head.state_dict())
    return save_policy(policy.eval(), folder, {**provenance, "keys_outside_the_head": list(unused)})


def _with_backbone(state: Mapping[str, Any], options: CheckpointOptions, target: Path, words: int) -> "FrameTokens":
    """Write the backbone's folder to `target`; returns it as a `FrameTokens` that generates `words` words, if not 0."""
    from robopolicy.model.encoders._backbones import Reading
    from robopolicy.model.encoders._loading import load_tokenizer, read_config
    from robopolicy.model.encoders._tokens import FrameTokens

    source, template = Path(str(options.backbone)), options.template
    kind, known = read_config(str(source)).model_type, WORDS_TEMPLATES if words else TEMPLATES
    if template is None and kind not in known:
        raise ConfigError(
            f"--backbone {source} is a {kind}, whose prompt in RoboVLMs is not known here; give --template with {{images}}, "
            "{instruction} and {action}"
        )
    require(source.is_dir(), f"--backbone {source}: no such folder; download the model, and give its folder")
    tensors, token = backbone_tensors(state), action_token(state)
    _write_backbone(source, target, tensors, token, options.latent)
    tokenizer, template = load_tokenizer(str(source)), template or known[kind]
    marks = {"{bos}": tokenizer.bos_token, "{eos}": tokenizer.eos_token} | ({"{action}": ""} if token is None else {})
    for mark, text in marks.items():
        template = template.replace(mark, str(text or ""))
    made = FrameTokens(
        str(target),
        dict.fromkeys(options.cameras, (options.image_size, options.image_size)),
        template,
        PROMPT_TOKENS,
        reading=Reading("words", action_tokens=words) if words else Reading("all" if token is None else "action_token"),
    )
    if tensors and made.backbone.random:
        raise ConfigError(
            f"the checkpoint holds no weights of {', '.join(made.backbone.random[:3])}, which the model in {source} has; give "
            "the folder of the backbone that was fine-tuned"
        )
    return made


def _write_backbone(
    source: Path, target: Path, tensors: Mapping[str, Tensor], token: Tensor | None, latent: int
) -> None:
    """Config, tokenizer and processor of `source`, with the checkpoint's weights where it holds them, and the action token."""
    from robopolicy.model.encoders._loading import ACTION_TOKENS

    left_out = shutil.ignore_patterns("*.safetensors*", "*.bin*") if tensors else None
    shutil.copytree(source, target, ignore=left_out, dirs_exist_ok=True)
    if tensors:  # clones: tied weights share memory, which the format can't hold
        save_file({name: value.clone().contiguous() for name, value in tensors.items()}, target / "model.safetensors")
    if token is not None:
        vectors = token.detach().float().reshape(1, -1).repeat(latent, 1)
        save_file({"action_tokens": vectors.contiguous()}, target / ACTION_TOKENS)


def calvin_statistics(spec: ActionSpec, arm_limit: float = CALVIN_LIMIT) -> Statistics:
    """Statistics that make `ActionNormalizer` scale the arm's +-arm_limit to +-1, as RoboVLMs does on CALVIN by default."""
    limit = np.full(spec.width, arm_limit)
    return Statistics(1, -limit, limit, 0 * limit, limit, -limit, limit)
