"""Finds vision-language backbones by folder or hub name, and says which one it is."""

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

from robopolicy.components import ConfigError
from robopolicy.model.encoders._backbones import Backbone, ContrastiveBackbone, GenerativeBackbone, ImagePreparation

FINGERPRINT_BYTES = 2**20
"""A weights file is identified by its size and its first and last MiB."""
CONTRASTIVE = ("clip", "siglip")
GENERATIVE = ("paligemma", "qwen2_5_vl", "smolvlm")
"""Values of `model_type` in a model's config.json."""


def load_backbone(name: str, image_size: tuple[int, int], lora_rank: int = 0) -> Backbone:
    """The model of a local folder or a hub name.

    Args:
        name: folder or name, as `from_pretrained` takes it.
        image_size: height and width of the demos' images; only Qwen2.5-VL, which takes any size, uses it.
        lora_rank: rank of trainable adapters; 0: frozen.

    Raises:
        ImportError: `transformers` isn't installed.
        ConfigError: the model isn't there, or is of an unknown kind.
    """
    transformers = require_transformers()
    try:
        config = transformers.AutoConfig.from_pretrained(name)
        if config.model_type not in CONTRASTIVE + GENERATIVE:
            known = ", ".join(CONTRASTIVE + GENERATIVE)
            raise ConfigError(f"--encoder.model {name} is a {config.model_type} model; expected one of: {known}")
        if not sys.stderr.isatty():
            transformers.utils.logging.disable_progress_bar()
        model = transformers.AutoModel.from_pretrained(name)
    except OSError as error:
        raise ConfigError(
            f"no model at {name!r}, neither folder nor cached nor downloadable: {_first_line(error)}"
        ) from error
    prepare = _preparation(name, config, image_size)
    model.eval()
    if config.model_type in CONTRASTIVE:
        return ContrastiveBackbone(model, prepare, lora_rank)
    return GenerativeBackbone(model, prepare, lora_rank, _around_image(name, config))


def load_tokenizer(name: str) -> Any:
    """The tokenizer of a local folder or a hub name; `tokenizer.json` where there is one, which needs no sentencepiece."""
    transformers = require_transformers()
    try:
        return transformers.PreTrainedTokenizerFast.from_pretrained(name)
    except (OSError, ValueError):
        return transformers.AutoTokenizer.from_pretrained(name)


def prompt_limit(name: str) -> int:
    """The longest prompt [tokens] that the model of a local folder or a hub name reads."""
    transformers = require_transformers()
    config = transformers.AutoConfig.from_pretrained(name)
    if config.model_type in CONTRASTIVE:
        return config.text_config.max_position_embeddings
    return config.get_text_config().max_position_embeddings


def backbone_identity(name: str) -> dict[str, Any]:
    """Which model it is, so that tokens of one are never mistaken for another's: its kind and a hash of its weights."""
    transformers = require_transformers()
    config = transformers.AutoConfig.from_pretrained(name)
    digest = hashlib.sha256()
    folder = Path(name)
    if folder.is_dir():
        for path in sorted(folder.glob("*.safetensors")):
            size = path.stat().st_size
            with path.open("rb") as file:
                digest.update(f"{path.name} {size}".encode() + file.read(FINGERPRINT_BYTES))
                file.seek(max(0, size - FINGERPRINT_BYTES))
                digest.update(file.read())
    else:
        digest.update(f"{name} {getattr(config, '_commit_hash', None)}".encode())
    return {"model": folder.name, "kind": config.model_type, "weights": digest.hexdigest()[:16]}


def require_transformers() -> Any:
    """The `transformers` package.

    Raises:
        ImportError: it isn't installed; the message names the extra.
    """
    try:
        import transformers
    except ImportError as error:
        raise ImportError(
            "the encoder transformers needs the package transformers; pip install 'robopolicy[vlm]'"
        ) from error
    return transformers


def _preparation(name: str, config: Any, image_size: tuple[int, int]) -> ImagePreparation:
    from transformers.utils.hub import cached_file

    found = cached_file(name, "preprocessor_config.json", _raise_exceptions_for_missing_entries=False)
    settings = json.loads(Path(found).read_text()) if found else {}
    mean, std = settings.get("image_mean", [0.5] * 3), settings.get("image_std", [0.5] * 3)
    if config.model_type != "qwen2_5_vl":
        return ImagePreparation(config.vision_config.image_size, config.vision_config.image_size, mean, std)
    unit = config.vision_config.patch_size * config.vision_config.spatial_merge_size
    height, width = (max(1, round(side / unit)) * unit for side in image_size)
    return ImagePreparation(height, width, mean, std)


def _around_image(name: str, config: Any) -> tuple[list[int], list[int]]:
    """Token numbers before and after each image, as the family was trained (its processor in `transformers`)."""
    if config.model_type == "qwen2_5_vl":
        return [config.vision_start_token_id], [config.vision_end_token_id]
    if config.model_type == "smolvlm":
        tokenizer = load_tokenizer(name)
        known = tokenizer.get_vocab()
        fence, whole = (known.get(token) for token in ("<fake_token_around_image>", "<global-img>"))
        if fence is not None and whole is not None:
            return [fence, whole], [fence]
    return [], []


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]
