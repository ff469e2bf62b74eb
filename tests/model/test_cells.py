"""The cells: torch's own parameters, numbers and gradients."""

import pytest
import torch
from torch import nn

from robopolicy.model.memories.gru import GRUMemory, GRUOptions
from robopolicy.model.memories.lstm import LSTMMemory, LSTMOptions

CELLS = {"lstm": (LSTMMemory, LSTMOptions), "gru": (GRUMemory, GRUOptions)}
PEERS = {"lstm": nn.LSTM, "gru": nn.GRU}
cells = pytest.mark.parametrize("cell", ["lstm", "gru"])


def memory_of(cell, **options):
    make, kind = CELLS[cell]
    return make(kind(**options), 5)


def pair(cell, layers=3, dropout=0.0):
    """A cell of ours and torch's, with the same weights."""
    torch.manual_seed(0)
    peer = PEERS[cell](5, 7, layers, batch_first=True, dropout=dropout)
    mine = memory_of(cell, layers=layers, hidden=7, dropout=dropout)
    mine.load_state_dict(peer.state_dict())
    return mine, peer


def peer_run(peer, frames, state=None):
    if state is None:
        return peer(frames)[0]
    return peer(frames, state if len(state) == 2 else state[0])[0]


@cells
def test_parameters_are_named_and_shaped_as_torchs(cell):
    """Guards against: RoboVLMs' and robomimic's checkpoints that no longer fit."""
    mine, peer = pair(cell)
    assert {n: w.shape for n, w in mine.state_dict().items()} == {n: w.shape for n, w in peer.state_dict().items()}


@cells
def test_initial_weights_are_torchs(cell):
    """Guards against: training that starts elsewhere than the field's."""
    torch.manual_seed(3)
    mine = memory_of(cell, layers=2, hidden=7)
    torch.manual_seed(3)
    peer = PEERS[cell](5, 7, 2)
    assert all(torch.equal(a, b) for a, b in zip(mine.parameters(), peer.parameters(), strict=True))


@cells
@pytest.mark.parametrize("started", [False, True], ids=["zero state", "given state"])
def test_a_run_and_its_gradients_are_torchs(cell, started):
    """Guards against: an LSTM or GRU that trains otherwise than the field's."""
    mine, peer = pair(cell)
    frames = torch.randn(4, 6, 5, requires_grad=True)
    start = tuple(torch.randn(3, 4, 7, requires_grad=True) for _ in range(mine.state_count)) if started else None
    probe = torch.randn(4, 6, 7)
    hidden = mine.run(frames, start)[0]
    expected = peer_run(peer, frames, start)
    assert (hidden - expected).abs().max() < 1e-6
    wanted = [frames, *(start or ())]
    got = torch.autograd.grad((hidden * probe).sum(), [*wanted, *mine.parameters()])
    theirs = torch.autograd.grad((expected * probe).sum(), [*wanted, *peer.parameters()])
    for a, b in zip(got, theirs, strict=True):
        assert (a - b).abs().max() <= 1e-5 * max(1.0, b.abs().max().item())


@cells
def test_gradients_reach_the_weights_through_the_final_state_too(cell):
    """Guards against: truncated BPTT whose loss on a later chunk stops at the boundary when it should not."""
    mine, peer = pair(cell)
    frames = torch.randn(4, 6, 5)
    final = mine.run(frames)[1]
    theirs = peer(frames)[1]
    theirs = theirs if isinstance(theirs, tuple) else (theirs,)
    got = torch.autograd.grad(sum(t.square().sum() for t in final), list(mine.parameters()))
    expected = torch.autograd.grad(sum(t.square().sum() for t in theirs), list(peer.parameters()))
    for a, b in zip(got, expected, strict=True):
        assert (a - b).abs().max() <= 1e-5 * max(1.0, b.abs().max().item())


@cells
def test_dropout_acts_between_layers_in_training_only(cell):
    """Guards against: dropout on the output, or on the robot."""
    mine, _ = pair(cell, dropout=0.5)
    frames = torch.randn(4, 6, 5)
    assert not torch.equal(mine.run(frames)[0], mine.run(frames)[0])
    assert (mine.run(frames)[0] != 0).all()
    mine.eval()
    assert torch.equal(mine.run(frames)[0], mine.run(frames)[0])


@cells
def test_one_layer_takes_a_dropout_setting_without_complaint(cell):
    """Guards against: a warning, which is an error here, where a config sets both."""
    memory_of(cell, layers=1, hidden=7, dropout=0.5)


@cells
def test_advancing_step_by_step_equals_a_run(cell):
    """Guards against: a step with other gates than the run."""
    mine, _ = pair(cell)
    frames = torch.randn(4, 6, 5)
    hidden, final = mine.run(frames)
    state = tuple(torch.zeros(3, 4, 7) for _ in range(mine.state_count))
    for t in range(6):
        state = mine.advance(frames[:, t], state)
        assert (state[0][-1] - hidden[:, t]).abs().max() < 1e-6
    assert all((a - b).abs().max() < 1e-6 for a, b in zip(state, final, strict=True))


@cells
def test_bf16_autocast_trains_near_float32(cell):
    """Guards against: `training.precision: bf16` that fails on a float32 start state, or loses the gradient."""
    mine, peer = pair(cell)
    frames = torch.randn(4, 6, 5)
    with torch.autocast("cpu", torch.bfloat16):
        hidden = mine.run(frames)[0]
    expected = peer(frames)[0]
    assert (hidden.float() - expected).abs().max() < 0.02
    got = torch.autograd.grad(hidden.float().square().sum(), list(mine.parameters()))
    theirs = torch.autograd.grad(expected.square().sum(), list(peer.parameters()))
    for a, b in zip(got, theirs, strict=True):
        assert (a - b).norm() < 0.05 * b.norm()


@cells
def test_weights_given_for_one_call_are_used(cell):
    """Guards against: `functional_call`, and with it torch.func, on the old weights, as `nn.LSTM` silently runs."""
    mine, _ = pair(cell)
    other, _ = pair(cell)
    frames = torch.randn(4, 6, 5)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(2)
    got = torch.func.functional_call(Run(mine), {f"cell.{n}": w for n, w in other.named_parameters()}, (frames,))
    assert torch.equal(got, other.run(frames)[0])


@cells
def test_a_normalized_weight_is_used_as_normalized(cell):
    """Guards against: `weight_norm` that trains parameters which no pass reads."""
    mine, _ = pair(cell)
    frames = torch.randn(4, 6, 5)
    before = mine.run(frames)[0]
    nn.utils.parametrizations.weight_norm(mine, "weight_hh_l1")
    assert (mine.run(frames)[0] - before).abs().max() < 1e-6
    with torch.no_grad():
        mine.parametrizations.weight_hh_l1.original0.mul_(2)
    assert (mine.run(frames)[0] - before).abs().max() > 1e-3


class Run(nn.Module):
    """A cell's `run` as a module's call."""

    def __init__(self, cell):
        super().__init__()
        self.cell = cell

    def forward(self, frames):
        """The top layer's hidden vectors."""
        return self.cell.run(frames)[0]
