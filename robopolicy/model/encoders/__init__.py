"""Encoders: they map an observation and an instruction to tokens.

`Cls(options, inputs)` builds an encoder for the observation that `inputs` describes; `robopolicy.model.encoders.base`
holds the contract and `robopolicy.testing.encoder` checks it. The functions below read properties of an
encoder from its options, without building it.
"""

from typing import Any

from robopolicy.model.encoders.base import EncoderInputs, Encoding, TokenEncoder

__all__ = ["EncoderInputs", "Encoding", "TokenEncoder", "default_text_of", "reads_tokens", "text_width_of"]


def default_text_of(options: Any) -> str:
    """The text model used if the config names none: the class attribute `default_text`, else `vocabulary`."""
    return getattr(options, "default_text", "vocabulary")


def text_width_of(options: Any) -> int:
    """Width of the text model's tokens: the option `width` (the encoder's D), or 128 for an encoder without this option."""
    return getattr(options, "width", 128)


def reads_tokens(options: Any) -> bool:
    """Whether the encoder reads tokens written by `robopolicy encode`: the class attribute `reads_tokens`, else False."""
    return getattr(options, "reads_tokens", False)
