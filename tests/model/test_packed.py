"""Frozen copies with packed weights: the same numbers as the plain step, from weights that do not change any more."""

import copy
import io

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from robopolicy.components import kinds
from robopolicy.model import packed, packed_linear
from robopolicy.model.packed import freeze
from robopolicy.model.packed_linear import PackedLinear
from robopolicy.types import ActionSpec
from tests.making import make

WIDTH = 5


def make_memory(kind="lstm", hidden=8, **options):
    torch.manual_seed(0)
    return make("memory", kind, WIDTH, hidden=hidden, **options).eval()


def make_head(kind="regression", hidden=8, widths=(8,)):
    torch.manual_seed(0)
    return make("action_head", kind, hidden, ActionSpec(arm=2, gripper=1), chunk=2, widths=widths).eval()


def stream(memory, frames):
    """The hidden vector after the last of frames (T, *B, P)."""
    with torch.no_grad():
        state = memory.initial_state(frames.shape[1:-1])
        for frame in frames:
            hidden, state = memory.step(frame, state)
    return hidden


@given(
    kind=st.sampled_from(["lstm", "gru"]),
    history=st.sampled_from(["window", "carry"]),
    layers=st.integers(1, 3),
    episodes=st.integers(1, 7),
    tile=st.integers(1, 8),
)
@settings(max_examples=40, deadline=None)
def test_frozen_steps_equal_plain_ones_however_tiled(kind, history, layers, episodes, tile):
    """Guards against: rows lost or mixed at the tiles' edges."""
    memory = make_memory(kind, history=history, layers=layers, window=3)
    frames = torch.randn(5, episodes, WIDTH)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packed, "TILE_ROWS", tile)
        streamed = stream(freeze(memory), frames)
    assert (streamed - stream(memory, frames)).abs().max() < 1e-6


@pytest.mark.parametrize("kind", kinds("memory"))
def test_a_frozen_memory_keeps_the_contract(kind):
    """Guards against: a frozen memory that can't replace the plain one, or whose `forward` and `step` disagree."""
    memory = make_memory(kind)
    frozen = freeze(memory)
    frames = torch.randn(2, 3, 4, WIDTH)
    assert (frozen.history, frozen.window, frozen.output_width) == (memory.history, memory.window, memory.output_width)
    assert frozen.state_shapes((2, 3)) == memory.state_shapes((2, 3))
    with torch.no_grad():
        expected = memory(frames)
        assert (frozen(frames) - expected).abs().max() < 1e-6
        unrolled, _ = frozen.unroll(frames, memory.initial_state((2, 3)))
        assert (unrolled - expected).abs().max() < 1e-6


@pytest.mark.parametrize("kind", kinds("action_head"))
def test_a_frozen_action_head_decodes_as_the_plain_one(kind):
    """Guards against: a linear layer that is left out, or packed with another's weights."""
    head = make_head(kind, widths=(8, 7))
    hidden = torch.randn(4, 3, 8)
    frozen, plain = freeze(head).decode(hidden), head.decode(hidden)
    assert (frozen.arm - plain.arm).abs().max() < 1e-6
    assert (frozen.gripper_logit - plain.gripper_logit).abs().max() < 1e-6


@pytest.mark.parametrize("module", [make_memory(), make_memory("transformer"), make_memory("none"), make_head("gmm")])
def test_a_frozen_copy_does_not_follow_its_original(module):
    """Guards against: a running robot whose weights change under it, half of them at a time."""
    frozen = freeze(module)
    inputs = torch.randn(3, 2, WIDTH) if hasattr(module, "step") else torch.randn(2, 8)

    def output(module):
        return stream(module, inputs) if hasattr(module, "step") else module.decode(inputs).arm

    before, plain = output(frozen), output(module)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(1.5)
    assert torch.equal(output(frozen), before)
    assert not torch.equal(output(module), plain)
    assert not torch.equal(output(freeze(module)), before)


def test_a_frozen_copy_has_nothing_to_train():
    """Guards against: an optimizer or a gradient that reaches a frozen copy."""
    for module in (make_memory(), make_memory("transformer"), make_head()):
        frozen = freeze(module)
        assert not any(parameter.requires_grad for parameter in frozen.parameters())
        assert not frozen.training
    frame = torch.randn(2, WIDTH, requires_grad=True)
    hidden, _ = freeze(make_memory()).step(frame, make_memory().initial_state((2,)))
    assert not freeze(make_head()).decode(hidden).arm.requires_grad


def test_freezing_leaves_the_original_as_it_was():
    """Guards against: checkpoints, copies and pickles that carry packed weights, and training that stops."""
    memory, head = make_memory(), make_head()
    names = [*memory.state_dict(), *head.state_dict()]
    freeze(memory)
    freeze(head)
    assert [*memory.state_dict(), *head.state_dict()] == names
    copy.deepcopy(memory)
    torch.save(head, io.BytesIO())
    hidden, _ = memory.step(torch.randn(2, WIDTH), memory.initial_state((2,)))
    head.decode(hidden).arm.sum().backward()
    assert all(parameter.grad is not None for parameter in memory.parameters())


def test_dropout_is_off_in_a_frozen_memory():
    """Guards against: random actions on a robot that runs a policy frozen in training mode."""
    memory = make_memory("transformer", dropout=0.5).train()
    frames = torch.randn(2, 2, WIDTH)
    frozen = freeze(memory)
    assert torch.equal(stream(frozen, frames), stream(frozen, frames))


@pytest.fixture(autouse=True)
def _runnable(request):
    """Skips what this CPU can't do."""
    parameters = getattr(request.node, "callspec", None)
    if parameters and parameters.params.get("precision") == "bf16" and not packed.bf16_runs():
        pytest.skip("this CPU has no instructions for bfloat16")


@pytest.mark.parametrize("precision", ["bf16", "int8"])
@pytest.mark.parametrize(("kind", "action"), [("lstm", "regression"), ("gru", "regression"), ("lstm", "flow")])
def test_low_precision_stays_near_float32(kind, action, precision):
    """Guards against: a wrong scale or zero point, which would be far beyond rounding."""
    memory, head = make_memory(kind, hidden=256), make_head(action, hidden=256, widths=(256, 256))
    frames = torch.randn(6, 2, WIDTH)
    exact = head.decode(stream(memory, frames)).arm
    rounded = freeze(head, precision).decode(stream(freeze(memory, precision), frames)).arm
    assert not torch.equal(exact, rounded)
    assert (exact - rounded).abs().max() < 0.02 * exact.abs().max()


@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_low_precision_keeps_episodes_apart(precision):
    """Guards against: a scale shared by a batch, with which one episode's NaN or outlier changes the others."""
    memory = freeze(make_memory(hidden=256), precision)
    frames = torch.randn(4, 2, WIDTH)
    alone = stream(memory, frames)[0]
    frames[:, 1] *= 1000.0
    frames[2, 1] = torch.nan
    assert torch.equal(stream(memory, frames)[0], alone)


@pytest.mark.parametrize("library", ["fbgemm", "onednn"])
@pytest.mark.parametrize("bounded", [False, True])
def test_int8_products_are_near_in_either_library(library, bounded, monkeypatch):
    """Guards against: a fallback that is never run, and small columns that are rounded away beside a few large ones."""
    if library == "fbgemm" and not packed_linear._FBGEMM:
        pytest.skip("this torch has no FBGEMM")
    monkeypatch.setattr(packed_linear, "_FBGEMM", library == "fbgemm")
    torch.manual_seed(0)
    weight, bias, rows = torch.randn(256, 512) / 512**0.5, torch.randn(256), 2 * torch.rand(5, 512) - 1
    if not bounded:
        rows[:, 0] = 100.0
        weight[:, 0] = 0.0
    linear = PackedLinear(weight, bias, "int8", bounded)
    assert (linear.int8.fbgemm is not None) == (library == "fbgemm")
    off = linear(rows) - torch.nn.functional.linear(rows, weight, bias)
    assert off.square().mean().sqrt() < 0.015 * rows[:, 1:].square().mean().sqrt()


@pytest.mark.parametrize("precision", ["float32", "bf16", "int8"])
def test_a_row_alone_gives_what_it_gives_among_others(precision):
    """Guards against: single rows, which float32 multiplies by a copy of the weight, with another's weight or bias."""
    torch.manual_seed(0)
    rows, plus = torch.rand(3, 256), torch.rand(3, 512)
    for bias in (None, torch.randn(512)):
        linear = PackedLinear(torch.randn(512, 256) / 16, bias, precision, bounded=True)
        together, added = linear(rows), linear(rows, plus.clone())
        assert (linear(rows, plus[:1].clone()) - together - plus[:1]).abs().max() < 1e-5
        for row in range(3):
            assert (linear(rows[row]) - together[row]).abs().max() < 1e-5
            alone = linear(rows[row : row + 1], plus[row : row + 1].clone())
            assert (alone - added[row]).abs().max() < 1e-5


def test_an_unknown_precision_is_refused():
    """Guards against: a typo that silently runs in float32."""
    with pytest.raises(ValueError, match="'fp8' is unknown; choose one of float32, bf16, int8"):
        packed.require_precision("fp8")


def test_bf16_is_refused_where_the_cpu_cannot(monkeypatch):
    """Guards against: a step that is emulated, a hundred times slower than float32."""
    monkeypatch.setattr(packed, "bf16_runs", lambda: False)
    with pytest.raises(ValueError, match="no instructions for bfloat16; use float32 or int8"):
        freeze(make_memory(), "bf16")


def test_where_nothing_packs_only_float32_is_offered(monkeypatch):
    """Guards against: int8 that silently runs in float32 on a GPU or another CPU."""
    monkeypatch.setattr(packed, "_PACKS", False)
    memory, frames = make_memory(), torch.randn(3, 2, WIDTH)
    assert torch.equal(stream(freeze(memory), frames), stream(memory, frames))
    with pytest.raises(ValueError, match="precision int8 needs float32 weights on a CPU"):
        freeze(memory, "int8")
