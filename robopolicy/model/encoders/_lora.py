"""Trainable low-rank adapters on a frozen backbone."""

from dataclasses import dataclass

from torch import nn

from robopolicy.components import ConfigError

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj", "out_proj", "qkv")
"""Linear maps that LoRA adapts by default."""


@dataclass(frozen=True)
class Adapters:
    """LoRA: each adapted linear map W becomes W + alpha / rank * B A, of which A and B are trained."""

    rank: int
    """Rows of A; >= 1."""
    alpha: float
    """Strength of the adapters."""
    dropout: float = 0.0
    """Dropout of the adapter's input, in training."""
    targets: tuple[str, ...] = ()
    """Last part of the names of the linear maps; empty: the attention's."""


def add_adapters(model: nn.Module, adapters: Adapters) -> nn.Module:
    """Put LoRA adapters on a model's linear maps.

    Raises:
        ImportError: `peft` isn't installed.
        ConfigError: the model has no linear map of one of the names; those it has are listed.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise ImportError("LoRA needs the package peft; pip install 'robopolicy[vlm]'") from error
    there = {name.rpartition(".")[2] for name, part in model.named_modules() if isinstance(part, nn.Linear)}
    targets = adapters.targets or sorted(there & set(ATTENTION))
    if missing := [name for name in targets if name not in there] or ([] if targets else ["attention"]):
        raise ConfigError(
            f"--encoder.lora_targets: the backbone has no linear map {missing[0]!r}; it has: {', '.join(sorted(there))}"
        )
    config = LoraConfig(
        r=adapters.rank,
        lora_alpha=adapters.alpha,  # type: ignore[arg-type]  # peft divides by it
        lora_dropout=adapters.dropout,
        target_modules=list(targets),  # type: ignore[arg-type]
    )
    return inject_adapter_in_model(config, model)
