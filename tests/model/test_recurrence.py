"""Which memories there are and what is refused; what they compute is held in tests/conformance/test_recurrence.py."""

import pytest
import torch

from robopolicy.model.recurrence import FrameMemory, make_recurrence


@pytest.mark.parametrize("cell", ["transformer", "none"])
def test_a_cell_without_a_state_to_carry_is_refused(cell):
    """Prevents an episode-long memory that silently isn't one."""
    with pytest.raises(ValueError, match=f"cell '{cell}' has no state to carry; use history window or none"):
        make_recurrence(cell, "carry", 4, 8, layers=1, window=3)


@pytest.mark.parametrize("sizes", [{"layers": 0}, {"window": 0}])
def test_sizes_below_one_are_refused(sizes):
    """Prevents a memory of no frames or layers."""
    with pytest.raises(ValueError, match="each must be at least 1"):
        make_recurrence("lstm", "window", 4, 8, **({"layers": 1, "window": 3} | sizes))


@pytest.mark.parametrize("cell", ["lstm", "gru", "transformer"])
def test_without_history_a_frame_is_answered_for_itself(cell):
    """Prevents a baseline that remembers after all."""
    memory = make_recurrence(cell, "none", 4, 8, layers=2, window=3, heads=2).eval()
    frames = torch.randn(2, 5, 4)
    other_past = torch.cat([torch.randn(2, 4, 4), frames[:, 4:]], dim=1)
    assert torch.equal(memory(frames)[:, 4], memory(other_past)[:, 4])


@pytest.mark.parametrize("cell", ["lstm", "gru", "transformer"])
def test_with_history_the_past_counts(cell):
    """Prevents the opposite of the above."""
    memory = make_recurrence(cell, "window", 4, 8, layers=2, window=5, heads=2).eval()
    frames = torch.randn(2, 5, 4)
    other_past = torch.cat([torch.randn(2, 4, 4), frames[:, 4:]], dim=1)
    assert (memory(frames)[:, 4] - memory(other_past)[:, 4]).abs().max() > 1e-4


@pytest.mark.parametrize("cell", ["lstm", "gru", "transformer", "none"])
def test_the_future_does_not_count(cell):
    """Prevents training targets that leak from later frames."""
    memory = make_recurrence(cell, "window", 4, 8, layers=2, window=5, heads=2).eval()
    frames = torch.randn(2, 5, 4)
    other_future = torch.cat([frames[:, :3], torch.randn(2, 2, 4)], dim=1)
    assert torch.allclose(memory(frames)[:, :3], memory(other_future)[:, :3], atol=1e-6)


def test_the_frame_perceptron_is_that_of_robovlms():
    """Prevents FCDecoder weights that don't fit: Linear(P, P/2) - ReLU - Linear(P/2, H)."""
    memory = FrameMemory("none", 6, 8, window=1)
    shapes = {name: tuple(weight.shape) for name, weight in memory.state_dict().items()}
    assert shapes == {"mlp.0.weight": (3, 6), "mlp.0.bias": (3,), "mlp.2.weight": (8, 3), "mlp.2.bias": (8,)}


@pytest.mark.parametrize("history", ["window", "carry"])
def test_a_step_in_training_mode_drops_out_as_training_does(history):
    """Prevents two kinds of forward pass in one mode, depending on whether gradients are on."""
    memory = make_recurrence("lstm", history, 4, 8, layers=2, window=3, dropout=0.5)
    frame, state = torch.randn(2, 4), memory.initial_state((2,))
    with torch.no_grad():
        assert not torch.equal(memory.step(frame, state)[0], memory.step(frame, state)[0])
        memory.eval()
        assert torch.equal(memory.step(frame, state)[0], memory.step(frame, state)[0])
