"""Pooling: what each kind computes, and that invalid tokens have no influence."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from robopolicy.components import ConfigError
from robopolicy.components import kinds as kinds_of
from robopolicy.model.poolings.attention import AttentionOptions
from robopolicy.model.poolings.max import MaxOptions
from robopolicy.model.poolings.resampler import ResamplerOptions
from tests.making import make

kinds = pytest.mark.parametrize("kind", kinds_of("pooling"))


def pooling_of(kind, latent=2, width=4):
    torch.manual_seed(0)
    return make("pooling", kind, width, latent=latent, **({"heads": 2} if kind in ("attention", "resampler") else {}))


def tokens_of(kind, *batch, latent=2, width=4):
    return torch.randn(*batch, latent if kind == "none" else 5, width)


@kinds
def test_the_pooled_width_is_latent_times_the_token_width(kind):
    """Guards against: a memory whose input width depends on the pooling."""
    pooling = pooling_of(kind)
    assert pooling.output_width == 8
    assert pooling(tokens_of(kind, 3, 6)).shape == (3, 6, 8)


@kinds
def test_a_frame_without_batch_axes_is_pooled_as_one_of_a_batch(kind):
    """Guards against: a rank assumed anywhere."""
    tokens = tokens_of(kind, 2)
    valid = torch.ones(tokens.shape[:-1], dtype=torch.bool)
    valid[0, 1] = False
    pooling = pooling_of(kind)
    assert torch.allclose(pooling(tokens[0]), pooling(tokens)[0], atol=1e-6)
    assert torch.allclose(pooling(tokens[0], valid[0]), pooling(tokens, valid)[0], atol=1e-6)


@pytest.mark.parametrize("latent", [1, 2, 3, 5, 7])
@pytest.mark.parametrize("count", [1, 4, 5, 9])
def test_max_bins_are_those_of_torchs_adaptive_max(latent, count):
    """Guards against: bins that differ from RoboVLMs' heads: 5 tokens with latent 2 are 0:3 and 2:5."""
    tokens = torch.randn(3, count, 4)
    expected = torch.nn.functional.adaptive_max_pool1d(tokens.transpose(1, 2), latent).transpose(1, 2).flatten(1)
    assert torch.equal(make("pooling", "max", 4, latent=latent)(tokens), expected)


@pytest.mark.parametrize("latent", [1, 2, 3])
def test_mean_bins_are_those_of_torchs_adaptive_mean(latent):
    """Guards against: bins of `mean` that differ from those of `max`."""
    tokens = torch.randn(3, 5, 4)
    expected = torch.nn.functional.adaptive_avg_pool1d(tokens.transpose(1, 2), latent).transpose(1, 2).flatten(1)
    assert torch.allclose(make("pooling", "mean", 4, latent=latent)(tokens), expected, atol=1e-6)


@kinds
@given(data=st.data())
@settings(max_examples=15, deadline=None)
def test_invalid_tokens_have_no_influence_even_as_nan(kind, data):
    """Guards against: padding tokens that steer the arm."""
    tokens = tokens_of(kind, 3)
    valid = torch.tensor(
        data.draw(
            st.lists(
                st.lists(st.booleans(), min_size=tokens.shape[1], max_size=tokens.shape[1]), min_size=3, max_size=3
            )
        )
    )
    other = torch.where(valid[..., None], tokens, data.draw(st.sampled_from([0.0, 1e6, float("nan"), float("inf")])))
    pooling = pooling_of(kind)
    pooled = pooling(tokens, valid)
    assert pooled.isfinite().all()
    assert torch.equal(pooled, pooling(other, valid))


@pytest.mark.parametrize("kind", ["max", "mean", "attention", "resampler"])
def test_a_masked_frame_pools_as_one_without_the_masked_tokens(kind):
    """Guards against: a mask that changes weights or counts; for one latent vector, bins play no part."""
    pooling = pooling_of(kind, latent=1)
    tokens = torch.randn(2, 5, 4)
    valid = torch.tensor([True, False, True, True, False]).expand(2, 5)
    assert torch.allclose(pooling(tokens, valid), pooling(tokens[:, [0, 2, 3]]), atol=1e-6)


@kinds
def test_a_frame_without_a_valid_token_pools_to_zero_with_zero_gradient(kind):
    """Guards against: NaN from a softmax, a maximum or a mean over nothing, in the value and in what is learned from it."""
    tokens = tokens_of(kind, 2).requires_grad_()
    valid = torch.ones(tokens.shape[:-1], dtype=torch.bool)
    valid[1] = False
    pooling = pooling_of(kind)
    pooled = pooling(tokens, valid)
    assert torch.equal(pooled[1], torch.zeros(8))
    pooled.square().sum().backward()
    assert torch.equal(tokens.grad[1], torch.zeros_like(tokens.grad[1]))
    assert tokens.grad[0].abs().sum() > 0
    assert all(parameter.grad.isfinite().all() for parameter in pooling.parameters())


@kinds
def test_an_all_true_mask_changes_nothing(kind):
    """Guards against: two meanings of no mask."""
    tokens = tokens_of(kind, 3)
    valid = torch.ones(tokens.shape[:-1], dtype=torch.bool)
    assert torch.allclose(pooling_of(kind)(tokens), pooling_of(kind)(tokens, valid), atol=1e-6)


def test_no_pooling_keeps_token_order():
    """Guards against: a flattening other than (n d): column n * D + d."""
    tokens = torch.arange(6.0).reshape(1, 2, 3)
    assert torch.equal(make("pooling", "none", 3, latent=2)(tokens), torch.arange(6.0)[None])


def test_no_pooling_refuses_another_number_of_tokens():
    """Guards against: a camera that appears or disappears and shifts every column."""
    with pytest.raises(ValueError, match=r"got 3 tokens per frame; expected --pooling\.latent = 2"):
        make("pooling", "none", 4, latent=2)(torch.randn(1, 3, 4))


def test_what_a_resampler_reads_depends_on_other_tokens():
    """Guards against: a resampler whose layers don't see each other's results: then an instruction could not steer it."""
    torch.manual_seed(0)
    pooling = make("pooling", "resampler", 8, heads=2, depth=2)
    scene, text_a, text_b = torch.randn(2, 3, 8), torch.randn(1, 1, 8), torch.randn(1, 1, 8)
    outputs = [pooling(torch.cat([scene, text.expand(2, 1, 8)], dim=1)) for text in (text_a, text_b)]
    differences = [output[0] - output[1] for output in outputs]
    assert (differences[0] - differences[1]).abs().max() > 1e-3


def test_heads_that_do_not_divide_the_width_are_refused():
    """Guards against: an error from deep inside a reshape."""
    with pytest.raises(ConfigError, match=r"--pooling.heads 3 does not divide the token width 4"):
        make("pooling", "attention", 4, heads=3)


@pytest.mark.parametrize(
    ("options", "values", "message"),
    [
        (MaxOptions, {"latent": 0}, "--pooling.latent must be >= 1, got 0"),
        (AttentionOptions, {"heads": 0}, "--pooling.heads must be >= 1, got 0"),
        (ResamplerOptions, {"depth": 0}, "--pooling.depth must be >= 1, got 0"),
    ],
)
def test_sizes_below_one_are_refused(options, values, message):
    """Guards against: pooled frames that do not depend on the tokens."""
    with pytest.raises(ConfigError, match=message):
        options(**values)
