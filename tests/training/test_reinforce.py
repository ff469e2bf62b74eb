"""Recurrent PPO: what is replayed is what was done, advantages are the textbook's, and memory is what solves a memory task."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pytest
import torch
from tensordict import TensorDict

from robopolicy.components import ConfigError
from robopolicy.experiment import DemoFacts, ExperimentConfig, build_policy
from robopolicy.model.policy import ChunkPolicy
from robopolicy.rollout.episodes import Step, run_steps
from robopolicy.training.actor_critic import ActionDistribution, Explorer
from robopolicy.training.reinforce import Learner, PPOConfig, advantages
from robopolicy.training.sequences import SequenceStorage
from robopolicy.types import ActionSpec, ArraySpec
from tests.small_runs import SMALL

WORLDS, STEPS = 5, 17


class Worlds:
    """Random observations and rewards; every world ends at random, by an end or a time limit."""

    num_envs, control_dt = WORLDS, 0.1
    episode_figures: Sequence[str] = ()

    def __init__(self) -> None:
        self.rng = np.random.default_rng(0)

    def frame(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """A random observation."""
        obs = {"state": self.rng.normal(size=(WORLDS, 3)).astype(np.float32)}
        return obs, {"instruction": [""] * WORLDS, "success": np.zeros(WORLDS, dtype=bool)}

    def reset(self, *, seed: Sequence[int], options: Mapping[str, Any] | None = None) -> tuple[dict, dict]:
        """Observations of all worlds, as of the running ones too: nothing depends on them."""
        return self.frame()

    def step(self, actions: np.ndarray) -> tuple[dict, np.ndarray, np.ndarray, np.ndarray, dict]:
        """Ends of both kinds."""
        obs, info = self.frame()
        ends = self.rng.random((2, WORLDS)) < 0.12
        return obs, self.rng.random(WORLDS), ends[0], ends[1], info

    def states(self) -> None:
        """None."""

    def faults(self, info: object, world: int) -> tuple[str, ...]:
        """None."""
        return ()


def make_policy(changes: Mapping[str, Any], action: ActionSpec | None = None) -> ChunkPolicy:
    torch.manual_seed(0)
    config = ExperimentConfig().change({**SMALL, "action_head.chunk": 3, **changes})
    return build_policy(config, DemoFacts(action or ActionSpec(arm=2, gripper=1), {"state": ArraySpec((3,))}))


MEMORIES = {
    "none": {"memory": {"kind": "none"}},
    "lstm-window": {},
    "gru-window": {"memory.kind": "gru"},
    "lstm-one": {"memory.window": 1},
    "lstm-long": {"memory.window": 30},
    "lstm-carry": {"memory.history": "carry"},
    "gru-carry": {"memory.kind": "gru", "memory.history": "carry"},
    "transformer": {"memory.kind": "transformer", "memory.heads": 2},
}


def rolled_out(learner: Learner, steps: int = STEPS) -> tuple[SequenceStorage, Any]:
    """A rollout that begins in the middle of the episodes, with advantages; and the states before it."""
    explorer = Explorer(learner, WORLDS, torch.Generator().manual_seed(0))
    rollout: Iterator[Step] = run_steps(Worlds(), explorer, iter(range(10_000)))
    for _ in range(4):
        next(rollout)
    storage, before = SequenceStorage(steps, WORLDS), None
    for step in rollout:
        before = before or explorer.before
        ends = {name: torch.as_tensor(getattr(step, name)) for name in ("terminated", "truncated")}
        storage.append(TensorDict({**explorer.frame, **ends, "reward": torch.as_tensor(step.reward).float()}, [WORLDS]))
        if len(storage) == steps:
            break
    assert storage.done.any(0).sum() >= 3
    storage.add("advantage", torch.randn(steps, WORLDS, generator=torch.Generator().manual_seed(0)))
    return storage, before


@pytest.mark.parametrize("bptt", [None, 4])
@pytest.mark.parametrize("decision", [1, 3])
@pytest.mark.parametrize("memory", MEMORIES)
def test_a_mini_batch_replays_the_rollouts_outputs(memory: str, decision: int, bptt: int | None) -> None:
    """Guards against: a ratio that is not 1 before the first update, from a state saved one step early or a reset missed."""
    learner = Learner(make_policy(MEMORIES[memory]), PPOConfig(decision_steps=decision, bptt_steps=bptt))
    torch.nn.init.normal_(learner.critic.value.weight)
    storage, before = rolled_out(learner)
    seen = []
    for batch in storage.mini_batches(2, torch.Generator().manual_seed(0)):
        steps = batch.steps[batch.steps["decides"]]
        found = learner.distribution(learner.replay(batch, learner.policy, before[0]), learner.policy)
        value = learner.critic.unscaled(learner.critic(learner.replay(batch, learner.critic.body, before[1])))
        torch.testing.assert_close(found.log_prob(steps["action"]), steps["log_prob"], atol=1e-5, rtol=0)
        torch.testing.assert_close(value, steps["value"], atol=1e-5, rtol=0)
        assert value.std() > 0.01
        seen += batch.environments.tolist()
    assert sorted(seen) == list(range(WORLDS))


def test_a_replay_from_a_zero_state_differs() -> None:
    """Guards against: a test of the replay that could not fail, since the state hardly matters."""
    learner = Learner(make_policy({"memory.history": "carry"}), PPOConfig(decision_steps=1))
    storage, before = rolled_out(learner)
    (batch,) = storage.mini_batches(1)
    zero = learner.policy.initial_state(WORLDS)
    right, wrong = (
        learner.replay(batch, learner.policy, state).unflatten(0, (STEPS, WORLDS)) for state in (before[0], zero)
    )
    assert (right - wrong).abs().max() > 1e-3
    later = storage.done.cumsum(0)[:-1] > 0  # the second and later trajectories begin with an episode
    torch.testing.assert_close(right[1:][later], wrong[1:][later])


def reference(rows: Mapping[str, list[float]], decides: list[bool], gamma: float, lam: float) -> list[float | None]:
    """Advantages of one world by the definition: a sum over the decisions that follow within the episode."""
    count, reward, value = len(decides), rows["reward"], rows["value"]

    def ends(t: int) -> bool:
        return bool(rows["terminated"][t] or rows["truncated"][t])

    def error(t: int) -> tuple[float, int | None, int]:
        """The temporal-difference error of the decision at t, the next decision, and the steps between."""
        total, k = 0.0, 0
        while True:
            total += gamma**k * reward[t + k]
            now, k = t + k, k + 1
            if rows["terminated"][now]:
                return total - value[t], None, k
            if rows["truncated"][now] or now == count - 1:
                return total + gamma**k * rows["final_value"][now] - value[t], None, k
            if decides[now + 1]:
                return total + gamma**k * value[now + 1] - value[t], now + 1, k

    result: list[float | None] = []
    for start in range(count):
        if not decides[start]:
            result.append(None)
            continue
        advantage, weight, t = 0.0, 1.0, start
        while t is not None:
            delta, following, k = error(t)
            advantage, weight = advantage + weight * delta, weight * lam * gamma**k
            t = following
        result.append(advantage)
    return result


@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize(
    ("terminated", "truncated"),
    [
        ((), ()),
        ((3,), ()),
        ((), (3,)),
        ((6,), ()),
        ((), (6,)),
        ((6,), (6,)),
        ((2,), (4,)),
        ((4,), (2, 4)),
        ((0, 1), (2,)),
    ],
)
def test_advantages_are_those_of_the_definition(
    terminated: tuple[int, ...], truncated: tuple[int, ...], every: int
) -> None:
    """Guards against: a time limit worth nothing, an end worth something, rewards that leak into the next episode."""
    count = 7
    generator = torch.Generator().manual_seed(0)
    reward, value, final = (torch.randn(count, 1, generator=generator) for _ in range(3))
    ended = {*terminated, *truncated}
    decides, since = [], 0
    for t in range(count):
        since = 0 if t == 0 or t - 1 in ended else since + 1
        decides.append(since % every == 0)
    flags = {name: torch.tensor([t in at for t in range(count)])[:, None] for name, at in
             (("terminated", terminated), ("truncated", truncated))}  # fmt: skip
    rows = {"reward": reward, "value": value, "final_value": final, **flags}
    found = advantages(*rows.values(), torch.tensor(decides)[:, None], 0.9, 0.8)[:, 0].tolist()
    expected = reference({name: values[:, 0].tolist() for name, values in rows.items()}, decides, 0.9, 0.8)
    for ours, theirs in zip(found, expected, strict=True):
        assert theirs is None or ours == pytest.approx(theirs, abs=1e-5)


def test_the_distribution_is_torchs() -> None:
    """Guards against: a missing constant, or the gripper's label taken for its logit."""
    generator = torch.Generator().manual_seed(0)
    mean, logit = torch.randn(4, 2, 3, generator=generator), torch.randn(4, 2, 1, generator=generator)
    learned = torch.tensor([True, True, False])
    found = ActionDistribution(mean, torch.tensor([-1.0, 0.0, 1.0]), logit, learned)
    other = ActionDistribution(mean + 0.3, torch.tensor([-0.5, 0.2, 1.0]), logit - 1, learned)
    normal, bernoulli = torch.distributions.Normal, torch.distributions.Bernoulli
    parts = [(normal(d.mean, d.log_std.exp()), bernoulli(logits=d.logit)) for d in (found, other)]
    action = found.sample(generator)
    assert set(action[..., 3].unique().tolist()) == {0.0, 1.0}
    expected = parts[0][0].log_prob(action[..., :3])[..., :2].sum((1, 2)) + parts[0][1].log_prob(action[..., 3:]).sum(
        (1, 2)
    )
    torch.testing.assert_close(found.log_prob(action), expected)
    entropy = parts[0][0].entropy()[..., :2].sum((1, 2)) + parts[0][1].entropy().sum((1, 2))
    torch.testing.assert_close(found.entropy(), entropy)
    divergences = [torch.distributions.kl_divergence(one, two) for one, two in zip(*parts, strict=True)]
    torch.testing.assert_close(found.kl(other), divergences[0][..., :2].sum((1, 2)) + divergences[1].sum((1, 2)))


def test_the_divergence_of_a_sure_gripper_is_finite() -> None:
    """Guards against: an update that stops at once, and a step size that falls to nothing, since a probability rounds to 1."""
    arm, learned = torch.zeros(1, 0), torch.zeros(0, dtype=torch.bool)
    sure, surer = (ActionDistribution(arm, torch.zeros(0), torch.tensor([[logit]]), learned) for logit in (16.0, 30.0))
    assert float(sure.kl(surer)) == pytest.approx(0.0, abs=1e-5)
    assert float(surer.kl(sure)) == pytest.approx(0.0, abs=1e-5)


def test_values_are_scaled_by_all_targets_so_far() -> None:
    """Guards against: a critic whose unit drifts, since batches are merged wrongly."""
    critic = Learner(make_policy({}), PPOConfig()).critic
    targets = 5 + 3 * torch.randn(300, generator=torch.Generator().manual_seed(0))
    for part in targets.split([10, 90, 200]):
        critic.count_targets(part)
    assert float(critic.mean) == pytest.approx(float(targets.mean()), rel=1e-5)
    assert float(critic.variance) == pytest.approx(float(targets.var(correction=0)), rel=1e-5)
    torch.testing.assert_close(critic.unscaled(critic.scaled(targets)), targets)


def test_the_warm_up_moves_the_critic_alone() -> None:
    """Guards against: an actor that follows a critic which has seen nothing yet."""
    learner = Learner(make_policy({}), PPOConfig())
    storage, before = rolled_out(learner)
    vector = lambda module: torch.nn.utils.parameters_to_vector(module.parameters()).detach().clone()  # noqa: E731
    policy, critic = vector(learner.policy), vector(learner.critic)
    learner.update(storage, before, 0.0, torch.Generator().manual_seed(0), critic_only=True)
    assert torch.equal(policy, vector(learner.policy))
    assert not torch.equal(critic, vector(learner.critic))
    figures = learner.update(storage, before, 0.0, torch.Generator().manual_seed(0))
    assert not torch.equal(policy, vector(learner.policy))
    assert {"kl", "entropy", "anchor_kl", "value_error"} <= figures.keys()


def test_the_saved_weights_are_a_moving_average() -> None:
    """Guards against: an average that stays near the start policy, or that the warm-up begins."""
    learner = Learner(make_policy({}), PPOConfig(average=2))
    storage, before = rolled_out(learner)
    vector = lambda module: torch.nn.utils.parameters_to_vector(module.parameters()).detach().clone()  # noqa: E731
    start = vector(learner.policy)
    learner.update(storage, before, 0.0, torch.Generator().manual_seed(0), critic_only=True)
    assert torch.equal(vector(learner.averaged), start)
    expected = start
    for weight in (1.0, 0.5, 0.5):
        learner.update(storage, before, 0.0, torch.Generator().manual_seed(0))
        expected = expected + weight * (vector(learner.policy) - expected)
        torch.testing.assert_close(vector(learner.averaged), expected)
    assert not torch.equal(vector(learner.policy), expected)


def test_an_update_raises_the_probability_of_better_actions() -> None:
    """Guards against: the surrogate's sign."""
    learner = Learner(
        make_policy({}), PPOConfig(decision_steps=1, lr=1e-3, clip=10.0, epochs=1, mini_batches=1, target_kl=10.0)
    )
    storage, before = rolled_out(learner)
    gain = storage.steps["advantage"] - storage.steps["advantage"].mean()
    learner.update(storage, before, 0.0, torch.Generator().manual_seed(0))
    (batch,) = storage.mini_batches(1)
    now = learner.distribution(learner.replay(batch, learner.policy, before[0]), learner.policy)
    change = now.log_prob(batch.steps["action"].flatten(0, 1)) - batch.steps["log_prob"].flatten()
    assert (change * gain.flatten()).mean() > 0


@pytest.mark.parametrize("schedule", ["adaptive", "fixed"])
def test_a_step_that_leads_too_far_is_taken_back(schedule: Literal["adaptive", "fixed"]) -> None:
    """Guards against: a first update that destroys the start policy, since its learning rate suits another one."""
    learner = Learner(make_policy({}), PPOConfig(lr=0.03, lr_schedule=schedule, epochs=20, mini_batches=1))
    storage, before = rolled_out(learner)
    vector = lambda module: torch.nn.utils.parameters_to_vector(module.parameters()).detach().clone()  # noqa: E731
    start = vector(learner.policy)
    learner.update(storage, before, 0.0, torch.Generator().manual_seed(0))
    if schedule == "fixed":
        assert torch.equal(vector(learner.policy), start)
        return
    assert learner.lr < 0.03
    assert not torch.equal(vector(learner.policy), start)
    (batch,) = storage.mini_batches(1)
    _, figures = learner._policy_loss(batch, before[0], 0.0, (torch.tensor(0.0), torch.tensor(1.0)))
    assert figures["kl"] < 5 * learner.config.target_kl


def test_a_policy_that_cannot_be_improved_is_refused() -> None:
    """Guards against: decisions longer than a chunk, and memory streams that the replay does not know."""
    with pytest.raises(ConfigError, match=r"--ppo\.decision_steps must be <= the policy's chunk, got 4 > 3"):
        Learner(make_policy({}), PPOConfig(decision_steps=4))
    with pytest.raises(ConfigError, match=r"--data\.frame_stride 2"):
        Learner(make_policy({"data.frame_stride": 2}), PPOConfig())
