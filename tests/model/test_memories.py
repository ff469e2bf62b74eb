"""What the options of memories refuse, and what each kind is; tests/conformance/test_recurrence.py holds what all compute."""

import pytest
import torch

from robopolicy.components import ConfigError
from robopolicy.model.memories.gru import GRUOptions
from robopolicy.model.memories.lstm import LSTMOptions
from robopolicy.model.memories.none import NoMemoryOptions
from robopolicy.model.memories.transformer import TransformerOptions
from tests.making import make


def small(kind):
    """A memory over five frames of 4 columns."""
    sizes = {"none": {}, "transformer": {"window": 5, "heads": 2}}.get(kind, {"window": 5})
    return make("memory", kind, 4, hidden=8, **sizes)


@pytest.mark.parametrize(
    ("options", "values", "message"),
    [
        (LSTMOptions, {"window": 0}, "--memory.window must be >= 1, got 0"),
        (GRUOptions, {"layers": 0}, "--memory.layers must be >= 1, got 0"),
        (LSTMOptions, {"dropout": 1.0}, "--memory.dropout must be >= 0 and < 1, got 1.0"),
        (TransformerOptions, {"hidden": 8, "heads": 3}, "--memory.hidden 8 must be a multiple of --memory.heads 3"),
        (NoMemoryOptions, {"hidden": 0}, "--memory.hidden must be >= 1, got 0"),
    ],
)
def test_sizes_that_make_no_memory_are_refused(options, values, message):
    """Guards against: a memory without frames or layers, or an error from deep inside a reshape."""
    with pytest.raises(ConfigError, match=message):
        options(**values)


def test_without_memory_a_frame_is_computed_by_itself():
    """Guards against: a baseline that remembers after all."""
    memory = small("none").eval()
    frames = torch.randn(2, 5, 4)
    other_past = torch.cat([torch.randn(2, 4, 4), frames[:, 4:]], dim=1)
    assert torch.equal(memory(frames)[:, 4], memory(other_past)[:, 4])


def test_a_gated_lstm_starts_without_memory():
    """Guards against: a gate that is open before training, so that random recurrent features reach the actions."""
    memory = small("gated_lstm").eval()
    frames = torch.randn(2, 5, 4)
    other_past = torch.cat([torch.randn(2, 4, 4), frames[:, 4:]], dim=1)
    assert torch.equal(memory(frames)[:, 4], memory(other_past)[:, 4])
    memory(frames)[:, 4].sum().backward()
    assert memory.gate.grad.abs().max() > 0


@pytest.mark.parametrize("cell", ["lstm", "gru", "transformer"])
def test_with_memory_the_past_counts(cell):
    """Guards against: a memory that ignores the past."""
    memory = small(cell).eval()
    frames = torch.randn(2, 5, 4)
    other_past = torch.cat([torch.randn(2, 4, 4), frames[:, 4:]], dim=1)
    assert (memory(frames)[:, 4] - memory(other_past)[:, 4]).abs().max() > 1e-4


@pytest.mark.parametrize("cell", ["lstm", "gru", "transformer", "none"])
def test_the_future_does_not_count(cell):
    """Guards against: training targets that leak from later frames."""
    memory = small(cell).eval()
    frames = torch.randn(2, 5, 4)
    other_future = torch.cat([frames[:, :3], torch.randn(2, 2, 4)], dim=1)
    assert torch.allclose(memory(frames)[:, :3], memory(other_future)[:, :3], atol=1e-6)


def test_the_frame_perceptron_is_that_of_robovlms():
    """Guards against: FCDecoder weights that don't fit: Linear(P, P/2) - ReLU - Linear(P/2, H)."""
    memory = make("memory", "none", 6, hidden=8)
    shapes = {name: tuple(weight.shape) for name, weight in memory.state_dict().items()}
    assert shapes == {"mlp.0.weight": (3, 6), "mlp.0.bias": (3,), "mlp.2.weight": (8, 3), "mlp.2.bias": (8,)}


@pytest.mark.parametrize("history", ["window", "carry"])
def test_a_step_in_training_mode_drops_out_as_training_does(history):
    """Guards against: two kinds of forward pass in one mode, depending on whether gradients are on."""
    memory = make("memory", "lstm", 4, history=history, hidden=8, window=3, dropout=0.5)
    frame, state = torch.randn(2, 4), memory.initial_state((2,))
    with torch.no_grad():
        assert not torch.equal(memory.step(frame, state)[0], memory.step(frame, state)[0])
        memory.eval()
        assert torch.equal(memory.step(frame, state)[0], memory.step(frame, state)[0])
