"""The `precomputed` encoder: tokens from the demo file."""

import pytest
import torch

from robopolicy.model.encoders.precomputed import PrecomputedEncoder


def test_without_hidden_layer_tokens_are_handed_on_as_they_are():
    """An imported head must see the very tokens that it was trained on."""
    encoder = PrecomputedEncoder("tokens", 2, 5, {}, width=5, hidden=0, text_width=None, text_tokens=0)
    tokens = torch.randn(3, 2, 5)
    encoding = encoder({"tokens": tokens}, None)
    assert encoding.tokens is tokens
    assert list(encoder.parameters()) == []


@pytest.mark.parametrize(("hidden", "more"), [(0, {}), (8, {"ee_pose": 7})])
def test_padding_is_told_to_the_pooling(hidden, more):
    """A mean over tokens of which half repeat the last word weighs that word as much as the picture."""
    encoder = PrecomputedEncoder("tokens", 4, 5, more, width=5, hidden=hidden, text_width=None, text_tokens=0)
    obs = {"tokens": torch.randn(3, 4, 5)} | {key: torch.randn(3, width) for key, width in more.items()}
    assert encoder(obs, None).token_valid is None
    encoding = encoder(obs | {"token_valid": torch.tensor([1.0, 1.0, 0.0, 0.0]).expand(3, 4)}, None)
    assert encoding.token_valid is not None
    assert encoding.token_valid.tolist() == [[True, True, False, False, *[True] * len(more)]] * 3
    assert encoding.token_valid.shape == encoding.tokens.shape[:-1]


@pytest.mark.parametrize("change", [{"key_widths": {"ee_pose": 7}}, {"text_width": 5, "text_tokens": 8}, {"width": 6}])
def test_without_hidden_layer_anything_else_is_refused(change):
    """Proprioception or an instruction that nothing reads would be dropped without a word."""
    options = {"key_widths": {}, "width": 5, "hidden": 0, "text_width": None, "text_tokens": 0} | change
    with pytest.raises(ValueError, match="hands on tokens 5 wide and nothing else"):
        PrecomputedEncoder("tokens", 2, 5, **options)
