"""The flow-matching action head: the distribution it learns, prefixes, steps and noise."""

import math

import pytest
import torch

from robopolicy.model import packed
from robopolicy.types import ActionSpec
from tests.making import make

H = 4


def flow_head(chunk, arm, gripper=0, **options):
    torch.manual_seed(0)
    spec = ActionSpec(arm=arm, gripper=gripper)
    return make("action_head", "flow", H, spec, chunk=chunk, widths=(8,), width=64, **options)


def fitted(head, sample, steps=600, batch=256):
    """The head after some hundred steps on labels drawn by `sample(batch)` (batch, K, A+G)."""
    optimizer = torch.optim.Adam(head.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    valid = torch.ones(batch, head.chunk, dtype=torch.bool)
    for _ in range(steps):
        optimizer.zero_grad()
        head.losses(torch.zeros(batch, H), sample(batch), valid)["arm"].backward()
        optimizer.step()
        schedule.step()
    return head


def drawn(head, count):
    with torch.no_grad():
        return head.decode(torch.zeros(count, H), generator=torch.Generator().manual_seed(1)).arm


@pytest.mark.parametrize("times", ["beta", "uniform"])
def test_a_gaussian_target_is_learned_with_its_covariance(times):
    """Guards against: samples too narrow, too wide or uncorrelated: a wrong path, target or integration."""
    mean = torch.tensor([0.2, -0.3])
    factor = torch.tensor([[0.2, 0.0], [0.15, 0.1]])
    head = fitted(
        flow_head(1, 2, times=times, draws=4),
        lambda n: mean + torch.randn(n, 1, 2) @ factor.T,
    )
    arm = drawn(head, 4000)[:, 0]
    assert (arm.mean(0) - mean).abs().max() < 0.03
    covariance = factor @ factor.T
    assert (arm.T.cov() - covariance).abs().max() < 0.15 * covariance.max()


def test_two_points_are_drawn_equally_often():
    """Guards against: the mean of two demonstrated ways, or one of them only."""
    points = torch.tensor([[-0.6, 0.4], [0.6, 0.4]])
    head = flow_head(2, 1, draws=4)
    fitted(head, lambda n: points[torch.arange(n) % 2][..., None])
    arm, count = drawn(head, 1000)[..., 0], 1000
    left = arm[:, 0] < 0
    nearest = points[(~left).long()]
    assert (arm - nearest).abs().max(dim=-1).values.quantile(0.95) < 0.1
    assert abs(left.sum() - count / 2) < 3 * math.sqrt(count / 4)
    with torch.no_grad():
        fixed = head.decode(torch.zeros(H)).arm[0, 0]
    assert fixed.abs() > 0.5, "without a generator the head must choose one of the two ways"


@pytest.mark.parametrize("prefix", [0, 2])
def test_a_prefix_is_kept_bit_for_bit_and_continued(prefix):
    """Guards against: committed actions that are changed, or a continuation of the other way."""
    levels = torch.tensor([-0.6, 0.6])

    def sample(count):
        return levels[torch.randint(2, (count,))][:, None, None].expand(count, 4, 1)

    head = fitted(flow_head(4, 1, prefix=prefix), sample)
    committed = torch.where(torch.rand(200) < 0.5, -0.6, 0.6)[:, None, None].expand(200, 2, 1) + 0.01 * torch.rand(
        200, 2, 1
    )
    with torch.no_grad():
        arm = head.decode(torch.zeros(200, H), generator=torch.Generator().manual_seed(0), prefix=committed).arm
    assert torch.equal(arm[:, :2], committed)
    agrees = (arm[:, 2:].sign() == committed[:, :1].sign()).all(dim=1)
    # Guidance without training for it is approximate; without any, half of the chunks would agree.
    assert agrees.float().mean() > (0.95 if prefix else 0.8)


@pytest.mark.parametrize("kind", ["regression", "gmm", "discrete", "flow"])
def test_a_trained_prefix_decides_among_two_ways(kind):
    """Guards against: the trained-prefix variant of real-time chunking that ignores its prefix, or changes it."""
    torch.manual_seed(0)
    head = make("action_head", kind, H, ActionSpec(arm=1, gripper=1), chunk=3, widths=(32,), prefix=1)

    def sample(count):
        way = torch.randint(2, (count,))[:, None, None].expand(count, 3, 1).float()
        return torch.cat([1.2 * way - 0.6, way], dim=-1)

    fitted(head, sample, steps=300)
    way = torch.tensor([0.0, 1.0, 1.0, 0.0])[:, None, None]
    committed = torch.cat([1.2 * way - 0.6, way], dim=-1)
    with torch.no_grad():
        chunk = head.decode(torch.zeros(4, H), prefix=committed)
    assert torch.equal(chunk.arm[:, :1], committed[..., :1])
    assert torch.equal(chunk.gripper_logit[:, :1] > 0, committed[..., 1:] > 0.5)
    assert (chunk.arm - committed[..., :1]).abs().max() < 0.1


def test_a_prefix_of_the_wrong_size_is_refused():
    """Guards against: a prefix longer than the chunk, or than those of training, cut without a word."""
    with pytest.raises(ValueError, match=r"prefix of 5 actions; expected at most --action_head\.chunk 4"):
        flow_head(4, 1).decode(torch.zeros(H), prefix=torch.zeros(5, 1))
    with pytest.raises(ValueError, match=r"prefix of 2 actions; expected at most --action_head\.prefix 1"):
        flow_head(4, 1, prefix=1).decode(torch.zeros(H), prefix=torch.zeros(2, 1))
    with pytest.raises(ValueError, match="prefix has shape"):
        flow_head(4, 1).decode(torch.zeros(3, H), prefix=torch.zeros(2, 1, 1))


@pytest.mark.parametrize("solver", ["euler", "midpoint"])
def test_the_number_of_steps_can_change_after_training(solver):
    """Guards against: steps fixed when the head is built; more steps must converge to one flow."""
    head = fitted(flow_head(1, 1, solver=solver), lambda n: 0.3 * torch.randn(n, 1, 1), steps=200)
    ends = {}
    for steps in (1, 40, 80):
        head.steps = steps
        ends[steps] = drawn(head, 200)
    assert not torch.equal(ends[1], ends[80])
    assert (ends[40] - ends[80]).abs().mean() < 0.02


def test_a_frozen_head_draws_and_continues_as_the_original():
    """Guards against: packed weights of another flow, or guidance that fails without gradients."""
    head = flow_head(3, 2, gripper=1).eval()
    frozen = packed.freeze(head)
    hidden, prefix = torch.randn(5, H), torch.zeros(5, 1, 3)
    for given in (None, prefix):
        with torch.inference_mode():
            chunk = frozen.decode(hidden, generator=torch.Generator().manual_seed(0), prefix=given)
        with torch.no_grad():
            expected = head.decode(hidden, generator=torch.Generator().manual_seed(0), prefix=given)
        torch.testing.assert_close(chunk.arm, expected.arm, atol=1e-5, rtol=0)
        torch.testing.assert_close(chunk.gripper_logit, expected.gripper_logit, atol=1e-5, rtol=0)
