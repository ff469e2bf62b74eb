"""Encoders: they map an observation and an instruction to tokens.

`Cls(options, inputs)` builds an encoder for the observation that `inputs` describes; `robopolicy.model.encoders.base`
holds the contract and `robopolicy.testing.encoder` checks it.
"""

from robopolicy.model.encoders.base import EncoderInputs, Encoding, TokenEncoder

__all__ = ["EncoderInputs", "Encoding", "TokenEncoder"]
