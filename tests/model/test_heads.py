"""Action heads: one interface, three ways to learn."""

import pytest
import torch
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from robopolicy.model.heads import HEADS, make_action_head
from robopolicy.types import ActionSpec

H, K = 16, 3
SPEC = ActionSpec(arm=4, gripper=2)


def make(kind, spec=SPEC, **options):
    torch.manual_seed(0)
    return make_action_head(kind, H, spec, K, (8, 8), **options)


def target_for(chunk, gripper=2):
    shape = chunk.arm.shape[:-1]
    return torch.cat([torch.rand(*shape, 4) * 2 - 1, torch.randint(0, 2, (*shape, gripper)).float()], dim=-1)


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("lead", [(), (5,), (2, 3), (2, 1, 3)])
def test_every_head_decodes_any_leading_axes_into_bounded_actions(kind, lead):
    """A head that knows one layout of the batch breaks the other way of running it."""
    chunk = make(kind)(torch.randn(*lead, H))
    assert chunk.arm.shape == (*lead, K, 4)
    assert chunk.gripper_logit.shape == (*lead, K, 2)
    assert chunk.arm.abs().max() <= 1


@pytest.mark.parametrize("kind", HEADS)
def test_every_head_learns_a_constant_action(kind):
    """A loss that doesn't reach the decoded action trains nothing."""
    head = make(kind)
    hidden = torch.randn(64, H)
    target = torch.tensor([0.5, -0.25, 0.125, -0.75, 1.0, 0.0]).expand(64, K, 6)
    optimizer = torch.optim.Adam(head.parameters(), lr=1e-2)
    for _ in range(150):
        loss = head.loss(head(hidden), target)
        optimizer.zero_grad()
        loss["loss_arm"].add(loss["loss_gripper"]).backward()
        optimizer.step()
    chunk = head(hidden)
    assert (chunk.arm - target[..., :4]).abs().max() < 0.1
    assert head.loss(chunk, target)["gripper_accuracy"] == 1


@pytest.mark.parametrize("kind", HEADS)
def test_nan_at_invalid_places_leaks_nowhere(kind):
    """Padding is whatever the loader left there."""
    head = make(kind)
    hidden = torch.randn(2, 5, H)
    chunk = head(hidden)
    target = target_for(chunk)
    valid = torch.ones(2, 5, K, dtype=torch.bool)
    valid[1, 3:] = False
    target[~valid] = torch.nan
    loss = head.loss(chunk, target, valid)
    loss["loss"].backward()
    assert all(torch.isfinite(value) for value in loss.values())
    assert all(torch.isfinite(p.grad).all() for p in head.parameters())
    empty = head.loss(head(hidden), target, torch.zeros_like(valid))
    empty["loss"].backward()
    assert all(value == 0 for value in empty.values())
    assert all(torch.isfinite(p.grad).all() for p in head.parameters())


@pytest.mark.parametrize("kind", HEADS)
def test_without_a_gripper_every_head_works(kind):
    """A robot without a gripper is no special case."""
    head = make(kind, ActionSpec(arm=4, gripper=0))
    chunk = head(torch.randn(2, H))
    assert chunk.gripper_logit.shape == (2, K, 0)
    assert torch.isfinite(head.loss(chunk, target_for(chunk, gripper=0))["loss"])


def test_outputs_of_a_step_stand_together():
    """RoboVLMs' files hold arm output k * A + a; any other order loads and acts wrong."""
    head = make("regression")
    hidden = torch.randn(H)
    chunk = head(hidden)
    flat = torch.tanh(head.actions(hidden))
    for k in range(K):
        for a in range(4):
            assert chunk.arm[k, a] == flat[k * 4 + a]
        for g in range(2):
            assert chunk.gripper_logit[k, g] == head.gripper(hidden)[k * 2 + g]


def test_the_mixture_loss_is_the_mixtures_negative_log_likelihood():
    """A home-made density is easily wrong by a constant or a mode's weight."""
    head = make("gmm", modes=3)
    chunk = head(torch.randn(7, H))
    target = target_for(chunk)
    raw = chunk.raw
    mixture = MixtureSameFamily(Categorical(logits=raw["logits"]), Independent(Normal(raw["means"], raw["stds"]), 1))
    expected = -mixture.log_prob(target[..., :4]).mean()
    torch.testing.assert_close(head.loss(chunk, target)["loss_arm"], expected)


def test_the_mixture_acts_by_the_mean_of_its_most_probable_mode():
    """An average over modes drives between two good actions into neither."""
    head = make("gmm", modes=3)
    chunk = head(torch.randn(7, H))
    best = chunk.raw["logits"].argmax(-1)
    for row in range(7):
        for k in range(K):
            assert torch.equal(chunk.arm[row, k], chunk.raw["means"][row, k, best[row, k]])
    assert chunk.raw["stds"].min() >= head.min_std


def test_a_bin_decodes_to_its_own_centre():
    """Edges and centres mixed up shift every action by half a bin."""
    head = make("discrete", bins=256)
    centres = (torch.arange(256) + 0.5) / 128 - 1
    logits = torch.full((256, K, 4, 256), -10.0)
    logits[torch.arange(256), :, :, torch.arange(256)] = 10.0
    chunk = head(torch.zeros(256, H))
    decoded = type(chunk)(
        arm=centres[:, None, None].expand(256, K, 4), gripper_logit=chunk.gripper_logit, raw={"logits": logits}
    )
    target = torch.cat([decoded.arm, torch.zeros(256, K, 2)], dim=-1)
    assert head.loss(decoded, target)["loss_arm"] < 1e-6
    for edge in (-1.5, 1.5):
        assert torch.isfinite(head.loss(decoded, torch.full_like(target, edge).clamp(-1.5, 1.5))["loss_arm"])


def test_an_unknown_head_is_refused_with_a_list():
    """A typo must name the choices."""
    with pytest.raises(ValueError, match="choose one of regression, gmm, discrete"):
        make("gm")


@pytest.mark.parametrize("kind", HEADS)
def test_arm_weights_count_in_every_head(kind):
    """A weight that one head's loss forgets is a setting without effect."""
    head = make(kind)
    chunk = head(torch.randn(7, H))
    target = target_for(chunk)
    one_column = head.loss(chunk, target, arm_weights=(0.0, 1.0, 0.0, 0.0))["loss_arm"]
    moved = torch.cat([target[..., :1] * 0.5, target[..., 1:]], dim=-1)
    assert head.loss(chunk, moved, arm_weights=(0.0, 1.0, 0.0, 0.0))["loss_arm"] == one_column
    assert head.loss(chunk, moved)["loss_arm"] != head.loss(chunk, target)["loss_arm"]
    torch.testing.assert_close(
        head.loss(chunk, target, arm_weights=(1.0,) * 4)["loss_arm"], head.loss(chunk, target)["loss_arm"]
    )
    with pytest.raises(ValueError, match=r"--loss\.arm_weights has 3 entries for 4 arm columns"):
        head.loss(chunk, target, arm_weights=(1.0,) * 3)


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("gmm", {"modes": 0}, "gmm with 0 modes"),
        ("gmm", {"min_std": 0.0}, "a least deviation of 0.0"),
        ("discrete", {"bins": 1}, "discrete with 1 bins"),
    ],
)
def test_sizes_that_make_no_distribution_are_refused(kind, options, message):
    """A mixture of nothing fails later, as an argmax over no entries."""
    with pytest.raises(ValueError, match=message):
        make(kind, **options)


def test_a_chunk_of_no_actions_is_refused():
    """It would build, warn and act on nothing."""
    with pytest.raises(ValueError, match="a chunk of 0 actions; expected 1 or more"):
        make_action_head("regression", H, SPEC, 0)
