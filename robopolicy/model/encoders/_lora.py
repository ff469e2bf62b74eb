"""Trainable low-rank adapters on a frozen backbone."""

from torch import nn

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj", "out_proj", "qkv")
"""Names of the linear maps that LoRA adapts."""


def add_adapters(model: nn.Module, rank: int) -> nn.Module:
    """Put LoRA adapters on the attention's linear maps; nothing else of the model is trained.

    Raises:
        ImportError: `peft` isn't installed.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise ImportError("LoRA needs the package peft; pip install 'robopolicy[vlm]'") from error
    there = {name.rpartition(".")[2] for name, part in model.named_modules() if isinstance(part, nn.Linear)}
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=sorted(there & set(ATTENTION)))
    adapted = inject_adapter_in_model(config, model)
    for name, parameter in adapted.named_parameters():
        parameter.requires_grad_("lora_" in name)
    return adapted
