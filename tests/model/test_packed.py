"""Packed weights: the same numbers as the plain step, and never those of weights that have changed."""

import copy
import gc
import io
import weakref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from robopolicy.model import packed
from robopolicy.model.policy_head import PolicyHead
from robopolicy.types import ActionSpec


def head_of(**options):
    torch.manual_seed(0)
    options = {"layers": 2, "hidden": 8, "head_widths": (8,)} | options
    return PolicyHead(5, ActionSpec(arm=2, gripper=1), window=3, chunk=2, **options).eval()


def arm_after(head, frames):
    """The arm of the last of some ticks, from the packed path where the head allows it."""
    with torch.no_grad():
        state = head.initial_state(frames.shape[1])
        for frame in frames:
            chunk, state = head.step(frame, state)
    return chunk.arm


def arm_of_window(head, frames):
    return head(frames.transpose(0, 1)).arm[:, -1]


@given(
    cell=st.sampled_from(["lstm", "gru"]),
    history=st.sampled_from(["window", "carry"]),
    layers=st.integers(1, 3),
    episodes=st.integers(1, 7),
    tile=st.integers(1, 8),
)
@settings(max_examples=40, deadline=None)
def test_packed_steps_equal_plain_ones_however_they_are_tiled(cell, history, layers, episodes, tile):
    """Prevents rows lost or mixed at the tiles' edges."""
    head = head_of(cell=cell, history=history, layers=layers)
    frames = torch.randn(3, episodes, 4, 5)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packed, "TILE_ROWS", tile)
        assert packed.packable(head) is False  # gradients are on here
        streamed = arm_after(head, frames)
    assert (streamed - arm_of_window(head, frames)).abs().max() < 1e-6


def train_a_step(head):
    optimizer = torch.optim.SGD(head.parameters(), lr=0.5)
    head(torch.randn(2, 3, 4, 5)).arm.sum().backward()
    optimizer.step()


def load_other_weights(head):
    head.load_state_dict({name: weight * 1.5 for name, weight in head.state_dict().items()})


def write_through_data(head):
    """As Lightning's weight averaging swaps its models."""
    for parameter in head.parameters():
        parameter.data.copy_(parameter.data * 1.5)


def assign_data(head):
    for parameter in head.parameters():
        parameter.data = parameter.data * 1.5


def change_in_inference_mode(head):
    with torch.inference_mode():
        for parameter in head.parameters():
            parameter.mul_(1.5)


def replace_a_parameter(head):
    head.rnn.weight_hh_l0 = torch.nn.Parameter(head.rnn.weight_hh_l0.detach() * 1.5)
    linear = head.action_head.actions.mlp[0]
    linear.weight = torch.nn.Parameter(linear.weight.detach() * 1.5)


def there_and_back_in_another_dtype(head):
    head.to(torch.bfloat16).to(torch.float32)


CHANGES = [
    train_a_step,
    load_other_weights,
    write_through_data,
    assign_data,
    change_in_inference_mode,
    replace_a_parameter,
    there_and_back_in_another_dtype,
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_changed_weights_are_noticed(change):
    """Prevents a robot that is driven by the weights of before the last training step."""
    head = head_of()
    frames = torch.randn(3, 2, 4, 5)
    before = arm_after(head, frames)
    change(head)
    after = arm_after(head, frames)
    assert not torch.equal(before, after)
    assert (after - arm_of_window(head, frames)).abs().max() < 1e-6


def test_unchanged_weights_are_packed_once(monkeypatch):
    """Prevents a tick that pays for packing each time."""
    head = head_of()
    frames = torch.randn(3, 2, 4, 5)
    arm_after(head, frames)
    monkeypatch.setattr(packed.packed_cell, "_pack", lambda *_: pytest.fail("packed again"))
    monkeypatch.setattr(packed.packed_copy, "_pack", lambda *_: pytest.fail("packed again"))
    arm_after(head, frames)


def test_a_head_made_in_inference_mode_streams_too():
    """Prevents an error from tensors that count no versions."""
    with torch.inference_mode():
        head = head_of()
        frames = torch.randn(3, 2, 4, 5)
        first = arm_after(head, frames)
        write_through_data(head)
        second = arm_after(head, frames)
        assert not torch.equal(first, second)
        assert (second - arm_of_window(head, frames)).abs().max() < 1e-6


def test_gradients_flow_through_a_step_after_packed_ones():
    """Prevents training that silently goes through packed copies, which have no gradient."""
    head = head_of()
    frames = torch.randn(3, 2, 4, 5)
    arm_after(head, frames)
    chunk, _ = head.step(frames[0], head.initial_state(2))
    chunk.arm.sum().backward()
    assert all(p.grad is not None for name, p in head.named_parameters() if "gripper" not in name)


def test_packing_leaves_no_trace_in_the_head():
    """Prevents checkpoints, copies and pickles that carry packed weights, and packed weights that outlive their head."""
    head = head_of()
    names = list(head.state_dict())
    arm_after(head, torch.randn(3, 2, 4, 5))
    assert list(head.state_dict()) == names
    copy.deepcopy(head)
    torch.save(head, io.BytesIO())
    packed_cell = weakref.ref(packed.packed_cell(head.rnn, "float32"))
    del head
    gc.collect()
    assert packed_cell() is None


@pytest.fixture(autouse=True)
def _runnable(request):
    """Skips what this CPU can't do."""
    parameters = getattr(request.node, "callspec", None)
    if parameters and parameters.params.get("precision") == "bf16" and not packed.bf16_runs():
        pytest.skip("this CPU has no instructions for bfloat16")


@pytest.mark.parametrize(("precision", "bound"), [("bf16", 0.02), ("int8", 0.02)])
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_low_precision_stays_near_float32(cell, precision, bound):
    """Prevents a wrong scale or zero point, which would be far beyond rounding."""
    head = head_of(cell=cell, hidden=256, layers=2)
    frames = torch.randn(6, 2, 4, 5)
    exact = arm_after(head, frames)
    head.precision = precision
    rounded = arm_after(head, frames)
    assert not torch.equal(exact, rounded)
    assert (exact - rounded).abs().max() < bound * exact.abs().max()


@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_low_precision_keeps_episodes_apart(precision):
    """Prevents a scale shared by a batch, with which one world's NaN or outlier changes the others."""
    head = head_of(hidden=256)
    head.precision = precision
    frames = torch.randn(4, 2, 4, 5)
    alone = arm_after(head, frames)[0]
    frames[:, 1] *= 1000.0
    frames[2, 1] = torch.nan
    assert torch.equal(arm_after(head, frames)[0], alone)


def test_an_unknown_precision_is_refused():
    """Prevents a typo that silently runs in float32."""
    with pytest.raises(ValueError, match="choose float32, bf16, int8"):
        head_of().precision = "fp8"


def test_bf16_is_refused_where_the_cpu_cannot(monkeypatch):
    """Prevents a step that is emulated, a hundred times slower than float32."""
    monkeypatch.setattr("robopolicy.model.policy_head.bf16_runs", lambda: False)
    with pytest.raises(ValueError, match="no instructions for bfloat16; use float32 or int8"):
        head_of().precision = "bf16"
