"""Trainable low-rank adapters on a frozen backbone."""

from collections.abc import Sequence

from torch import nn

from robopolicy.components import ConfigError

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj", "out_proj", "qkv")
"""Linear maps that LoRA adapts by default."""


def add_adapters(model: nn.Module, rank: int, alpha: float, dropout: float, targets: Sequence[str]) -> None:
    """Put LoRA adapters into a model: each adapted linear map W becomes W + alpha / rank * B A, of which A and B are trained.

    Args:
        model: its linear maps are replaced.
        rank: rows of A; >= 1.
        alpha: strength of the adapters.
        dropout: of the adapters' input, in training.
        targets: last part of the names of the linear maps; empty: the attention's.

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
