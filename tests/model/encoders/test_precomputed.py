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


@pytest.mark.parametrize("change", [{"key_widths": {"ee_pose": 7}}, {"text_width": 5, "text_tokens": 8}, {"width": 6}])
def test_without_hidden_layer_anything_else_is_refused(change):
    """Proprioception or an instruction that nothing reads would be dropped without a word."""
    options = {"key_widths": {}, "width": 5, "hidden": 0, "text_width": None, "text_tokens": 0} | change
    with pytest.raises(ValueError, match="hands on tokens 5 wide and nothing else"):
        PrecomputedEncoder("tokens", 2, 5, **options)
