"""The policy head: tokens in, chunks out, the same from a stream as from the window."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from robopolicy.model.policy_head import PolicyHead
from robopolicy.types import ActionSpec


def head_of(**options):
    torch.manual_seed(0)
    options = {"window": 3, "chunk": 2, "layers": 2, "hidden": 8, "widths": (8,)} | options
    if options.get("memory") == "transformer":
        options = {"heads": 1} | options
    if options.get("memory") == "none":
        del options["layers"]
    action = options.pop("action", ActionSpec(arm=6, gripper=1))
    return PolicyHead(5, action, **options).eval()


def stream(head, frames, valid=None):
    """Arm and gripper logit at every frame (*B, T, N, D), one step at a time and without gradients."""
    arms, grippers = [], []
    with torch.no_grad():
        state = head.initial_state(tuple(frames.shape[:-3]))
        for t in range(frames.shape[-3]):
            mask = None if valid is None else valid[..., t, :]
            chunk, state = head.step(frames[..., t, :, :], state, mask)
            arms.append(chunk.arm)
            grippers.append(chunk.gripper_logit)
    return torch.stack(arms, dim=-3), torch.stack(grippers, dim=-3)


@pytest.mark.parametrize("batch", [(), (4,), (2, 3)], ids=str)
@pytest.mark.parametrize(
    "action", [ActionSpec(6, 1), ActionSpec([0, 1, 3], [2]), ActionSpec(4, 0), ActionSpec(2, 2)], ids=str
)
def test_a_chunk_has_the_documented_shape(batch, action):
    """Guards against: an action width of 6 + 1 wired in anywhere."""
    head = head_of(action=action)
    chunk = head(torch.randn(*batch, 3, 4, 5))
    assert chunk.arm.shape == (*batch, 3, 2, action.arm_width)
    assert chunk.gripper_logit.shape == (*batch, 3, 2, action.gripper_width)
    chunk, _ = head.step(torch.randn(*batch, 4, 5), head.initial_state(batch))
    assert chunk.arm.shape == (*batch, 2, action.arm_width)
    assert chunk.gripper_logit.shape == (*batch, 2, action.gripper_width)


@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_a_stream_equals_the_window_for_every_kind(data):
    """Guards against: a combination of options whose stream is not its window."""
    pick = data.draw
    memory = pick(st.sampled_from(["lstm", "gru", "transformer", "none"]))
    history = pick(st.sampled_from(["window", "carry"])) if memory in ("lstm", "gru") else None
    head = head_of(
        memory=memory,
        **({"history": history} if history else {}),
        pooling=pick(st.sampled_from(["max", "mean", "attention", "resampler", "none"])),
        latent=pick(st.integers(1, 3)),
        layers=pick(st.integers(1, 3)),
        window=pick(st.integers(1, 5)),
        action_head=pick(st.sampled_from(["regression", "gmm"])),
    )
    count = head.pooling.latent if hasattr(head.pooling, "latent") else 4
    steps = head.window
    frames = torch.randn(*pick(st.sampled_from([(1,), (3,), (2, 2)])), steps, count, 5)
    valid = torch.rand(frames.shape[:-1]) > 0.3 if pick(st.booleans()) else None
    arm, gripper = stream(head, frames, valid)
    chunk = head(frames, valid)
    assert (arm - chunk.arm).abs().max() < 2e-6
    assert (gripper - chunk.gripper_logit).abs().max() < 2e-6


def test_sizes_and_parameter_count_are_those_of_robovlms():
    """Guards against: a head into which published checkpoints don't fit: 2048 wide tokens give 41,210,950 parameters."""
    with torch.device("meta"):
        head = PolicyHead(2048, ActionSpec(arm=6, gripper=1), window=16, chunk=10)
    assert sum(parameter.numel() for parameter in head.parameters()) == 41_210_950
    shapes = {name: tuple(weight.shape) for name, weight in head.state_dict().items()}
    assert shapes["memory.weight_ih_l0"] == (4096, 2048)
    assert shapes["memory.bias_hh_l3"] == (4096,)


def test_latent_vectors_widen_the_memory():
    """Guards against: latent > 1 heads that don't fit RoboVLMs' [4*H*L, in*L] weights."""
    shapes = {name: tuple(weight.shape) for name, weight in head_of(latent=2).state_dict().items()}
    assert shapes["memory.weight_ih_l0"] == (64, 10)
    assert shapes["memory.weight_hh_l1"] == (64, 16)


def test_pooling_frames_once_and_cutting_windows_equals_pooling_each_window():
    """Guards against: long segments that train on other numbers than windows."""
    head = head_of()
    tokens = torch.randn(2, 5, 4, 5)
    pooled = head.pool(tokens)
    windows = torch.stack([pooled[:, start : start + 3] for start in range(3)], dim=1)
    each = torch.stack([head(tokens[:, start : start + 3]).arm for start in range(3)], dim=1)
    assert (head.action_head.decode(head.memory(windows)).arm - each).abs().max() < 1e-6


def test_unroll_over_two_chunks_equals_one_pass_in_numbers_and_gradients():
    """Guards against: truncated BPTT that differs from the full pass when nothing is cut."""
    head = head_of(history="carry")
    tokens = torch.randn(2, 6, 4, 5)
    first, state = head.unroll(tokens[:, :4], head.initial_state(2))
    second, _ = head.unroll(tokens[:, 4:], state)
    joined = torch.cat([first.arm, second.arm], dim=1)
    whole = head(tokens).arm
    assert (joined - whole).abs().max() < 1e-6
    weights = [p for name, p in head.named_parameters() if "gripper" not in name]
    got = torch.autograd.grad(joined.square().sum(), weights)
    expected = torch.autograd.grad(whole.square().sum(), weights)
    assert all((a - b).abs().max() < 1e-5 for a, b in zip(got, expected, strict=True))


def test_a_detached_state_stops_the_gradient_at_the_chunk():
    """Guards against: truncated BPTT that isn't truncated."""
    head = head_of(history="carry", widths=(64,))
    tokens = torch.randn(2, 6, 4, 5, requires_grad=True)
    _, state = head.unroll(tokens[:, :4], head.initial_state(2))
    chunk, _ = head.unroll(tokens[:, 4:], state.detach())
    chunk.arm.sum().backward()
    assert torch.equal(tokens.grad[:, :4], torch.zeros(2, 4, 4, 5))
    assert tokens.grad[:, 4:].abs().sum() > 0


def test_training_between_robot_steps_leaves_the_stream_right():
    """Guards against: RoboVLMs' fault: after training without a reset, the first robot step is silently wrong."""
    head = head_of()
    frames = torch.randn(2, 3, 4, 5)
    state = head.initial_state(2)
    with torch.no_grad():
        _, state = head.step(frames[:, 0], state)
    head.train()(torch.randn(4, 3, 4, 5)).arm.sum().backward()
    head.eval()
    with torch.no_grad():
        chunk, state = head.step(frames[:, 1], state)
    assert (chunk.arm - head(frames[:, :2]).arm[:, -1]).abs().max() < 1e-6


@pytest.mark.parametrize("kind", ["regression", "gmm", "discrete"])
def test_loss_is_the_action_heads_own_and_its_gradient_reaches_every_weight(kind):
    """Guards against: a head that is trained with another head's loss, or in part."""
    head = head_of(action_head=kind).train()
    target = torch.cat([torch.rand(2, 3, 2, 6) * 2 - 1, torch.randint(0, 2, (2, 3, 2, 1)).float()], dim=-1)
    valid = torch.ones(2, 3, 2, dtype=torch.bool)
    terms = head.loss(head(torch.randn(2, 3, 4, 5)), target, valid)
    terms["loss"].backward()
    assert all(parameter.grad is not None for parameter in head.parameters())
    none_valid = head.loss(head(torch.randn(2, 3, 4, 5)), target, torch.zeros_like(valid))
    assert none_valid["loss"].item() == 0


def test_a_head_option_of_another_kind_is_refused():
    """Guards against: a setting that is silently not used."""
    with pytest.raises(TypeError):
        head_of(action_head="regression", modes=5)


def test_a_window_of_one_trains_and_streams():
    """Guards against: RoboVLMs' fault: training with W = 1 runs the robot's branch and fails at step 2."""
    head = head_of(window=1)
    for _ in range(2):
        head(torch.randn(2, 1, 4, 5)).arm.sum().backward()
    frames = torch.randn(2, 3, 4, 5)
    arm, _ = stream(head, frames)
    expected = torch.stack([head(frames[:, t : t + 1]).arm[:, 0] for t in range(3)], dim=1)
    assert (arm - expected).abs().max() < 1e-6


@pytest.mark.parametrize("shape", [(2, 3, 4, 6), (2, 3, 0, 5)], ids=["another width", "no tokens"])
def test_tokens_that_do_not_fit_are_refused_in_one_line(shape):
    """Guards against: oneDNN's "could not create a primitive descriptor" as the answer to a wrong width."""
    with pytest.raises(ValueError, match=r"must have shape \(..., N, 5\) with N >= 1"):
        head_of().pool(torch.randn(shape))


@pytest.mark.parametrize("pooling", ["max", "mean", "attention", "resampler", "none"])
@pytest.mark.parametrize("batch", [(0,), (0, 2)], ids=str)
def test_an_empty_batch_gives_an_empty_chunk(pooling, batch):
    """Guards against: a rollout that fails at the tick at which its last world has ended."""
    head = head_of(pooling=pooling, latent=2)
    valid = torch.ones((*batch, 2), dtype=torch.bool)
    with torch.no_grad():
        chunk, _ = head.step(torch.zeros(*batch, 2, 5), head.initial_state(batch), valid)
    assert chunk.arm.shape == (*batch, 2, 6)


@pytest.mark.parametrize("memory", ["lstm", "gru", "transformer", "none"])
def test_a_step_under_autocast_is_near_float32(memory):
    """Guards against: packed float32 weights that meet autocast's bfloat16 rows, which oneDNN refuses."""
    head = head_of(memory=memory, pooling="attention")
    tokens = torch.randn(2, 4, 5)
    with torch.no_grad():
        expected, _ = head.step(tokens, head.initial_state(2))
        with torch.autocast("cpu", torch.bfloat16):
            state = head.initial_state(2)
            chunk, state = head.step(tokens, state)
            head.step(tokens, state)
    assert (chunk.arm.float() - expected.arm).abs().max() < 0.05


def test_a_normalized_linear_layer_streams():
    """Guards against: a step that tries to copy a layer with `spectral_norm`, which torch refuses."""
    head = head_of()
    torch.nn.utils.parametrizations.spectral_norm(head.eval().action_head.actions.mlp[0])
    head.eval()
    frames = torch.randn(2, 3, 4, 5)
    arm, _ = stream(head, frames)
    with torch.no_grad():
        assert (arm - head(frames).arm).abs().max() < 2e-6
