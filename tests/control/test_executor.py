"""Chunk execution: time alignment, strategies, staleness, gripper."""

import math
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from robopolicy.control.execution import execution_from
from robopolicy.control.execution.ensemble import EnsembleOptions
from robopolicy.control.execution.freeze import FreezeOptions
from robopolicy.control.execution.receding import RecedingOptions
from robopolicy.control.executor import ChunkExecutor, StaleChunkError
from robopolicy.types import ActionSpec

CONTROL_DT = 0.05
SPEC = ActionSpec(arm=2, gripper=1, kind="delta")


def chunks(steps: int, batch: tuple[int, ...], chunk: int, width: int, seed: int = 0) -> torch.Tensor:
    """One chunk per step: (steps, *batch, chunk, width) in float64."""
    return torch.randn(steps, *batch, chunk, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@dataclass
class PlainEpisode:
    """One episode, one float per action, by dictionaries: what the executor must equal."""

    chunk: int
    strategy: str
    replan_every: int
    decay: float
    frozen: int
    began: int | None = None
    taken: list[tuple[int, int, list[float]]] = field(default_factory=list)
    plan: dict[int, float] = field(default_factory=dict)

    def add(self, actions: list[float], observed: int, now: int) -> None:
        """Take the chunk if one is due."""
        if now in self.covered() and now - self.taken[-1][1] < self.replan_every:
            return
        if not all(math.isfinite(action) for action in actions):
            return
        self.began = now if self.began is None else self.began
        observed = max(observed, self.began)  # the robot has rested until then
        new = {observed + k: action for k, action in enumerate(actions) if observed + k >= now} or {now: actions[-1]}
        late = min(now - observed, self.chunk - 1)
        self.taken.append((observed, now, actions))
        if self.strategy == "receding":
            self.plan = new
        if self.strategy == "freeze":
            old = {step: action for step, action in self.plan.items() if step >= now}
            merged = dict(old)
            frozen = max(self.frozen, late)
            end = late + len(old)
            for step, action in new.items():
                place = step - now + late
                if step not in old:
                    keep = 0.0
                elif place < frozen:
                    keep = 1.0
                else:
                    ramp = (end - place) / (end - frozen + 1)
                    keep = ramp * (math.exp(ramp) - 1) / (math.e - 1)
                merged[step] = keep * old.get(step, 0.0) + (1 - keep) * action
            self.plan = merged
        if self.strategy == "ensemble":
            self.plan = {step: self.ensemble(step) for step in {*self.plan, *new}}

    def ensemble(self, step: int) -> float:
        """ACT's offline sum over the chunks taken that cover a step, oldest first."""
        covering = []
        for observed, now, actions in self.taken:
            late = max(0, now - observed)
            if late >= self.chunk:
                covering += [actions[-1]] if step == now else []
            elif now <= step < observed + self.chunk:
                covering.append(actions[step - observed])
        weights = [math.exp(-self.decay * i) for i in range(len(covering))]
        return sum(w * a for w, a in zip(weights, covering, strict=True)) / sum(weights)

    def covered(self) -> set[int]:
        """Steps that have an action."""
        return set(self.plan)

    def action(self, step: int) -> float:
        """Zero is rest."""
        return self.plan.get(step, 0.0)


@settings(max_examples=50, deadline=None)
@given(
    strategy=st.sampled_from(["receding", "ensemble", "freeze"]),
    chunk=st.integers(3, 7),
    replan_every=st.integers(1, 3),
    frozen=st.integers(0, 2),
    latency=st.integers(0, 8),
    drops=st.sets(st.integers(0, 19)),
    nans=st.sets(st.integers(0, 19), max_size=4),
    resets=st.dictionaries(st.integers(1, 19), st.integers(0, 2), max_size=4),
    seed=st.integers(0, 1000),
)
def test_batched_execution_equals_one_plain_episode_at_a_time(
    strategy, chunk, replan_every, frozen, latency, drops, nans, resets, seed
):
    """Guards against: a batch whose episodes leak into each other, or an offset of one after drops, delays, NaN and resets."""
    replan_every = min(replan_every, chunk - frozen) or 1
    frozen = min(frozen, chunk - replan_every)
    own = {"ensemble": {"ensemble_decay": 0.3}, "freeze": {"latency_s": frozen * CONTROL_DT}}.get(strategy, {})
    executor = ChunkExecutor(
        chunk, CONTROL_DT, execution_from({"kind": strategy, "replan_every": replan_every} | own), batch=3
    )
    offered = chunks(20, (3,), chunk, 1, seed)
    for step in nans:
        offered[step, step % 3, chunk // 2] = torch.nan
    plain = [PlainEpisode(chunk, strategy, replan_every, 0.3, frozen) for _ in range(3)]
    started = False
    for step in range(20):
        if step in resets:
            plain[resets[step]] = PlainEpisode(chunk, strategy, replan_every, 0.3, frozen)
            executor.reset(torch.arange(3) == resets[step])
        if step >= latency and step not in drops:
            started = True
            executor.add(offered[step - latency], (step - latency) * CONTROL_DT, now_s=step * CONTROL_DT)
            for episode, actions in zip(plain, offered[step - latency], strict=True):
                episode.add(actions[:, 0].tolist(), step - latency, step)
        if started:
            expected = torch.tensor([[episode.action(step)] for episode in plain], dtype=torch.float64)
            torch.testing.assert_close(executor.action(step * CONTROL_DT), expected, rtol=1e-12, atol=1e-12)
            assert executor.held.tolist() == [step not in episode.covered() for episode in plain]


def test_ensemble_equals_the_offline_sum_even_where_an_action_is_exactly_zero():
    """Guards against: a true zero that falls out of the average, as in ACT, where "not equal 0" marks a valid entry."""
    chunk, steps = 5, 12
    offered = chunks(steps, (), chunk, 3)
    offered[3] = 0.0
    offered[7, 2] = 0.0
    executor = ChunkExecutor(chunk, CONTROL_DT, EnsembleOptions(ensemble_decay=0.01))
    for step in range(steps):
        executor.add(offered[step], step * CONTROL_DT)
        covering = torch.stack([offered[s, step - s] for s in range(max(0, step - chunk + 1), step + 1)])
        weights = torch.exp(-0.01 * torch.arange(len(covering), dtype=torch.float64))
        expected = (weights[:, None] * covering).sum(0) / weights.sum()
        torch.testing.assert_close(executor.action(step * CONTROL_DT), expected, rtol=0, atol=2e-15)


def test_actions_are_picked_by_time_although_ticks_jitter_and_are_skipped():
    """Guards against: counting calls instead of time, which plays the chunk in slow motion whenever a tick is lost."""
    executor = ChunkExecutor(6, CONTROL_DT)
    executor.add(torch.arange(6.0)[:, None], t_obs_s=100.0)
    picked = [executor.action(100.0 + t).item() for t in (0.001, 0.049, 0.052, 0.19, 0.21)]
    assert picked == [0.0, 1.0, 1.0, 4.0, 4.0]


def test_a_chunk_that_is_late_as_a_whole_gives_its_last_action_to_the_next_step():
    """Guards against: dropping every late action, which would leave a slow policy without any motion at all."""
    executor = ChunkExecutor(3, CONTROL_DT)
    executor.add(torch.zeros(3, 1), t_obs_s=0.0)
    executor.add(torch.tensor([[1.0], [2.0], [3.0]]), t_obs_s=0.0, now_s=10 * CONTROL_DT)
    assert executor.action(10 * CONTROL_DT).item() == 3.0
    assert executor.action(11 * CONTROL_DT).item() == 0.0
    assert executor.held.item()


def test_a_late_first_chunk_begins_with_its_first_action():
    """Guards against: a robot that rests until its first chunk, and then leaves out the actions of the time it has rested."""
    executor, actions = ChunkExecutor(6, CONTROL_DT, batch=2), torch.arange(6.0).expand(2, 6)[..., None]
    executor.add(actions, 0.0, now_s=3 * CONTROL_DT)
    assert executor.action(3 * CONTROL_DT).tolist() == [[0.0], [0.0]]
    executor.add(actions, 1 * CONTROL_DT, now_s=4 * CONTROL_DT)  # was observed at rest, too
    assert executor.action(4 * CONTROL_DT).tolist() == [[1.0], [1.0]]
    executor.reset(torch.tensor([True, False]))
    executor.add(actions, 5 * CONTROL_DT, now_s=7 * CONTROL_DT)
    assert executor.action(7 * CONTROL_DT).tolist() == [[0.0], [2.0]]


def test_a_chunk_beyond_its_age_is_refused():
    """Guards against: a hung policy whose last chunk is replayed for ever."""
    executor = ChunkExecutor(10, CONTROL_DT, max_chunk_age_s=0.2)
    with pytest.raises(StaleChunkError, match="no chunk"):
        executor.action(0.0)
    executor.add(torch.ones(10, 1), t_obs_s=0.0)
    assert executor.action(0.2).item() == 1.0
    with pytest.raises(StaleChunkError, match=r"0\.250 s old; at most 0\.2 s"):
        executor.action(0.25)


def test_the_gripper_changes_its_mind_only_beyond_the_hysteresis():
    """Guards against: a logit that flickers around zero opens and closes the fingers twenty times a second."""
    executor = ChunkExecutor(1, CONTROL_DT, RecedingOptions(gripper_hysteresis=0.5), action_spec=SPEC)
    logits = [-0.1, 0.4, 0.6, -0.4, 0.1, -0.6, 0.3]
    grips = []
    for step, logit in enumerate(logits):
        executor.add(torch.zeros(1, 3), step * CONTROL_DT, gripper_logit=torch.tensor([[logit]]))
        grips.append(executor.action(step * CONTROL_DT)[2].item())
    assert grips == [-1, -1, 1, 1, 1, -1, -1]


def test_the_gripper_keeps_to_its_two_values_under_every_strategy():
    """Guards against: an average of open and closed sent as a gripper action."""
    spec = ActionSpec(arm=[1], gripper=[0], gripper_values=((0.0, 255.0),))
    for strategy in ("receding", "ensemble", "freeze"):
        executor = ChunkExecutor(4, CONTROL_DT, execution_from({"kind": strategy}), batch=5, action_spec=spec)
        for step in range(12):
            actions = torch.full((5, 4, 2), 255.0 if step % 3 else 0.0)
            executor.add(actions, step * CONTROL_DT)
            assert set(executor.action(step * CONTROL_DT)[:, 0].tolist()) <= {0.0, 255.0}


def test_a_held_episode_rests_with_its_gripper_as_it_was():
    """Guards against: a hold that opens the gripper and drops the object, or repeats a delta and keeps the arm moving."""
    delta = ChunkExecutor(1, CONTROL_DT, action_spec=SPEC)
    absolute = ChunkExecutor(1, CONTROL_DT, action_spec=ActionSpec(arm=2, gripper=1, kind="absolute"))
    for executor, rest in ((delta, [0.0, 0.0, 1.0]), (absolute, [0.3, 0.4, 1.0])):
        executor.add(torch.tensor([[0.3, 0.4, 1.0]]), 0.0)
        executor.action(0.0)
        torch.testing.assert_close(executor.action(CONTROL_DT), torch.tensor(rest))


def test_a_reset_of_one_episode_leaves_the_others_bit_equal():
    """Guards against: replanning everyone when one episode ends, so that a result depends on its neighbors."""
    offered = chunks(10, (2,), 6, 3)
    alone, together = (ChunkExecutor(6, CONTROL_DT, RecedingOptions(3), batch=n, action_spec=SPEC) for n in (1, 2))
    for step in range(10):
        if step == 4:
            together.reset(torch.tensor([True, False]))
        alone.add(offered[step, 1:], step * CONTROL_DT)
        together.add(offered[step], step * CONTROL_DT)
        assert torch.equal(alone.action(step * CONTROL_DT)[0], together.action(step * CONTROL_DT)[1])


def test_contradictions_are_refused_in_words():
    """Guards against: a plan that always runs out, a chunk of another policy, or time running backwards, without an error."""
    with pytest.raises(ValueError, match=r"replan_every 5 with 4 steps of latency .* use 1 \.\. 4"):
        ChunkExecutor(8, CONTROL_DT, FreezeOptions(replan_every=5, latency_s=0.2))
    executor = ChunkExecutor(4, CONTROL_DT, action_spec=SPEC)
    with pytest.raises(ValueError, match=r"chunk of shape \(5, 3\); .* = \(4, 3\)"):
        executor.add(torch.zeros(5, 3), 0.0)
    executor.add(torch.zeros(4, 3), 0.0)
    executor.action(CONTROL_DT)
    with pytest.raises(ValueError, match="time runs backwards"):
        executor.action(0.0)
    with pytest.raises(ValueError, match=r"chunk of shape \(2, 4, 3\)"):
        executor.add(torch.zeros(2, 4, 3), CONTROL_DT)


@pytest.mark.parametrize("strategy", ["receding", "ensemble", "freeze", "rtc"])
@pytest.mark.parametrize("batch", [(), (3,)])
def test_arrays_and_tensors_give_the_same_actions(strategy, batch):
    """Guards against: a robot without torch that acts otherwise than the simulation in which its policy was evaluated."""
    random, width = torch.Generator().manual_seed(0), SPEC.width
    latency = {"latency_s": 0.1} if strategy in ("freeze", "rtc") else {}
    options = execution_from({"kind": strategy, "replan_every": 2, "gripper_hysteresis": 0.2, **latency})
    tensors, arrays = (ChunkExecutor(6, CONTROL_DT, options, batch=batch, action_spec=SPEC) for _ in range(2))
    for step, actions in enumerate(chunks(30, batch, 6, width)):
        if step % 7 == 3:
            actions[..., 1, 0] = math.nan
        logits = torch.randn(*batch, 6, 1, generator=random, dtype=torch.float64)
        now_s, seen_s = step * CONTROL_DT, max(step - step % 3, 0) * CONTROL_DT
        given = tensors.prefix(now_s), arrays.prefix(now_s)
        if given[0] is not None and given[1] is not None:
            np.testing.assert_allclose(given[1].actions, given[0].actions.numpy(), rtol=0, atol=1e-12)
        tensors.add(actions, seen_s, now_s=now_s, gripper_logit=logits)
        arrays.add(actions.numpy(), seen_s, now_s=now_s, gripper_logit=logits.numpy())
        np.testing.assert_allclose(arrays.action(now_s), tensors.action(now_s).numpy(), rtol=0, atol=1e-12)
        np.testing.assert_array_equal(arrays.held, tensors.held.numpy())
        np.testing.assert_array_equal(arrays.refused, tensors.refused.numpy())
        if batch and step == 17:
            done = torch.tensor([False, True, False])
            tensors.reset(done)
            arrays.reset(done.numpy())
