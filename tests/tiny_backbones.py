"""Tiny randomly initialized backbones, saved to disk as their families are: config, weights, tokenizer, preprocessor."""

import json
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


def save_backbone(kind: str, folder: Path) -> Path:
    """Write a tiny model of that kind; about 20 kB."""
    import transformers as hf

    torch.manual_seed(0)
    if kind == "clip":
        text = TEXT | {"projection_dim": 12}
        model = hf.CLIPModel(hf.CLIPConfig(text_config=text, vision_config=VISION, projection_dim=12))
    elif kind == "siglip":
        model = hf.SiglipModel(hf.SiglipConfig(text_config=TEXT, vision_config=VISION))
    elif kind == "paligemma":
        config = hf.PaliGemmaConfig(
            text_config=TEXT | {"model_type": "gemma"},
            vision_config=VISION | {"model_type": "siglip_vision_model", "projection_dim": 16},
            image_token_index=2,
            projection_dim=16,
        )
        model = hf.PaliGemmaForConditionalGeneration(config)
    elif kind == "qwen2_5_vl":
        vision = {
            "depth": 2,
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_heads": 2,
            "patch_size": 4,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "window_size": 16,
            "fullatt_block_indexes": [1],
            "out_hidden_size": 16,
        }
        rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}
        config = hf.Qwen2_5_VLConfig(
            text_config=TEXT | {"rope_parameters": rope},
            vision_config=vision,
            image_token_id=2,
            vision_start_token_id=3,
            vision_end_token_id=4,
        )
        model = hf.Qwen2_5_VLForConditionalGeneration(config)
    elif kind == "dinov2":
        model = hf.Dinov2Model(hf.Dinov2Config(**VISION))
    else:
        config = hf.SmolVLMConfig(
            text_config=TEXT | {"model_type": "llama"}, vision_config=VISION, image_token_id=2, scale_factor=2
        )
        model = hf.SmolVLMForConditionalGeneration(config)
    model.save_pretrained(folder)
    settings: dict[str, Any] = {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.25, 0.3]}
    if kind == "dinov2":
        settings["crop_size"] = {"height": 16, "width": 16}
    else:
        _save_tokenizer(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return folder


def save_sentence_model(folder: Path) -> Path:
    """Write a tiny BERT and its tokenizer, as sentence models are published; about 20 kB."""
    import transformers as hf

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    hf.BertModel(hf.BertConfig(vocab_size=32, max_position_embeddings=64, **sizes)).save_pretrained(folder)
    _save_tokenizer(folder)
    return folder


def _save_tokenizer(folder: Path) -> None:
    import transformers as hf

    words = Tokenizer(WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = Whitespace()
    hf.PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", unk_token="<unk>").save_pretrained(folder)
