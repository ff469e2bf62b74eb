"""The conformance kit of memories; each check takes a memory and the width of its pooled frames."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from robopolicy.model.memories import Memory
from robopolicy.model.streaming import History, MemoryState
from robopolicy.testing._assert import (
    evaluating,
    generator,
    module_of,
    random_like,
    require,
    require_close,
    require_equal,
    require_error,
    require_export,
)

TOLERANCE = 2e-6
"""A few rounding errors of float32, for hidden vectors of magnitude 1."""


def a_stream_equals_the_zero_state_pass(memory: Memory, width: int) -> None:
    """`step`, with random resets, gives at every frame what `forward` gives on the frames that its history may see.

    A violation means that the robot runs on other numbers than training did. Possible causes: ages that are off by one, or
    rows of an earlier episode.
    """
    for grad in (True, False):
        for seed, (batch, steps) in enumerate([(1, 1), (2, 7), (3, 3 * memory.window)]):
            random = generator(seed)
            frames = random_like(random, batch, steps, width)
            starts = torch.rand(batch, steps, generator=random) < 0.2
            with torch.set_grad_enabled(grad), evaluating(memory):
                streamed, _ = _stream(memory, frames, starts)
                expected = _from_scratch(memory, frames, starts)
            require_close(streamed, expected, TOLERANCE, "step against forward")


def unroll_in_pieces_equals_the_stream(memory: Memory, width: int) -> None:
    """`unroll` over pieces of an episode gives the hidden vectors and the state of `step` frame by frame.

    A violation means that truncated backpropagation trains on other numbers than the robot sees.
    """
    frames = random_like(generator(), 3, 9, width)
    for grad in (True, False):
        with torch.set_grad_enabled(grad), evaluating(memory):
            state = memory.initial_state((3,))
            pieces = []
            for piece in frames.split([1, 4, 2, 2], dim=1):
                hidden, state = memory.unroll(piece, state)
                pieces.append(hidden)
            streamed, expected = _stream(memory, frames)
        require_close(torch.cat(pieces, dim=1), streamed, TOLERANCE, "unroll against step")
        require_equal(state.age, expected.age, "age after unroll against step")
        for mine, theirs in zip(state.tensors, expected.tensors, strict=True):
            require_close(mine, theirs, TOLERANCE, "state after unroll against step")


def unroll_from_the_initial_state_equals_forward(memory: Memory, width: int) -> None:
    """`unroll` and `forward` begin from the same state."""
    frames = random_like(generator(), 2, memory.window, width)
    with evaluating(memory):
        hidden, _ = memory.unroll(frames, memory.initial_state((2,)))
        require_close(hidden, memory(frames), TOLERANCE, "unroll from the initial state against forward")


def hidden_vectors_have_the_declared_width(memory: Memory, width: int) -> None:
    """`output_width` is the width of what `forward` and `step` return; the action head is built from it."""
    hidden = memory(random_like(generator(), 2, 3, memory.window, width))
    require(
        hidden.shape == (2, 3, memory.window, memory.output_width),
        f"forward gives {tuple(hidden.shape)}; expected {(2, 3, memory.window, memory.output_width)}",
    )
    require(memory.window == 1 or memory.history != "none", "history is none, but the window is not 1")


def two_leading_axes_are_a_flat_batch(memory: Memory, width: int) -> None:
    """A batch of (envs, agents) gives what a flat batch of envs * agents gives, resets included."""
    frames = random_like(generator(), 6, 2, 3, width)
    with evaluating(memory):
        state, flat_state = memory.initial_state((2, 3)), memory.initial_state((6,))
        for t, frame in enumerate(frames):
            hidden, state = memory.step(frame, state)
            flat_hidden, flat_state = memory.step(frame.flatten(0, 1), flat_state)
            require_close(hidden.flatten(0, 1), flat_hidden, TOLERANCE, "two batch axes against one")
            done = torch.zeros(2, 3, dtype=torch.bool)
            done[1, 2] = t == 2
            state, flat_state = state.reset(done), flat_state.reset(done.flatten())


def a_reset_leaves_the_other_episodes_bit_equal(memory: Memory, width: int) -> None:
    """One episode's end doesn't change the others in the batch."""
    frames = random_like(generator(), 3, 7, width)
    once = torch.zeros(3, 7, dtype=torch.bool)
    once[1, 4] = True
    with evaluating(memory):
        undisturbed, disturbed = _stream(memory, frames)[0], _stream(memory, frames, once)[0]
    require_equal(undisturbed[[0, 2]], disturbed[[0, 2]], "episodes beside one that was reset")


def a_step_leaves_its_state_unchanged(memory: Memory, width: int) -> None:
    """A caller may keep a state, to branch or to try again."""
    random = generator()
    with torch.no_grad(), evaluating(memory):
        _, state = memory.step(random_like(random, 2, width), memory.initial_state((2,)))
        copy, frame = state.clone(), random_like(random, 2, width)
        first, again = memory.step(frame, state)[0], memory.step(frame, state)[0]
    require_equal(first, again, "two steps from one state")
    require_equal(state.age, copy.age, "age of a state after a step from it")
    for mine, theirs in zip(state.tensors, copy.tensors, strict=True):
        require_equal(mine, theirs, "tensors of a state after a step from it")


def nan_stays_in_its_episode_and_ends_with_it(memory: Memory, width: int) -> None:
    """A diverged episode changes neither the others nor, after a reset, the one that follows it."""
    frames = random_like(generator(), 2, 4, width)
    with torch.no_grad(), evaluating(memory):
        bad = torch.stack([torch.full((width,), torch.nan), frames[1, 0]])
        _, state = memory.step(bad, memory.initial_state((2,)))
        state = state.reset(torch.tensor([True, False]))
        for t in range(4):
            hidden, state = memory.step(frames[:, t], state)
            require(hidden.isfinite().all(), f"NaN in the hidden vectors {t + 1} frames after the episode was reset")


def gradients_of_a_stream_equal_those_of_the_window(memory: Memory, width: int) -> None:
    """Backpropagation through `step` gives the same gradients as through `forward`."""
    random = generator()
    frames = random_like(random, 2, memory.window, width)
    probe = random_like(random, 2, memory.window, memory.output_width)
    weights = [weight for weight in module_of(memory).parameters() if weight.requires_grad]
    if not weights:
        return
    with evaluating(memory):
        from_window = torch.autograd.grad((memory(frames) * probe).sum(), weights)
        from_stream = torch.autograd.grad((_stream(memory, frames)[0] * probe).sum(), weights)
    for mine, theirs in zip(from_stream, from_window, strict=True):
        require_close(mine, theirs, 1e-5, "gradient of step against forward")


def the_state_has_the_batch_axes_after_the_first(memory: Memory, width: int) -> None:
    """Each tensor is (k, *B, ...), so that states can be indexed, split, joined and stacked by episode."""
    frames = random_like(generator(), 2, 4, width)
    with torch.no_grad(), evaluating(memory):
        _, state = memory.step(frames[0], memory.initial_state((4,)))
        shapes = tuple(tuple(tensor.shape) for tensor in state.tensors)
        require(shapes == memory.state_shapes((4,)), f"state of shapes {shapes}; declared {memory.state_shapes((4,))}")
        for shape in memory.state_shapes((4, 5)):
            require(
                shape[1:3] == (4, 5), f"a state tensor of shape {shape} for a batch (4, 5); expected (k, 4, 5, ...)"
            )
        together, after = memory.step(frames[1], state)
        for i in range(4):
            alone, alone_after = memory.step(frames[1, i : i + 1], state[i : i + 1])
            require_close(alone, together[i : i + 1], TOLERANCE, "a single episode against one of a batch")
            for mine, theirs in zip(alone_after.tensors, after[i : i + 1].tensors, strict=True):
                require_close(mine, theirs, TOLERANCE, "state of a single episode against one of a batch")


def a_saved_state_resumes(memory: Memory, width: int) -> None:
    """A state that goes through plain named tensors continues as if it had not been saved."""
    frames = random_like(generator(), 2, 2, width)
    with torch.no_grad(), evaluating(memory):
        _, state = memory.step(frames[0], memory.initial_state((2,)))
        restored = MemoryState.load(state.state_dict())
        require_equal(memory.step(frames[1], state)[0], memory.step(frames[1], restored)[0], "a restored state's step")


def a_state_of_another_batch_is_refused(memory: Memory, width: int) -> None:
    """A batch of one is not broadcast over the states of many, nor six episodes read as two envs of three agents."""
    require_error(lambda: memory.step(torch.zeros(3, width), memory.initial_state((2,))), "step with another batch")
    frames = torch.zeros(2, 3, memory.window, width)
    require_error(lambda: memory.unroll(frames, memory.initial_state((6,))), "unroll with another batch")


def a_state_of_another_memory_is_refused(memory: Memory, width: int) -> None:
    """A state with more tensors, or of another width, would give plausible, wrong numbers."""
    state = memory.initial_state((2,))
    strangers = [MemoryState(state.history, state.age, (*state.tensors, torch.zeros(1, 2, 1)))]
    if state.tensors:
        wider = tuple(torch.cat([tensor, tensor[..., :1]], dim=-1) for tensor in state.tensors)
        strangers += [MemoryState(state.history, state.age, wider), MemoryState(state.history, state.age, ())]
    frames = torch.zeros(2, 1, width)
    for stranger in strangers:
        require_error(lambda state=stranger: memory.step(frames[:, 0], state), "step with another memory's state")
        require_error(lambda state=stranger: memory.unroll(frames, state), "unroll with another memory's state")


def no_episodes_give_no_output(memory: Memory, width: int) -> None:
    """A batch without episodes has results of the right shapes: a rollout's last world has ended."""
    for batch in ((0,), (0, 3)):
        state = memory.initial_state(batch)
        hidden, _ = memory.step(torch.zeros(*batch, width), state)
        require(hidden.shape == (*batch, memory.output_width), f"step of no episodes gives {tuple(hidden.shape)}")
        hidden = memory(torch.zeros(*batch, memory.window, width))
        expected = (*batch, memory.window, memory.output_width)
        require(hidden.shape == expected, f"forward of no episodes gives {tuple(hidden.shape)}")


def an_exported_step_equals_step(memory: Memory, width: int) -> None:
    """The graph of `step`, made for one batch size, gives the same numbers at another."""
    with evaluating(memory):
        states = []
        for batch in (3, 5):
            frame = random_like(generator(), batch, width)
            with torch.no_grad():
                _, state = memory.step(frame, memory.initial_state((batch,)))
            states.append((frame, state.age, *state.tensors))
        axes = (0, 0, *[1] * (len(states[0]) - 2))  # the state's own axis comes before the batch's
        require_export(_PlainStep(memory), states[0], states[1], axes)


class _PlainStep(nn.Module):
    """`step` of plain tensors, which is what can be exported."""

    def __init__(self, memory: Memory) -> None:
        super().__init__()
        self.memory = memory
        self.history: History = memory.history

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        frame, age, *state = tensors
        hidden, after = self.memory.step(frame, MemoryState(self.history, age, tuple(state)))
        return hidden, after.age, *after.tensors


def _stream(memory: Memory, frames: Tensor, starts: Tensor | None = None) -> tuple[Tensor, MemoryState]:
    """Hidden vectors (B, T, H) of frames (B, T, P) by `step`, with a reset before each frame where `starts` (B, T)."""
    state = memory.initial_state((frames.shape[0],))
    hidden = []
    for t in range(frames.shape[1]):
        if starts is not None:
            state = state.reset(starts[:, t])
        latest, state = memory.step(frames[:, t], state)
        hidden.append(latest)
    return torch.stack(hidden, dim=1), state


def _from_scratch(memory: Memory, frames: Tensor, starts: Tensor) -> Tensor:
    """As `_stream`, by the definition: a pass from a zero state over what the history may see of the episode."""
    reach = {"window": memory.window, "carry": frames.shape[1], "none": 1}[memory.history]
    rows = []
    for b in range(frames.shape[0]):
        first, row = 0, []
        for t in range(frames.shape[1]):
            first = t if starts[b, t] else first
            visible = frames[b : b + 1, max(first, t + 1 - reach) : t + 1]
            row.append(memory(visible)[0, -1])
        rows.append(torch.stack(row))
    return torch.stack(rows)


CHECKS: tuple[Callable[[Memory, int], None], ...] = (
    a_stream_equals_the_zero_state_pass,
    unroll_in_pieces_equals_the_stream,
    unroll_from_the_initial_state_equals_forward,
    hidden_vectors_have_the_declared_width,
    two_leading_axes_are_a_flat_batch,
    a_reset_leaves_the_other_episodes_bit_equal,
    a_step_leaves_its_state_unchanged,
    nan_stays_in_its_episode_and_ends_with_it,
    gradients_of_a_stream_equal_those_of_the_window,
    the_state_has_the_batch_axes_after_the_first,
    a_saved_state_resumes,
    a_state_of_another_batch_is_refused,
    a_state_of_another_memory_is_refused,
    no_episodes_give_no_output,
    an_exported_step_equals_step,
)
