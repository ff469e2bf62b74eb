"""Loads backbones by folder or hub name, and identifies them."""

import hashlib
import logging
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeAlias

from robopolicy.components import ConfigError
from robopolicy.files import hash_ends, read_json
from robopolicy.model.encoders._backbones import Backbone, ContrastiveBackbone, Reading, VisionBackbone
from robopolicy.model.encoders._generative import GenerativeBackbone
from robopolicy.model.encoders._images import image_preparation

LOG = logging.getLogger(__name__)
ACTION_TOKENS = "action_tokens.safetensors"
"""File in a backbone's folder with the learned vectors of the readout `action_token`."""
Dtype: TypeAlias = Literal["auto", "float32", "bfloat16", "float16"]
"""Type of a backbone's weights; auto: as they are stored."""


def load_backbone(
    name: str,
    image_size: tuple[int, int],
    reading: Reading | None = None,
    *,
    dtype: Dtype = "auto",
) -> Backbone:
    """The model of a local folder or a hub name, with its identity, frozen, on the CPU, in eval mode.

    Args:
        name: folder or name, as `from_pretrained` takes it.
        image_size: height and width of the demos' images; only models that read any size use it.
        reading: which of its hidden states become tokens; None: all tokens of the last layer.
        dtype: type of its weights.

    Raises:
        ImportError: `transformers` isn't installed.
        ConfigError: the model is not found, takes no images, or does not support `reading`.
    """
    config, reading = read_config(name), reading or Reading()
    family = _family(config)
    if family is None:
        raise ConfigError(
            f"{name} is a {config.model_type} model, which reads no images; expected a vision-language model such as "
            "CLIP, SigLIP, PaliGemma, Qwen2.5-VL or SmolVLM, or a vision model such as DINOv2"
        )
    model, missing = _model(name, dtype, generates=reading.readout == "words")
    images = image_preparation(config, _processor(name), image_size)
    model.eval()
    try:
        if family is GenerativeBackbone:
            backbone = GenerativeBackbone(model, images, reading, _around_image(name, config))
            if reading.readout == "action_token" and (Path(name) / ACTION_TOKENS).is_file():
                backbone.read_action_tokens(Path(name) / ACTION_TOKENS)
            elif reading.readout == "words":
                # RoboVLMs' `tokenizer_orig_size`: the vocabulary without added and special tokens, minus 10.
                words = load_tokenizer(name)
                special = len(words.special_tokens_map) + len(getattr(words, "extra_special_tokens", ()))
                backbone.words_end = words.vocab_size - special - 10
        else:
            backbone = family(model, images, reading)
    except (AttributeError, TypeError, RuntimeError) as error:
        raise ConfigError(
            f"{name} is a {config.model_type} model, which needs other inputs than pixel values and image tokens: "
            f"{_first_line(error)}; encode with its own code and give its tokens to the policy"
        ) from error
    backbone.identity = {
        "model": Path(name).name,
        "source": str(Path(name).resolve()) if Path(name).is_dir() else name,
        "kind": config.model_type,
        "weights": _fingerprint(name, config),
        "dtype": str(model.dtype).removeprefix("torch."),
        "processor": images.settings,
        "readout": reading.readout,
        "layer": reading.layer,
    }
    more = {"words": reading.action_tokens if reading.readout == "words" else 0, "tiles": reading.tiles}
    backbone.identity |= {name: value for name, value in more.items() if value}
    backbone.random = tuple(missing)
    return backbone


def identity_difference(found: Mapping[str, Any], expected: Mapping[str, Any]) -> str | None:
    """The first field, other than `model` and `source`, in which two identities differ, with both values; None: they match."""
    for name in {**expected, **found}:
        if name not in ("model", "source") and found.get(name) != expected.get(name):
            return f"{name.replace('_', ' ')} {found.get(name)!r}, not {expected.get(name)!r}"
    return None


def load_tokenizer(name: str) -> Any:
    """The tokenizer of a local folder or a hub name, from `tokenizer.json` if it exists, which needs no sentencepiece.

    Raises:
        ConfigError: no tokenizer is found.
    """
    transformers = require_transformers()
    try:
        return transformers.PreTrainedTokenizerFast.from_pretrained(name)
    except (OSError, ValueError):
        try:
            return transformers.AutoTokenizer.from_pretrained(name, trust_remote_code=False)
        except (OSError, ValueError) as error:
            raise ConfigError(f"{name}: no tokenizer there: {_first_line(error)}") from error


def prompt_facts(name: str) -> tuple[int, bool]:
    """A model's maximum prompt length [tokens], by local folder or hub name, and whether the prompt contains the images.

    Raises:
        ConfigError: it reads no text.
    """
    config = read_config(name)
    family = _family(config)
    if family is None or not family.reads_text:
        raise ConfigError(
            f"{name} is a {config.model_type} model, which reads no prompt; give --text.kind vocabulary or --text.kind none"
        )
    text = config.text_config if family is ContrastiveBackbone else config.get_text_config()
    return text.max_position_embeddings, family is GenerativeBackbone


def require_transformers() -> Any:
    """The `transformers` package.

    Raises:
        ImportError: it isn't installed; the message names the extra.
    """
    try:
        import transformers
    except ImportError as error:
        raise ImportError(
            "a backbone needs the package transformers, which isn't installed; pip install 'robopolicy[vlm]'"
        ) from error
    return transformers


def read_config(name: str) -> Any:
    """The config of the model of a local folder or a hub name.

    Raises:
        ConfigError: no config is found.
    """
    # Without a config.json, the library would guess the kind from the folder's name.
    if Path(name).is_dir() and not (Path(name) / "config.json").is_file():
        raise ConfigError(f"no model at {name!r}: the folder has no config.json; give one that `save_pretrained` wrote")
    try:  # without trust_remote_code=False the library asks on the terminal whether to run the folder's own code
        return require_transformers().AutoConfig.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"no model at {name!r}: not in a folder, in the cache or on the hub: {_first_line(error)}"
        ) from error


def _model(name: str, dtype: Dtype, generates: bool) -> tuple[Any, list[str]]:
    """The model, with its output layer if it generates words, and the names of weights that are missing in the folder."""
    transformers = require_transformers()
    if not sys.stderr.isatty():
        transformers.utils.logging.disable_progress_bar()
    level = transformers.utils.logging.get_verbosity()
    transformers.utils.logging.set_verbosity_error()  # else it prints a table of the unused weights
    try:
        kind = transformers.AutoModelForImageTextToText if generates else transformers.AutoModel
        model, found = kind.from_pretrained(
            name, dtype=dtype, use_safetensors=True, output_loading_info=True, trust_remote_code=False
        )
    except (OSError, ValueError) as error:
        raise ConfigError(f"{name}: the weights can't be loaded: {_first_line(error)}") from error
    finally:
        transformers.utils.logging.set_verbosity(level)
    if missing := sorted(found["missing_keys"]):
        LOG.warning("%s: weights of %s are missing and randomly initialized", name, ", ".join(missing[:5]))
    return model, missing


def _family(config: Any) -> type[Backbone] | None:
    """The class that reads a model, chosen by its config; None for one that reads no images."""
    if hasattr(config, "vision_config"):
        inside = any(getattr(config, key, None) is not None for key in ("image_token_id", "image_token_index"))
        return GenerativeBackbone if inside else ContrastiveBackbone if hasattr(config, "text_config") else None
    if hasattr(config, "num_channels") and not hasattr(config, "vocab_size"):
        return VisionBackbone
    return None


def _processor(name: str) -> dict[str, Any]:
    """Content of `preprocessor_config.json`; empty if there is none."""
    from transformers.utils.hub import cached_file

    found = cached_file(name, "preprocessor_config.json", _raise_exceptions_for_missing_entries=False)
    return read_json(Path(found), ConfigError) if found else {}


def _fingerprint(name: str, config: Any) -> str:
    """A hash of the weights, by size and first and last MiB of each file; equal for a model on the hub and a copy of it."""
    from transformers.utils.hub import cached_file

    digest = hashlib.sha256()
    found = cached_file(name, "config.json")
    files = sorted(Path(found).parent.glob("*.safetensors")) if found else []
    for path in files:
        digest.update(f"{path.name} {path.stat().st_size}".encode())
        hash_ends(path, digest)
    if not files:
        digest.update(f"{name} {getattr(config, '_commit_hash', None)}".encode())
    return digest.hexdigest()[:16]


def _around_image(name: str, config: Any) -> tuple[list[int], list[int]]:
    """Token ids before and after each image, as in the family's training (see its processor in `transformers`)."""
    for start, end in (("vision_start_token_id", "vision_end_token_id"), ("boi_token_index", "eoi_token_index")):
        if isinstance(getattr(config, start, None), int) and isinstance(getattr(config, end, None), int):
            return [getattr(config, start)], [getattr(config, end)]
    if config.model_type in ("smolvlm", "idefics3"):
        known = load_tokenizer(name).get_vocab()
        fence, whole = (known.get(token) for token in ("<fake_token_around_image>", "<global-img>"))
        if fence is not None and whole is not None:
            return [fence, whole], [fence]
    return [], []


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
