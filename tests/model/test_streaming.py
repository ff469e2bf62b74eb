"""The state of running episodes as a value: reset, cut, move, save, stack, split, index."""

import io

import pytest
import torch

from robopolicy.model.streaming import MemoryState, row_of_age, shift_in_zero
from tests.making import make

HISTORIES = [("lstm", "window"), ("lstm", "carry"), ("gru", "window"), ("transformer", "window"), ("none", "none")]
histories = pytest.mark.parametrize(("cell", "history"), HISTORIES)


def make_memory(cell, history):
    """A memory of 8 hidden units over three frames of 3 columns."""
    options = {"none": {}, "transformer": {"window": 3, "heads": 2}}.get(cell, {"window": 3, "history": history})
    return make("memory", cell, 3, hidden=8, **options).eval()


def running(cell, history, batch=(4,), ticks=3):
    """A memory, and its state after some frames."""
    torch.manual_seed(0)
    memory = make_memory(cell, history)
    state = memory.initial_state(batch)
    with torch.no_grad():
        for _ in range(ticks):
            _, state = memory.step(torch.randn(*batch, 3), state)
    return memory, state


def assert_same(mine, theirs):
    assert mine.history == theirs.history
    assert torch.equal(mine.age, theirs.age)
    assert len(mine.tensors) == len(theirs.tensors)
    assert all(torch.equal(a, b) for a, b in zip(mine.tensors, theirs.tensors, strict=True))


@pytest.mark.parametrize(
    ("cell", "history", "shapes"),
    [
        ("lstm", "window", [(2, 4, 3, 8)] * 2),
        ("lstm", "carry", [(2, 4, 8)] * 2),
        ("gru", "window", [(2, 4, 3, 8)]),
        ("gru", "carry", [(2, 4, 8)]),
        ("transformer", "window", [(1, 4, 3, 3)]),
        ("none", "none", []),
    ],
)
def test_states_have_the_documented_shapes(cell, history, shapes):
    """Guards against: exported graphs and saved states that no longer fit."""
    memory, state = running(cell, history)
    assert [tuple(t.shape) for t in state.tensors] == shapes
    assert [tuple(t.shape) for t in memory.initial_state((4,)).tensors] == shapes
    assert state.batch_shape == (4,)


@histories
def test_split_and_concat_are_inverse(cell, history):
    """Guards against: a server that hands one client another's memory."""
    _, state = running(cell, history)
    assert_same(MemoryState.concat(state.split([1, 3])), state)
    assert_same(MemoryState.concat(state.split(1)), state)


@histories
def test_stack_and_index_are_inverse(cell, history):
    """Guards against: states of single episodes that change when they are batched."""
    _, state = running(cell, history)
    stacked = MemoryState.stack([state, state.reset(torch.ones(4, dtype=torch.bool))])
    assert stacked.batch_shape == (2, 4)
    assert_same(stacked[0], state)
    assert_same(state[[0, 1, 2, 3]], state)
    assert_same(state[1:3], MemoryState.concat([state[1:2], state[2:3]]))


@histories
def test_a_stacked_state_streams_as_its_parts(cell, history):
    """Guards against: batched serving that gives other actions than serving one by one."""
    memory, state = running(cell, history)
    frame = torch.randn(4, 3)
    with torch.no_grad():
        alone = torch.cat([memory.step(frame[i : i + 1], state[i : i + 1])[0] for i in range(4)])
        together, _ = memory.step(frame, state)
    assert (alone - together).abs().max() < 1e-6


@histories
def test_save_and_load_are_inverse(cell, history):
    """Guards against: a state that can't go through a file of plain tensors."""
    _, state = running(cell, history)
    file = io.BytesIO()
    torch.save(state.state_dict(), file)
    file.seek(0)
    assert_same(MemoryState.load(torch.load(file, weights_only=True)), state)


@histories
def test_moving_casts_tensors_and_keeps_ages_integer(cell, history):
    """Guards against: an age that is rounded in bfloat16, or a state left behind on another device."""
    _, state = running(cell, history)
    moved = state.to(torch.float64)
    assert all(t.dtype == torch.float64 for t in moved.tensors)
    assert moved.age.dtype == torch.int64
    assert all(t.device.type == "meta" for t in (*state.to("meta").tensors, state.to("meta").age))


def test_detach_cuts_the_graph_and_keeps_the_numbers():
    """Guards against: truncated BPTT that reaches back through all earlier chunks."""
    memory = make_memory("lstm", "carry")
    _, state = memory.unroll(torch.randn(2, 4, 3), memory.initial_state((2,)))
    assert all(t.requires_grad for t in state.tensors)
    cut = state.detach()
    assert not any(t.requires_grad for t in cut.tensors)
    assert_same(cut, state)


def test_a_clone_has_memory_of_its_own():
    """Guards against: a kept state that changes when buffers are used again."""
    _, state = running("lstm", "window")
    copy = state.clone()
    state.tensors[0].zero_()
    assert copy.tensors[0].abs().sum() > 0


@histories
def test_reset_forgets_only_the_episodes_that_ended(cell, history):
    """Guards against: one reset for the whole batch."""
    memory, state = running(cell, history, batch=(2, 2))
    done = torch.tensor([[False, True], [False, False]])
    frame = torch.randn(2, 2, 3)
    with torch.no_grad():
        after, _ = memory.step(frame, state.reset(done))
        undisturbed, _ = memory.step(frame, state)
        fresh, _ = memory.step(frame, memory.initial_state((2, 2)))
    assert torch.equal(after[~done], undisturbed[~done])
    assert (after[done] - fresh[done]).abs().max() < 1e-6


def test_a_matrix_valued_state_is_reset_by_episode():
    """Guards against: a reset that broadcasts the flags over the memory's own axes instead of the batch's."""
    tensors = (torch.ones(2, 3, 4, 5, 5), torch.ones(2, 3))
    state = MemoryState("carry", torch.ones(3, dtype=torch.int64), tensors).reset(torch.tensor([False, True, False]))
    for tensor in state.tensors:
        assert (tensor[:, 1] == 0).all()
        assert (tensor[:, [0, 2]] == 1).all()


def test_reset_refuses_flags_of_another_shape():
    """Guards against: a single flag that is broadcast over agents."""
    _, state = running("lstm", "window", batch=(2, 2))
    with pytest.raises(ValueError, match=r"done has shape \(1, 2\); this state holds episodes of shape \(2, 2\)"):
        state.reset(torch.tensor([[True, False]]))


def test_rows_shift_by_one_and_start_from_zero():
    """Guards against: a row that has seen one frame more or less than its index says."""
    rows = torch.arange(1.0, 5.0).reshape(1, 4, 1)
    assert shift_in_zero(rows).flatten().tolist() == [0.0, 1.0, 2.0, 3.0]


def test_the_row_of_an_age_is_the_one_before_it():
    """Guards against: an off-by-one between age 1 and row 0."""
    rows = torch.arange(8.0).reshape(2, 4, 1)
    assert row_of_age(rows, torch.tensor([1, 4])).flatten().tolist() == [0.0, 7.0]


def test_more_frames_than_the_window_are_refused():
    """Guards against: training on contexts that the stream will never have."""
    memory = make_memory("lstm", "window")
    with pytest.raises(ValueError, match="4 frames in a window of 3"):
        memory(torch.zeros(1, 4, 3))


def test_a_tuple_of_episodes_is_indexed_as_a_list():
    """Guards against: ages of one episode beside tensors of two: a tuple means something else to a tensor's index."""
    _, state = running("lstm", "window", batch=(3, 2))
    assert_same(state[(0, 2)], state[[0, 2]])


def test_states_of_different_memories_are_not_joined():
    """Guards against: episodes whose state is silently read by the first one's history."""
    kinds = [running(cell, history)[1] for cell, history in HISTORIES]
    for other in kinds[1:]:
        with pytest.raises(ValueError, match="states of different memories"):
            MemoryState.concat([kinds[0], other])
    with pytest.raises(ValueError, match="no states to join"):
        MemoryState.stack([])


@pytest.mark.parametrize("keys", [(), ("rnn.weight",), ("window.age", "window.1"), ("window.age", "carry.0")], ids=str)
def test_loading_what_is_no_state_is_refused(keys):
    """Guards against: a checkpoint's weights, or half a state, taken for a memory."""
    with pytest.raises(ValueError, match="no state in"):
        MemoryState.load({key: torch.zeros(2) for key in keys})


def test_the_row_of_an_age_is_exported_for_any_batch():
    """Guards against: an exported step that takes no more and no fewer episodes than its example."""
    episodes = torch.export.Dim("episodes", min=1, max=64)
    given = (torch.randn(3, 4, 2), torch.tensor([1, 2, 4]))
    exported = torch.export.export(RowOfAge(), given, dynamic_shapes=({0: episodes}, {0: episodes})).module()
    rows, age = torch.randn(5, 4, 2), torch.tensor([4, 3, 2, 1, 1])
    assert torch.equal(exported(rows, age), row_of_age(rows, age))


class RowOfAge(torch.nn.Module):
    """The function as a module, which is what can be exported."""

    def forward(self, rows, age):
        """See `row_of_age`."""
        return row_of_age(rows, age)
