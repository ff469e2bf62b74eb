"""The encoder `precomputed`: tokens from the demo file."""

import pytest
import torch

from robopolicy.components import ConfigError
from robopolicy.model.encoders import EncoderInputs
from robopolicy.model.encoders.precomputed import PrecomputedEncoder, PrecomputedOptions
from robopolicy.types import ArraySpec

POSE = {"ee_pose": ArraySpec((7,))}


def make_encoder(tokens, hidden, obs=None, text_width=None, width=5):
    inputs = EncoderInputs({"tokens": ArraySpec((tokens, 5)), **(obs or {})}, text_width, 8 if text_width else 0)
    return PrecomputedEncoder(PrecomputedOptions(width=width, hidden=hidden), inputs)


def test_without_hidden_layer_tokens_pass_unchanged():
    """Guards against: an imported head that sees other tokens than those it was trained on."""
    encoder = make_encoder(2, hidden=0)
    tokens = torch.randn(3, 2, 5)
    encoding = encoder({"tokens": tokens}, None)
    assert encoding.tokens is tokens
    assert list(encoder.parameters()) == []


@pytest.mark.parametrize(("hidden", "obs"), [(0, {}), (8, POSE)])
def test_the_pooling_learns_which_tokens_are_padding(hidden, obs):
    """Guards against: a mean over tokens of which half repeat the last word."""
    encoder = make_encoder(4, hidden, obs)
    frames = {"tokens": torch.randn(3, 4, 5)} | {key: torch.randn(3, spec.width) for key, spec in obs.items()}
    assert encoder(frames, None).token_valid is None
    encoding = encoder(frames | {"token_valid": torch.tensor([1.0, 1.0, 0.0, 0.0]).expand(3, 4)}, None)
    assert encoding.token_valid is not None
    assert encoding.token_valid.tolist() == [[True, True, False, False, *[True] * len(obs)]] * 3
    assert encoding.token_valid.shape == encoding.tokens.shape[:-1]


@pytest.mark.parametrize("change", [{"obs": POSE}, {"text_width": 5}, {"width": 6}])
def test_without_hidden_layer_anything_else_is_refused(change):
    """Guards against: proprioception or an instruction that is silently dropped."""
    with pytest.raises(ConfigError, match="passes on tokens 5 wide and nothing else"):
        make_encoder(2, **{"hidden": 0, **change})
