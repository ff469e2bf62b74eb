"""The encoder `transformers`: hidden states of a vision-language backbone, and one token for proprioception."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from robopolicy.components import ConfigError, option, register, require
from robopolicy.model.encoders._backbones import Reading
from robopolicy.model.encoders._loading import Dtype, load_backbone
from robopolicy.model.encoders.base import EncoderInputs, Encoding, TokenEncoder, append_text, perceptron
from robopolicy.model.texts import TextTokens

LOG = logging.getLogger(__name__)
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj", "out_proj", "qkv")
"""Linear maps that LoRA adapts by default."""


@dataclass(frozen=True)
class TransformersOptions(Reading):
    """Options of the encoder `transformers`."""

    width: int = option(128, ">= 1")
    """D, width of one token."""
    hidden: int = option(128, ">= 1")
    """Width of the hidden layer of the perceptron for proprioception."""
    model: str | None = None
    """The backbone: a local folder or a model name."""
    finetune: bool = False
    """Train all weights of the backbone; they are saved with the policy."""
    lora_rank: int = option(0, ">= 0")
    """Rank of trainable LoRA adapters on the backbone's linear maps; 0: none."""
    lora_alpha: float | None = option(None, "> 0")
    """Strength of the adapters; null: twice the rank."""
    lora_dropout: float = option(0.0, ">= 0 and < 1")
    """Dropout of the adapters' inputs, in training."""
    lora_targets: tuple[str, ...] = ()
    """Names of the linear maps with adapters, such as `q_proj`; empty: those of the attention."""
    gradient_checkpointing: bool = False
    """Compute the backbone's activations again in the backward pass: less memory, more time."""
    dtype: Dtype = "auto"
    """Type of the backbone's weights; auto: as they are stored."""

    default_text: ClassVar[str] = "prompt"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in () if self.lora_rank else ("lora_alpha", "lora_dropout", "lora_targets"):
            require(not getattr(self, name), f"--encoder.{name} without adapters; give --encoder.lora_rank")
        require(
            self.readout != "words", "--encoder.readout words: generated words have no gradient; choose another readout"
        )
        require(
            not (self.finetune and self.lora_rank),
            "--encoder.finetune trains all weights of the backbone, --encoder.lora_rank adapters on frozen ones; give one",
        )
        require(
            self.finetune or self.lora_rank > 0 or not self.gradient_checkpointing,
            "--encoder.gradient_checkpointing with a frozen backbone saves nothing; give --encoder.lora_rank or .finetune",
        )


@register("encoder", "transformers", TransformersOptions)
class TransformersEncoder(TokenEncoder):
    """The backbone's tokens through a learned linear map to our width, then one token for proprioception.

    Only the trained weights of the backbone are saved with the policy; its frozen weights are loaded from the model's folder
    or hub name when the policy is loaded.
    """

    exportable = False
    """A backbone's forward pass depends on the prompts of the batch, and its weights would be part of the graph."""

    def __init__(self, options: TransformersOptions, inputs: EncoderInputs) -> None:
        super().__init__()
        inputs.require_cameras("transformers")
        inputs.refuse_tokens("transformers")
        if options.model is None:
            raise ConfigError("--encoder.kind transformers needs a model; give --encoder.model FOLDER_OR_NAME")
        cameras, widths = inputs.cameras, inputs.key_widths
        self.backbone = load_backbone(options.model, next(iter(cameras.values())), options, dtype=options.dtype)
        if options.lora_rank:
            alpha = options.lora_alpha or 2.0 * options.lora_rank
            add_adapters(self.backbone.model, options.lora_rank, alpha, options.lora_dropout, options.lora_targets)
            self.backbone.unfreeze("lora_")
        if options.finetune:
            self.backbone.unfreeze("")
            if self.backbone.model.dtype != torch.float32:
                LOG.warning(
                    "%s has %s weights, in which small updates are lost to rounding; train with --encoder.dtype float32",
                    options.model,
                    str(self.backbone.model.dtype).removeprefix("torch."),
                )
        if options.gradient_checkpointing:
            self.backbone.model.gradient_checkpointing_enable({"use_reentrant": False})
        self.cameras, self.keys = tuple(cameras), tuple(widths)
        self.token_width = options.width
        self.token_count = self.backbone.token_count(len(cameras), inputs.text_tokens) + bool(widths)
        self.project = nn.Linear(self.backbone.token_width, options.width)
        self.proprio = perceptron(sum(widths.values()), options.hidden, options.width) if widths else None
        self._register_state_dict_hook(_drop_frozen)
        self.register_load_state_dict_pre_hook(_keep_frozen)

    def forward(self, obs: Mapping[str, Tensor], text: TextTokens | None) -> Encoding:
        """See `TokenEncoder`. The backbone reads a prompt's token ids; tokens of other text models are appended."""
        lead = obs[self.cameras[0]].shape[:-3]
        images = [obs[camera].reshape(-1, *obs[camera].shape[-3:]) for camera in self.cameras]
        prompt = None
        if text is not None and not text.tokens.is_floating_point():
            prompt = text.tokens[..., 0].expand(*lead, -1).reshape(-1, text.tokens.shape[-2])
        tokens, valid = self.backbone(images, prompt)
        tokens = self.project(tokens).reshape(*lead, -1, self.token_width)
        valid = valid.reshape(*lead, -1)
        if self.proprio is not None:
            proprio = self.proprio(torch.cat([obs[key] for key in self.keys], dim=-1))[..., None, :]
            tokens = torch.cat([tokens, proprio], dim=-2)
            valid = torch.cat([valid, torch.ones_like(valid[..., :1])], dim=-1)
        if prompt is None:
            tokens, valid = append_text(tokens, text, valid)
        return Encoding(tokens, valid, predictions={})


def add_adapters(model: nn.Module, rank: int, alpha: float, dropout: float, targets: Sequence[str]) -> None:
    """Put LoRA adapters into a model: each adapted linear map W becomes W + alpha / rank * B A, of which A and B are trained.

    Args:
        model: the model; its linear maps are replaced.
        rank: rows of A; >= 1.
        alpha: strength of the adapters.
        dropout: dropout of the adapters' input, in training.
        targets: last parts of the names of the linear maps; empty: those of the attention.

    Raises:
        ImportError: `peft` isn't installed.
        ConfigError: the model has no linear map of one of the names; those it has are listed.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise ImportError("LoRA needs the package peft; pip install 'robopolicy[vlm]'") from error
    there = {name.rpartition(".")[2] for name, part in model.named_modules() if isinstance(part, nn.Linear)}
    targets = targets or sorted(there & set(ATTENTION))
    if missing := [name for name in targets if name not in there] or ([] if targets else ["attention"]):
        raise ConfigError(
            f"--encoder.lora_targets: the backbone has no linear map {missing[0]!r}; it has: {', '.join(sorted(there))}"
        )
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,  # type: ignore[arg-type]  # peft divides by it
        lora_dropout=dropout,
        target_modules=list(targets),  # type: ignore[arg-type]
    )
    inject_adapter_in_model(config, model)


def _drop_frozen(module: nn.Module, state: dict[str, Tensor], prefix: str, metadata: Any) -> None:
    """Leave the backbone's frozen weights out of a state dict."""
    for name in _frozen(module, state, prefix):
        del state[name]


def _keep_frozen(module: nn.Module, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
    """Add the backbone's own frozen weights to a state dict that is loaded, since they are not saved."""
    own = cast(TransformersEncoder, module).backbone.state_dict(prefix=f"{prefix}backbone.")
    state.update({name: own[name] for name in _frozen(module, own, prefix)})


def _frozen(module: nn.Module, names: Iterable[str], prefix: str) -> list[str]:
    trained = (*cast(TransformersEncoder, module).backbone.trained, "action_tokens")
    return [
        name for name in names if name.startswith(f"{prefix}backbone.") and not any(part in name for part in trained)
    ]
