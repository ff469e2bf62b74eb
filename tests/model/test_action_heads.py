"""Action heads: one contract, four ways to learn."""

import pytest
import torch
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from robopolicy.components import ConfigError, kinds
from robopolicy.model.action_heads.discrete import DiscreteOptions
from robopolicy.model.action_heads.flow import FlowOptions
from robopolicy.model.action_heads.gmm import GaussianMixtureOptions
from robopolicy.model.action_heads.regression import RegressionOptions
from robopolicy.types import ActionSpec
from tests.making import make

H, K = 16, 3
SPEC = ActionSpec(arm=4, gripper=2)
every_kind = pytest.mark.parametrize("kind", kinds("action_head"))


def make_head(kind, spec=SPEC, **options):
    torch.manual_seed(0)
    return make("action_head", kind, H, spec, chunk=K, widths=(8, 8), **options)


def labels_of(*lead, gripper=2):
    arm = torch.rand(*lead, K, 4) * 2 - 1
    return torch.cat([arm, torch.randint(0, 2, (*lead, K, gripper)).float()], dim=-1)


def all_valid(*lead):
    return torch.ones(*lead, K, dtype=torch.bool)


@every_kind
@pytest.mark.parametrize("lead", [(), (5,), (2, 3), (2, 1, 3)])
@pytest.mark.parametrize("sampled", [False, True])
def test_any_leading_axes_decode_to_bounded_actions(kind, lead, sampled):
    """Guards against: a head that knows one layout of the batch only."""
    generator = torch.Generator().manual_seed(0) if sampled else None
    chunk = make_head(kind).decode(torch.randn(*lead, H), generator=generator)
    assert chunk.arm.shape == (*lead, K, 4)
    assert chunk.gripper_logit.shape == (*lead, K, 2)
    assert chunk.arm.abs().max() <= 1


@every_kind
def test_every_head_learns_a_constant_action(kind):
    """Guards against: a loss that doesn't reach the decoded action."""
    head = make_head(kind)
    hidden = torch.randn(64, H)
    labels = torch.tensor([0.5, -0.25, 0.125, -0.75, 1.0, 0.0]).expand(64, K, 6)
    optimizer = torch.optim.Adam(head.parameters(), lr=1e-2)
    for _ in range(150):
        losses = head.losses(hidden, labels, all_valid(64))
        optimizer.zero_grad()
        sum(losses[name] for name in head.loss_names).backward()
        optimizer.step()
    assert (head.decode(hidden).arm - labels[..., :4]).abs().max() < 0.1
    assert head.losses(hidden, labels, all_valid(64))["gripper_accuracy"] == 1


@every_kind
def test_nan_at_invalid_places_has_no_influence(kind):
    """Guards against: padding, which holds whatever the loader left there, in losses or gradients."""
    head = make_head(kind)
    hidden = torch.randn(2, 5, H)
    labels, valid = labels_of(2, 5), all_valid(2, 5)
    valid[1, 3:] = False
    labels[~valid] = torch.nan
    losses = head.losses(hidden, labels, valid)
    sum(losses[name] for name in head.loss_names).backward()
    assert all(torch.isfinite(value) for value in losses.values())
    assert all(torch.isfinite(p.grad).all() for p in head.parameters())
    empty = head.losses(hidden, labels, torch.zeros_like(valid))
    sum(empty[name] for name in head.loss_names).backward()
    assert all(value == 0 for value in empty.values())
    assert all(torch.isfinite(p.grad).all() for p in head.parameters())


@every_kind
def test_without_a_gripper_every_head_works(kind):
    """Guards against: a head that needs a gripper."""
    head = make_head(kind, ActionSpec(arm=4, gripper=0))
    hidden = torch.randn(2, H)
    assert head.decode(hidden).gripper_logit.shape == (2, K, 0)
    losses = head.losses(hidden, labels_of(2, gripper=0), all_valid(2))
    assert all(torch.isfinite(value) for value in losses.values())


@every_kind
def test_the_same_generator_seed_draws_the_same_actions(kind):
    """Guards against: rollouts that can't be repeated, and a head whose `samples` is wrong."""
    head = make_head(kind)
    hidden = torch.randn(6, H)
    first, again, other = (head.decode(hidden, generator=torch.Generator().manual_seed(seed)).arm for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert torch.equal(first, other) != head.samples
    assert torch.equal(first, head.decode(hidden).arm) != head.samples


@every_kind
def test_a_prefix_is_refused_by_heads_that_do_not_use_it(kind):
    """Guards against: actions already committed to that are silently ignored."""
    head = make_head(kind)
    if head.uses_prefix:
        pytest.skip("this head uses prefixes")
    with pytest.raises(ValueError, match=r"uses_prefix is False.*--action_head\.prefix"):
        head.decode(torch.randn(2, H), prefix=torch.zeros(2, 1, 6))


def test_half_of_the_rows_are_trained_without_a_prefix(monkeypatch):
    """Guards against: first actions that are seldom trained, since most rows have a prefix: a policy that fails without one."""
    head, supervised = make_head("regression", prefix=2), []
    monkeypatch.setattr(
        head, "arm_loss", lambda hidden, labels, valid, drawn: supervised.append(valid[..., 0]) or hidden.sum()
    )
    head.losses(torch.randn(4000, H), labels_of(4000), all_valid(4000))
    lengths = K - supervised[0].sum(dim=-1)
    shares = torch.bincount(lengths, minlength=3) / 4000
    torch.testing.assert_close(shares, torch.tensor([0.5, 0.25, 0.25]), atol=0.03, rtol=0)


def test_outputs_of_a_step_lie_side_by_side():
    """Guards against: RoboVLMs' files, which hold arm output k * A + a, loaded in another order."""
    head = make_head("regression")
    hidden = torch.randn(H)
    chunk = head.decode(hidden)
    flat = torch.tanh(head.actions(hidden))
    for k in range(K):
        for a in range(4):
            assert chunk.arm[k, a] == flat[k * 4 + a]
        for g in range(2):
            assert chunk.gripper_logit[k, g] == head.gripper(hidden)[k * 2 + g]


def test_the_mixture_loss_is_its_negative_log_likelihood():
    """Guards against: a density that is wrong by a constant or a mode's weight."""
    head = make_head("gmm", modes=3)
    hidden, labels = torch.randn(7, H), labels_of(7)
    logits, means, stds = head.mixture(hidden)
    expected = MixtureSameFamily(Categorical(logits=logits), Independent(Normal(means, stds), 1))
    loss = head.losses(hidden, labels, all_valid(7))["arm"]
    torch.testing.assert_close(loss, -expected.log_prob(labels[..., :4]).mean())


def test_the_mixture_decodes_to_its_most_probable_mode():
    """Guards against: an average over modes, between two good actions and equal to neither."""
    head = make_head("gmm", modes=3)
    hidden = torch.randn(7, H)
    logits, means, stds = head.mixture(hidden)
    best = logits.argmax(-1)
    arm = head.decode(hidden).arm
    for row in range(7):
        for k in range(K):
            assert torch.equal(arm[row, k], means[row, k, best[row, k]])
    assert stds.min() >= head.options.min_std


def test_mixture_samples_have_the_mixtures_moments():
    """Guards against: samples of another distribution than the one that was trained."""
    head = make_head("gmm", modes=3, min_std=0.05)
    with torch.no_grad():
        head.actions.mlp[-1].weight.mul_(3)
        hidden = torch.randn(H)
        logits, means, stds = head.mixture(hidden)
        stds.clamp_(max=0.1)
        head.mixture = lambda hidden: (
            type(head).mixture(head, hidden)._replace(stds=stds.expand(len(hidden), *stds.shape))
        )
        drawn = head.decode(hidden.expand(20_000, H), generator=torch.Generator().manual_seed(0)).arm
    weights = logits.softmax(-1)[..., None]
    mean = (weights * means).sum(-2)
    variance = (weights * (stds.square() + means.square())).sum(-2) - mean.square()
    assert (drawn.mean(0) - mean).abs().max() < 0.01
    assert (drawn.var(0) / variance - 1).abs().max() < 0.1


@pytest.mark.parametrize("kind", ["gmm", "discrete"])
def test_a_low_temperature_draws_the_most_probable_action(kind):
    """Guards against: a temperature without effect, or one that works the other way round."""
    hidden = torch.randn(20, H)
    cold, warm = make_head(kind, temperature=1e-6), make_head(kind, temperature=1.0)
    mode = cold.decode(hidden).arm
    assert (cold.decode(hidden, generator=torch.Generator().manual_seed(0)).arm - mode).abs().max() < 0.02
    assert (warm.decode(hidden, generator=torch.Generator().manual_seed(0)).arm - mode).abs().max() > 0.1


def test_a_bin_decodes_to_its_own_center():
    """Guards against: edges and centers mixed up, which shifts every action by half a bin."""
    head = make_head("discrete", bins=256)
    centers = (torch.arange(256) + 0.5) / 128 - 1
    logits = torch.full((256, K, 4, 256), -10.0)
    logits[torch.arange(256), :, :, torch.arange(256)] = 10.0
    head.logits = lambda hidden: logits
    arm = head.decode(torch.zeros(256, H)).arm
    assert torch.equal(arm, centers[:, None, None].expand(256, K, 4))
    labels = torch.cat([arm, torch.zeros(256, K, 2)], dim=-1)
    assert head.losses(torch.zeros(256, H), labels, all_valid(256))["arm"] < 1e-6
    for edge in (-1.5, 1.5):
        outside = torch.full_like(labels, edge)
        assert torch.isfinite(head.losses(torch.zeros(256, H), outside, all_valid(256))["arm"])


@every_kind
def test_arm_weights_count_in_every_head(kind):
    """Guards against: a weight that one head's loss forgets."""
    plain, ones, second = (make_head(kind, arm_weights=w) for w in ((), (1.0,) * 4, (0.0, 1.0, 0.0, 0.0)))
    if kind == "flow":  # its network sees the labels of all columns, with noise; here it must not depend on them
        for head in (plain, ones, second):
            torch.nn.init.zeros_(head.network.output.weight)
    hidden, labels = torch.randn(7, H), labels_of(7)
    moved = torch.cat([labels[..., :1] * 0.5, labels[..., 1:]], dim=-1)

    def arm(head, labels):
        torch.manual_seed(0)
        return head.losses(hidden, labels, all_valid(7))["arm"]

    assert arm(second, moved) == arm(second, labels)
    assert arm(plain, moved) != arm(plain, labels)
    torch.testing.assert_close(arm(ones, labels), arm(plain, labels))
    with pytest.raises(ConfigError, match=r"--action_head\.arm_weights has 3 entries for 4 arm columns"):
        make_head(kind, arm_weights=(1.0,) * 3)


@every_kind
@pytest.mark.parametrize(
    ("labels", "valid", "message"),
    [
        (torch.zeros(2, K, 5), all_valid(2), "expected 6 columns, 4 arm and 2 gripper"),
        (torch.zeros(2, K, 6), torch.ones(2, dtype=torch.bool), "valid has shape .* a flag per action"),
    ],
)
def test_labels_of_another_shape_are_refused(kind, labels, valid, message):
    """Guards against: labels or masks that broadcast into a wrong loss."""
    with pytest.raises(ValueError, match=message):
        make_head(kind).losses(torch.zeros(2, H), labels, valid)


@pytest.mark.parametrize("kind", ["regression", "gmm"])
@pytest.mark.parametrize(("bound", "learns"), [("tanh", False), ("clamp", True)])
def test_a_clamped_arm_learns_from_outputs_beyond_the_range(kind, bound, learns):
    """Guards against: demos at the ends of the range, which push tanh to where its gradient vanishes."""
    head = make_head(kind, bound=bound, **({"modes": 1} if kind == "gmm" else {}))
    bias = head.actions.mlp[-1].bias
    torch.nn.init.constant_(bias, -20.0)
    hidden, labels = torch.randn(8, H), torch.zeros(8, K, 6)
    assert head.decode(hidden).arm.min() == -1
    assert head.decode(hidden, generator=torch.Generator()).arm.min() == -1
    head.losses(hidden, labels, all_valid(8))["arm"].backward()
    means = bias.grad if kind == "regression" else bias.grad.reshape(K, -1)[:, 1 : 1 + 4]
    assert bool((means.abs() > 1e-3).all()) == learns


@pytest.mark.parametrize(
    ("options", "values", "message"),
    [
        (RegressionOptions, {"chunk": 0}, "--action_head.chunk must be >= 1, got 0"),
        (RegressionOptions, {"widths": (8, 0)}, r"--action_head.widths must be >= 1, got \[8, 0\]"),
        (RegressionOptions, {"huber_delta": 0.0}, "--action_head.huber_delta must be > 0, got 0.0"),
        (GaussianMixtureOptions, {"modes": 0}, "--action_head.modes must be >= 1, got 0"),
        (GaussianMixtureOptions, {"min_std": 0.0}, "--action_head.min_std must be > 0, got 0.0"),
        (GaussianMixtureOptions, {"temperature": 0.0}, "--action_head.temperature must be > 0, got 0.0"),
        (DiscreteOptions, {"bins": 1}, "--action_head.bins must be >= 2, got 1"),
        (FlowOptions, {"steps": 0}, "--action_head.steps must be >= 1, got 0"),
        (RegressionOptions, {"prefix": 8}, "--action_head.prefix must be less than --action_head.chunk 8, got 8"),
    ],
)
def test_sizes_that_make_no_distribution_are_refused(options, values, message):
    """Guards against: a mixture or choice of nothing, which fails later as an argmax over no entries."""
    with pytest.raises(ConfigError, match=message):
        options(**values)
