"""Tiny randomly initialized backbones, saved to disk as their families are: config, weights, tokenizer, preprocessor."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

WORDS = ("<pad>", "<unk>", "<image>", "<start>", "<end>", "lift", "the", "red", "blue", "cube")
TEXT = {
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 3,
    "eos_token_id": 4,
}
VISION = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 4,
}


QWEN_VISION = {
    "depth": 2,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_heads": 2,
    "patch_size": 4,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
}
QWEN_TOKENS = {"image_token_id": 2, "vision_start_token_id": 3, "vision_end_token_id": 4}
QWEN_TEXT = TEXT | {
    "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0},
}


def save_backbone(kind: str, folder: Path, **options: Any) -> Path:
    """Write a tiny model of that kind, as `model_type` names it; about 20 kB."""
    torch.manual_seed(0)
    _MAKERS[kind](**options).save_pretrained(folder)
    settings: dict[str, Any] = {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.25, 0.3]}
    if kind in VISION_ONLY:
        settings["crop_size"] = {"height": 16, "width": 16}
    else:
        _save_tokenizer(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return folder


def _clip() -> Any:
    import transformers as hf

    text = TEXT | {"projection_dim": 12}
    return hf.CLIPModel(hf.CLIPConfig(text_config=text, vision_config=VISION, projection_dim=12))


def _siglip() -> Any:
    import transformers as hf

    return hf.SiglipModel(hf.SiglipConfig(text_config=TEXT, vision_config=VISION))


def _siglip2() -> Any:
    import transformers as hf

    vision = {key: value for key, value in VISION.items() if key != "image_size"} | {"num_patches": 16}
    return hf.Siglip2Model(hf.Siglip2Config(text_config=TEXT, vision_config=vision))


def _paligemma(width: int = 16) -> Any:
    import transformers as hf

    config = hf.PaliGemmaConfig(
        text_config=TEXT | {"model_type": "gemma", "hidden_size": width},
        vision_config=VISION | {"model_type": "siglip_vision_model", "projection_dim": width},
        image_token_index=2,
        projection_dim=width,
    )
    return hf.PaliGemmaForConditionalGeneration(config)


def _qwen2_vl() -> Any:
    import transformers as hf

    vision = QWEN_VISION | {"embed_dim": 16, "hidden_size": 16, "mlp_ratio": 2}
    del vision["intermediate_size"]
    return hf.Qwen2VLForConditionalGeneration(
        hf.Qwen2VLConfig(text_config=QWEN_TEXT, vision_config=vision, **QWEN_TOKENS)
    )


def _qwen2_5_vl() -> Any:
    import transformers as hf

    vision = QWEN_VISION | {"window_size": 16, "fullatt_block_indexes": [1], "out_hidden_size": 16}
    return hf.Qwen2_5_VLForConditionalGeneration(
        hf.Qwen2_5_VLConfig(text_config=QWEN_TEXT, vision_config=vision, **QWEN_TOKENS)
    )


def _qwen3_vl() -> Any:
    import transformers as hf

    vision = QWEN_VISION | {"out_hidden_size": 16, "num_position_embeddings": 16, "deepstack_visual_indexes": [0]}
    return hf.Qwen3VLForConditionalGeneration(
        hf.Qwen3VLConfig(text_config=QWEN_TEXT, vision_config=vision, **QWEN_TOKENS)
    )


def _smolvlm() -> Any:
    import transformers as hf

    text = TEXT | {"model_type": "llama"}
    config = hf.SmolVLMConfig(text_config=text, vision_config=VISION, image_token_id=2, scale_factor=2)
    return hf.SmolVLMForConditionalGeneration(config)


def _idefics3() -> Any:
    import transformers as hf

    text = TEXT | {"model_type": "llama"}
    config = hf.Idefics3Config(text_config=text, vision_config=VISION, image_token_id=2, scale_factor=2)
    return hf.Idefics3ForConditionalGeneration(config)


def _llava() -> Any:
    import transformers as hf

    config = hf.LlavaConfig(
        text_config=TEXT | {"model_type": "llama"},
        vision_config=VISION | {"model_type": "clip_vision_model"},
        image_token_index=2,
    )
    return hf.LlavaForConditionalGeneration(config)


def _dinov2() -> Any:
    import transformers as hf

    return hf.Dinov2Model(hf.Dinov2Config(**VISION))


def _vit() -> Any:
    import transformers as hf

    return hf.ViTModel(hf.ViTConfig(**VISION))


_MAKERS: dict[str, Callable[..., Any]] = {
    "clip": _clip,
    "siglip": _siglip,
    "siglip2": _siglip2,
    "paligemma": _paligemma,
    "qwen2_vl": _qwen2_vl,
    "qwen2_5_vl": _qwen2_5_vl,
    "qwen3_vl": _qwen3_vl,
    "smolvlm": _smolvlm,
    "idefics3": _idefics3,
    "llava": _llava,
    "dinov2": _dinov2,
    "vit": _vit,
}
VISION_ONLY = ("dinov2", "vit")
FAMILIES = ("clip", "siglip", "paligemma", "qwen2_5_vl", "smolvlm")
"""The five that are used most."""
SUCCESSORS = ("siglip2", "qwen2_vl", "qwen3_vl", "idefics3", "llava")
"""Read in the same way."""


def save_sentence_model(folder: Path) -> Path:
    """Write a tiny BERT and its tokenizer, as sentence models are published; about 20 kB."""
    import transformers as hf

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    hf.BertModel(hf.BertConfig(vocab_size=32, max_position_embeddings=64, **sizes)).save_pretrained(folder)
    _save_tokenizer(folder, model_max_length=64)
    return folder


def _save_tokenizer(folder: Path, **options: int) -> None:
    import transformers as hf

    known = [*WORDS, *(f"word{number}" for number in range(len(WORDS), int(TEXT["vocab_size"])))]
    words = Tokenizer(WordLevel({word: number for number, word in enumerate(known)}, unk_token="<unk>"))
    words.pre_tokenizer = Whitespace()
    special = {"pad_token": "<pad>", "unk_token": "<unk>", "eos_token": "<end>"}
    hf.PreTrainedTokenizerFast(tokenizer_object=words, **special, **options).save_pretrained(folder)
