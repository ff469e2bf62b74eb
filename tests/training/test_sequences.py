"""Episodes cut into sequences come back whole, and truncated training is the full pass where nothing is truncated."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tensordict import TensorDict

from robopolicy.training.sequences import (
    EpisodeStatistics,
    SequenceStorage,
    Trajectories,
    join_episodes,
    map_state,
    split_episodes,
    start_states,
    unroll_truncated,
)

FEW = settings(max_examples=40, deadline=None)


def rollouts() -> st.SearchStrategy[torch.Tensor]:
    """Any pattern of episode ends, (T, E)."""
    return st.tuples(st.integers(1, 9), st.integers(1, 4), st.integers(0, 2**31 - 1), st.floats(0, 1)).map(
        lambda drawn: torch.rand(drawn[:2], generator=torch.Generator().manual_seed(drawn[2])) < drawn[3]
    )


def cell(kind: str) -> torch.nn.LSTM | torch.nn.GRU:
    torch.manual_seed(0)
    return {"lstm": torch.nn.LSTM, "gru": torch.nn.GRU}[kind](3, 5, num_layers=2).double()


def zero_state(kind: str, episodes: int):
    zeros = torch.zeros(2, episodes, 5, dtype=torch.float64)
    return (zeros, zeros.clone()) if kind == "lstm" else zeros


@FEW
@given(st.integers(1, 4), st.integers(1, 20), st.integers(1, 8))
def test_padded_chunks_join_to_the_episodes_they_were_cut_from(count: int, length: int, steps: int) -> None:
    """Guards against: a remainder lost or shifted, which would train on frames beside the wrong actions."""
    episodes = torch.randn(count, length, 2)
    chunks, valid = split_episodes(episodes, steps, "pad")
    assert chunks.shape == (-(-length // steps), steps, count, 2)
    assert torch.equal(join_episodes(chunks, length), episodes)
    assert valid.sum() == count * length
    assert not chunks[~valid].any()


def test_dropping_the_remainder_keeps_whole_chunks_only() -> None:
    """Guards against: 1000 steps in chunks of 128 cut into 8 chunks, the last one partly zeros."""
    episodes = torch.arange(2000).view(2, 1000)
    chunks, valid = split_episodes(episodes, 128, "drop")
    assert chunks.shape == (7, 128, 2)
    assert valid.all()
    assert torch.equal(join_episodes(chunks, 1000), episodes[:, : 1000 - 104])


def test_a_tensordict_is_cut_key_by_key_with_its_batch_size() -> None:
    """Guards against: a TensorDict that lost its batch size, and can't be sliced by time."""
    episodes = TensorDict(
        {"qpos": torch.randn(2, 5, 7), "image": {"front": torch.ones(2, 5, 4, dtype=torch.uint8)}}, [2, 5]
    )
    chunks, _ = split_episodes(episodes, 3)
    assert chunks.batch_size == torch.Size([2, 3, 2])
    assert chunks["image", "front"].dtype == torch.uint8
    assert (join_episodes(chunks, 5) == episodes).all()


@pytest.mark.parametrize("steps", [0, 6])
def test_chunks_that_cannot_be_cut_are_refused(steps: int) -> None:
    """Guards against: zero chunks, which would train on nothing and say nothing."""
    with pytest.raises(ValueError, match="chunk"):
        split_episodes(torch.zeros(1, 5), steps, "drop")


def test_an_unknown_way_with_the_remainder_is_refused() -> None:
    """Guards against: a misspelled `drop`, which would train on padding."""
    with pytest.raises(ValueError, match="remainder 'dropped' is unknown; expected drop or pad"):
        split_episodes.__wrapped__(torch.zeros(1, 5), 2, "dropped")


@pytest.mark.parametrize("kind", ["lstm", "gru"])
@pytest.mark.parametrize("steps", [6, 8])
def test_a_chunk_that_covers_the_episode_has_the_gradients_of_the_full_pass(kind: str, steps: int) -> None:
    """Guards against: padding, transposing or a detached state inside a chunk that changes what is learned."""
    net, episodes = cell(kind), torch.randn(2, 6, 3, dtype=torch.float64)
    output, _ = net(episodes.transpose(0, 1), zero_state(kind, 2))
    full = torch.autograd.grad(output.square().mean(), list(net.parameters()))
    chunks, valid = split_episodes(episodes, steps)
    for part, output in zip(valid, unroll_truncated(chunks, net, zero_state(kind, 2)), strict=True):
        cut = torch.autograd.grad(output[part].square().mean(), list(net.parameters()))
        for one, other in zip(full, cut, strict=True):
            torch.testing.assert_close(one, other)


@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_truncation_keeps_the_outputs_and_cuts_the_gradients(kind: str) -> None:
    """Guards against: a chunk begun from a zero state, or one whose attached state keeps every chunk's graph alive."""
    net, episodes = cell(kind), torch.randn(2, 7, 3, dtype=torch.float64, requires_grad=True)
    whole, _ = net(episodes.transpose(0, 1))
    chunks, valid = split_episodes(episodes, 3)
    outputs = list(unroll_truncated(chunks, net, zero_state(kind, 2)))
    torch.testing.assert_close(
        torch.cat([out[part] for out, part in zip(outputs, valid, strict=True)]), whole.flatten(0, 1)
    )
    (gradient,) = torch.autograd.grad(outputs[1].sum(), episodes)
    assert not gradient[:, :3].any()
    assert gradient[:, 3:6].all()


@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_recorded_start_states_replay_each_chunk_alone(kind: str) -> None:
    """Guards against: recorded states one step late or early."""
    net, frames = cell(kind), torch.randn(6, 2, 3, dtype=torch.float64)
    recorded, state = [], zero_state(kind, 2)
    for frame in frames:
        recorded.append(state)
        _, state = net(frame.unsqueeze(0), state)
    whole, _ = net(frames)
    saved = (
        tuple(torch.stack([pair[i] for pair in recorded]) for i in range(2))
        if kind == "lstm"
        else torch.stack(recorded)
    )
    chunks, _ = split_episodes(frames.transpose(0, 1), 2)
    for place, (chunk, start) in enumerate(zip(chunks, start_states(saved, 2, 3), strict=True)):
        torch.testing.assert_close(net(chunk, start)[0], whole[2 * place : 2 * place + 2])


@FEW
@given(rollouts())
def test_trajectories_join_to_the_rollout_they_were_split_from(done: torch.Tensor) -> None:
    """Guards against: an un-pad that is wrong for some pattern of ends, such as one on the last step."""
    rollout = torch.randn(*done.shape, 2)
    layout = Trajectories(done)
    padded = layout.split(rollout)
    assert torch.equal(layout.join(padded), rollout)
    assert layout.valid.sum() == done.numel()
    assert layout.valid.sum(0).max() == len(padded)
    assert not padded[~layout.valid].any()


@FEW
@given(rollouts())
def test_no_trajectory_runs_across_an_episode_end(done: torch.Tensor) -> None:
    """Guards against: a trajectory that spans a reset, which would carry one episode's memory into the next."""
    layout = Trajectories(done)
    ended = layout.split(done)
    last = layout.valid & ~torch.cat([layout.valid[1:], torch.zeros_like(layout.valid[:1])])
    assert not (ended & ~last).any()
    assert len(layout.lengths) == done.shape[1] + int(done[:-1].sum())


def test_trajectories_are_numbered_by_environment_then_time() -> None:
    """Guards against: states and masks matched to other trajectories."""
    done = torch.tensor([[0, 0, 0, 1, 0, 0], [0, 1, 0, 0, 1, 0]], dtype=torch.bool).t()
    rollout = torch.tensor([[1, 2, 3, 4, 5, 6], [11, 12, 13, 14, 15, 16]]).t()
    expected = torch.tensor([[1, 2, 3, 4], [5, 6, 0, 0], [11, 12, 0, 0], [13, 14, 15, 0], [16, 0, 0, 0]]).t()
    assert torch.equal(Trajectories(done).split(rollout), expected)


@pytest.mark.parametrize("kind", ["lstm", "gru"])
@pytest.mark.parametrize("groups", [1, 2, 3])
def test_mini_batches_reproduce_the_rollouts_outputs(kind: str, groups: int) -> None:
    """Guards against: saved states, resets, padding and grouping that don't reproduce the rollout's outputs."""
    net, storage = cell(kind), SequenceStorage(8, 3)
    generator = torch.Generator().manual_seed(1)
    state, acted = zero_state(kind, 3), []
    state = map_state(lambda part: torch.randn(part.shape, generator=generator, dtype=part.dtype), state)
    for _ in range(8):
        frame = torch.randn(3, 3, generator=generator, dtype=torch.float64)
        ended = torch.rand(2, 3, generator=generator) < 0.2
        step = TensorDict({"frame": frame, "terminated": ended[0], "truncated": ended[1]}, [3])
        step["environment"] = torch.arange(3)
        storage.append(step, state)
        output, state = net(frame.unsqueeze(0), state)
        acted.append(output[0].detach())
        state = map_state(lambda part, ended=ended: part * ~ended.any(0).unsqueeze(-1), state)
    acted = torch.stack(acted)
    seen = []
    for batch in storage.mini_batches(groups, torch.Generator().manual_seed(0)):
        output, _ = net(batch.trajectories["frame"], batch.state)
        joined = batch.layout.join(output)
        who = batch.steps["environment"][0]
        torch.testing.assert_close(joined, acted[:, who])
        assert batch.valid.shape == output.shape[:2]
        assert not isinstance(batch.state, tuple) or not any(part.requires_grad for part in batch.state)
        seen += who.tolist()
    assert sorted(seen) == [0, 1, 2]


def test_only_a_real_end_stops_bootstrapping() -> None:
    """Guards against: a time limit treated as an end, which teaches that the world stops there."""
    storage = SequenceStorage(3, 1)
    for terminated, truncated in [(False, False), (True, False), (False, True)]:
        storage.append(
            TensorDict({"terminated": torch.tensor([terminated]), "truncated": torch.tensor([truncated])}, [1])
        )
    assert storage.done.squeeze(1).tolist() == [False, True, True]
    assert storage.bootstrap.squeeze(1).tolist() == [True, False, True]
    assert storage.states is None
    assert storage.steps[0].batch_size == torch.Size([1])


def test_a_full_storage_and_an_incomplete_step_are_refused() -> None:
    """Guards against: overwriting step 0, which would mix two rollouts; a step without its ends joins episodes."""
    storage = SequenceStorage(1, 2)
    with pytest.raises(KeyError, match="truncated"):
        storage.append(TensorDict({"terminated": torch.zeros(2, dtype=torch.bool)}, [2]))
    step = TensorDict(
        {"terminated": torch.zeros(2, dtype=torch.bool), "truncated": torch.zeros(2, dtype=torch.bool)}, [2]
    )
    storage.append(step)
    with pytest.raises(OverflowError, match="clear"):
        storage.append(step)
    storage.clear()
    storage.append(step)
    assert len(storage) == 1
    with pytest.raises(ValueError, match="3 mini-batches of 2"):
        next(storage.mini_batches(3))


def test_every_step_holds_the_same_keys() -> None:
    """Guards against: a missing key filled with the last rollout's values, or a new one that is lost."""
    storage = SequenceStorage(2, 2)
    ends = {"terminated": torch.zeros(2, dtype=torch.bool), "truncated": torch.zeros(2, dtype=torch.bool)}
    with pytest.raises(ValueError, match="no steps"):
        next(storage.mini_batches(1))
    storage.append(TensorDict({**ends, "reward": torch.ones(2)}, [2]), torch.zeros(1, 2, 3))
    for keys, state in [((), torch.zeros(1, 2, 3)), (("reward", "value"), torch.zeros(1, 2, 3)), (("reward",), None)]:
        with pytest.raises(KeyError, match=r"the steps before it hold reward, state\.0, terminated, truncated"):
            storage.append(TensorDict({**ends, **{key: torch.ones(2) for key in keys}}, [2]), state)
    assert len(storage) == 1
    storage.clear()
    storage.append(TensorDict(ends, [2]))
    assert storage.states is None
    assert set(storage.steps.keys()) == {"terminated", "truncated"}


def test_statistics_count_each_episode_once_and_start_anew() -> None:
    """Guards against: a return that leaks over a reset, or an episode counted twice."""
    statistics = EpisodeStatistics(2)
    never, second = torch.tensor([False, False]), torch.tensor([False, True])
    assert statistics.add(torch.ones(2), never, never)["return"].numel() == 0
    ended = statistics.add(torch.ones(2), second, second)
    assert (ended["return"].tolist(), ended["length"].tolist(), ended["success"].tolist()) == ([2.0], [2], [True])
    ended = statistics.add(torch.ones(2), ~never, second)
    assert (ended["return"].tolist(), ended["length"].tolist(), ended["success"].tolist()) == (
        [3.0, 1.0],
        [3, 1],
        [False, True],
    )
