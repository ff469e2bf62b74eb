"""Observation -> tokens: keys | pixels | precomputed | transformers, one contract."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from robopolicy.config import EncoderConfig
from robopolicy.model.old_encoders.base import Encoding, TokenEncoder
from robopolicy.model.old_encoders.keys import KeysEncoder
from robopolicy.model.old_encoders.pixels import PixelsEncoder
from robopolicy.model.old_encoders.precomputed import PrecomputedEncoder
from robopolicy.model.text import SentenceText, Vocabulary, VocabularyText, make_text
from robopolicy.types import TOKEN_VALID_KEY, TOKENS_KEY, ArraySpec

if TYPE_CHECKING:
    from robopolicy.model.old_encoders.transformers import PromptText

__all__ = ["TOKENS_KEY", "TOKEN_VALID_KEY", "Encoding", "TokenEncoder", "make_encoder", "make_reader"]


def make_reader(config: EncoderConfig, vocabulary: Vocabulary) -> "VocabularyText | SentenceText | PromptText":
    """What reads the instruction for this encoder: the backbone's own tokenizer, or `make_text`."""
    if config.kind != "transformers":
        return make_text(config.text_model, config.width, vocabulary)
    from robopolicy.model.old_encoders.transformers import PromptText

    if config.text_model is not None:
        raise ValueError(
            f"--encoder.text_model {config.text_model} with --encoder.kind transformers, which reads the instruction "
            "itself; drop one of them"
        )
    if config.model is None:
        raise ValueError("encoder transformers needs a model; give --encoder.model FOLDER_OR_NAME")
    return PromptText(config.model, config.template)


def make_encoder(
    config: EncoderConfig,
    obs: Mapping[str, ArraySpec],
    text_tokens: int,
    targets: Mapping[str, ArraySpec] | None = None,
) -> TokenEncoder:
    """The encoder that `config.kind` names.

    Args:
        config: kind and widths.
        obs: what the policy sees, by key.
        text_tokens: tokens of one instruction, each `config.width` wide; 0 for a policy that is told nothing.
        targets: keys that loss terms may use in training but the policy never sees.

    Raises:
        ValueError: the kind needs an observation that isn't there.
    """
    encoded = (TOKENS_KEY, TOKEN_VALID_KEY)
    widths = {key: spec.width for key, spec in obs.items() if not spec.is_image and key not in encoded}
    cameras = {key: (spec.shape[0], spec.shape[1]) for key, spec in obs.items() if spec.is_image}
    text_width = config.width if text_tokens else None
    kind = config.kind if config.kind != "auto" else ("pixels" if cameras else "keys")
    if kind == "keys":
        return KeysEncoder(widths, config.width, config.hidden, text_width, text_tokens)
    if kind == "pixels":
        where = {key: spec.width for key, spec in (targets or {}).items()}
        return PixelsEncoder(cameras, widths, config.width, config.hidden, text_width, text_tokens, where)
    if kind == "precomputed":
        if TOKENS_KEY not in obs:
            raise ValueError(
                f"encoder precomputed needs the key {TOKENS_KEY!r} in the demos, which have: {', '.join(obs)}; "
                "write it with `robopolicy encode`"
            )
        count, token_width = obs[TOKENS_KEY].shape
        return PrecomputedEncoder(
            TOKENS_KEY,
            count,
            token_width,
            widths,
            config.width,
            config.hidden,
            text_width,
            text_tokens,
            TOKEN_VALID_KEY,
        )
    from robopolicy.model.old_encoders.transformers import TransformersEncoder

    return TransformersEncoder.from_config(config, obs, text_tokens)
