"""The traceable tick is the policy's own."""

import pytest
import torch

from robopolicy.control.graph import step_memory
from robopolicy.model.recurrence import make_recurrence


@pytest.mark.parametrize("cell", ["lstm", "gru"])
@pytest.mark.parametrize("history", ["window", "carry", "none"])
def test_the_exported_step_is_the_memorys_step(cell, history):
    """The graph restates the memory's step without its packed weights; the two must not part."""
    torch.manual_seed(0)
    memory = make_recurrence(cell, history, 5, 8, layers=2, window=3).eval()
    state = other = memory.initial_state((4,))
    with torch.no_grad():
        for step in range(8):
            frame = torch.randn(4, 5)
            expected, state = memory.step(frame, state)
            hidden, other = step_memory(memory, frame, other)
            torch.testing.assert_close(hidden, expected, atol=1e-5, rtol=1e-5)
            done = torch.tensor([step == 2, False, step == 4, step == 4])
            state, other = state.reset(done), other.reset(done)
