"""The contract of every memory: `forward`, `unroll` and `step` agree at every frame, for any batch and any resets."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from robopolicy.components import component
from robopolicy.model.memories import history_of, window_of
from robopolicy.model.streaming import MemoryState

WIDTH = 5
KINDS = [
    ("lstm", "window"),
    ("lstm", "carry"),
    ("gru", "window"),
    ("gru", "carry"),
    ("transformer", "window"),
    ("none", "none"),
]
TOLERANCE = 2e-6
"""A few float32 roundings of hidden vectors of unit scale."""

kinds = pytest.mark.parametrize(("cell", "history"), KINDS)
gradient = pytest.mark.parametrize("grad", [True, False], ids=["grad", "no_grad"])


def memory_of(cell, history, window=4, layers=2, hidden=8, seed=0):
    torch.manual_seed(seed)
    sizes = {"history": history, "layers": layers, "window": window, "hidden": hidden, "heads": 2}
    known = component("memory", cell).options.__dataclass_fields__
    options = component("memory", cell).options(**{name: value for name, value in sizes.items() if name in known})
    memory = component("memory", cell).make(options, WIDTH).eval()
    assert (history_of(options), window_of(options)) == (memory.history, memory.window)
    for parameter in memory.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return memory


def answers_from_scratch(memory, frames, starts):
    """The defining answer at every t of (B, T, P): a zero-state pass over what the history may see of the episode."""
    reach = {"window": memory.window, "carry": frames.shape[1], "none": 1}[memory.history]
    rows = []
    for b in range(frames.shape[0]):
        began = 0
        row = []
        for t in range(frames.shape[1]):
            began = t if starts[b][t] else began
            seen = frames[b : b + 1, max(began, t + 1 - reach) : t + 1]
            row.append(memory(seen)[0, -1])
        rows.append(torch.stack(row))
    return torch.stack(rows)


def stream(memory, frames, starts):
    state = memory.initial_state((frames.shape[0],))
    hidden = []
    for t in range(frames.shape[1]):
        state = state.reset(torch.tensor([row[t] for row in starts]))
        latest, state = memory.step(frames[:, t], state)
        hidden.append(latest)
    return torch.stack(hidden, dim=1), state


@kinds
@gradient
@given(data=st.data())
@settings(max_examples=12, deadline=None)
def test_a_stream_equals_the_zero_state_pass_at_every_t(cell, history, grad, data):
    """Guards against: a robot that is asked something else than what was trained: off-by-one ages, rows of a past episode."""
    batch, steps = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 11))
    memory = memory_of(
        cell, history, window=data.draw(st.integers(1, 5)), layers=data.draw(st.integers(1, 3)), seed=steps
    )
    starts = data.draw(
        st.lists(st.lists(st.booleans(), min_size=steps, max_size=steps), min_size=batch, max_size=batch)
    )
    frames = torch.randn(batch, steps, WIDTH, generator=torch.Generator().manual_seed(batch))
    with torch.set_grad_enabled(grad):
        streamed, _ = stream(memory, frames, starts)
        expected = answers_from_scratch(memory, frames, starts)
    assert (streamed - expected).abs().max() < TOLERANCE


@kinds
@gradient
@given(cuts=st.lists(st.integers(1, 4), min_size=1, max_size=4))
@settings(max_examples=8, deadline=None)
def test_unroll_in_pieces_equals_the_stream(cell, history, grad, cuts):
    """Guards against: truncated BPTT that trains on other numbers than the robot sees."""
    memory = memory_of(cell, history)
    frames = torch.randn(3, sum(cuts), WIDTH, generator=torch.Generator().manual_seed(1))
    with torch.set_grad_enabled(grad):
        state = memory.initial_state((3,))
        pieces = []
        for piece in frames.split(cuts, dim=1):
            hidden, state = memory.unroll(piece, state)
            pieces.append(hidden)
        streamed, streamed_state = stream(memory, frames, [[False] * sum(cuts)] * 3)
    assert (torch.cat(pieces, dim=1) - streamed).abs().max() < TOLERANCE
    assert torch.equal(state.age, streamed_state.age)
    for mine, theirs in zip(state.tensors, streamed_state.tensors, strict=True):
        assert (mine - theirs).abs().max() < TOLERANCE


@kinds
def test_unroll_from_the_initial_state_equals_forward(cell, history):
    """Guards against: two meanings of a zero state."""
    memory = memory_of(cell, history)
    frames = torch.randn(2, 4, WIDTH)
    hidden, _ = memory.unroll(frames, memory.initial_state((2,)))
    assert (hidden - memory(frames)).abs().max() < TOLERANCE


@kinds
@gradient
def test_two_leading_axes_are_a_flat_batch(cell, history, grad):
    """Guards against: agents of one environment that share or swap their memories."""
    memory = memory_of(cell, history)
    frames = torch.randn(6, 2, 3, WIDTH)
    with torch.set_grad_enabled(grad):
        state, flat_state = memory.initial_state((2, 3)), memory.initial_state((6,))
        for t, frame in enumerate(frames):
            hidden, state = memory.step(frame, state)
            flat_hidden, flat_state = memory.step(frame.flatten(0, 1), flat_state)
            assert (hidden.flatten(0, 1) - flat_hidden).abs().max() < TOLERANCE
            done = torch.zeros(2, 3, dtype=torch.bool)
            done[1, 2] = t == 2
            state, flat_state = state.reset(done), flat_state.reset(done.flatten())


@kinds
@gradient
def test_a_reset_leaves_the_other_episodes_bit_equal(cell, history, grad):
    """Guards against: one world's end from disturbing the rest of a batch."""
    memory = memory_of(cell, history)
    frames = torch.randn(3, 7, WIDTH)
    never = [[False] * 7] * 3
    once = [[False] * 7, [False] * 4 + [True] + [False] * 2, [False] * 7]
    with torch.set_grad_enabled(grad):
        undisturbed, disturbed = stream(memory, frames, never)[0], stream(memory, frames, once)[0]
    assert torch.equal(undisturbed[[0, 2]], disturbed[[0, 2]])


@kinds
def test_a_step_leaves_the_state_it_was_given_as_it_was(cell, history):
    """Guards against: a state that changes under the hands of a caller who keeps it to branch or retry."""
    memory = memory_of(cell, history)
    with torch.no_grad():
        _, state = memory.step(torch.randn(2, WIDTH), memory.initial_state((2,)))
        copy = state.clone()
        frame = torch.randn(2, WIDTH)
        first, _ = memory.step(frame, state)
        again, _ = memory.step(frame, state)
    assert torch.equal(first, again)
    assert torch.equal(state.age, copy.age)
    assert all(torch.equal(a, b) for a, b in zip(state.tensors, copy.tensors, strict=True))


@kinds
def test_nan_stays_in_its_episode_and_ends_with_it(cell, history):
    """Guards against: one diverged world from poisoning the others, or the episode that follows it."""
    memory = memory_of(cell, history)
    frames = torch.randn(2, 4, WIDTH)
    with torch.no_grad():
        state = memory.initial_state((2,))
        _, state = memory.step(torch.stack([torch.full((WIDTH,), torch.nan), frames[1, 0]]), state)
        state = state.reset(torch.tensor([True, False]))
        for t in range(4):
            hidden, state = memory.step(frames[:, t], state)
            assert hidden.isfinite().all()


@kinds
def test_gradients_of_a_stream_equal_those_of_the_window(cell, history):
    """Guards against: truncated BPTT through steps that trains other gradients than the window pass."""
    memory = memory_of(cell, history)
    frames = torch.randn(2, 4, WIDTH)
    probe = torch.randn(2, 4, memory.output_width)
    from_window = torch.autograd.grad((memory(frames) * probe).sum(), list(memory.parameters()))
    streamed, _ = stream(memory, frames, [[False] * 4] * 2)
    from_stream = torch.autograd.grad((streamed * probe).sum(), list(memory.parameters()))
    for mine, theirs in zip(from_stream, from_window, strict=True):
        assert (mine - theirs).abs().max() <= 1e-5 * max(1.0, theirs.abs().max().item())


@kinds
def test_a_saved_state_goes_on_where_it_was(cell, history):
    """Guards against: a resumed server from answering without its memory."""
    memory = memory_of(cell, history)
    frames = torch.randn(2, 3, WIDTH)
    with torch.no_grad():
        _, state = memory.step(frames[:, 0], memory.initial_state((2,)))
        restored = MemoryState.load(state.state_dict())
        assert torch.equal(memory.step(frames[:, 1], state)[0], memory.step(frames[:, 1], restored)[0])


@kinds
def test_frames_for_other_episodes_than_the_states_are_refused(cell, history):
    """Guards against: a batch of one from being broadcast over the states of many."""
    memory = memory_of(cell, history)
    with pytest.raises(ValueError, match="initial_state"):
        memory.step(torch.randn(3, WIDTH), memory.initial_state((2,)))


STRANGERS = [("lstm", "window"), ("gru", "window"), ("lstm", "carry"), ("gru", "carry"), ("transformer", "window")]


@kinds
@gradient
def test_the_state_of_another_memory_is_refused(cell, history, grad):
    """Guards against: plausible, wrong numbers from a GRU on an LSTM's state, or from a window of another length."""
    memory = memory_of(cell, history)
    strangers = [memory_of(*kind) for kind in STRANGERS if kind != (cell, history)]
    if cell in ("lstm", "gru"):
        strangers += [memory_of(cell, history, hidden=16), memory_of(cell, history, layers=3)]
    if history == "window":
        strangers.append(memory_of(cell, history, window=3))
    with torch.set_grad_enabled(grad):
        for stranger in strangers:
            state = stranger.initial_state((2,))
            with pytest.raises(ValueError, match="is not of this memory"):
                memory.step(torch.randn(2, WIDTH), state)
            with pytest.raises(ValueError, match="is not of this memory"):
                memory.unroll(torch.randn(2, 3, WIDTH), state)


@kinds
def test_unrolling_for_other_episodes_than_the_states_is_refused(cell, history):
    """Guards against: six episodes' states from being read as two envs of three agents."""
    memory = memory_of(cell, history)
    with pytest.raises(ValueError, match="initial_state"):
        memory.unroll(torch.randn(2, 3, 4, WIDTH), memory.initial_state((6,)))


@kinds
@gradient
@pytest.mark.parametrize("batch", [(0,), (0, 3)], ids=str)
def test_no_episodes_give_no_answers(cell, history, grad, batch):
    """Guards against: a rollout from failing at the tick at which its last world has ended."""
    memory = memory_of(cell, history)
    with torch.set_grad_enabled(grad):
        state = memory.initial_state(batch)
        assert memory.step(torch.zeros(*batch, WIDTH), state)[0].shape == (*batch, 8)
        assert memory.unroll(torch.zeros(*batch, 4, WIDTH), state)[0].shape == (*batch, 4, 8)
        assert memory(torch.zeros(*batch, 4, WIDTH)).shape == (*batch, 4, 8)
