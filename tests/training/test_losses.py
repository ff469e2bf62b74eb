"""Auxiliary losses: what each compares, over which frames, and what its gradient reaches."""

import pytest
import torch
from torch import nn

from robopolicy.components import ConfigError, component
from robopolicy.model.losses import cut_windows
from robopolicy.training.losses import LossContext, LossInputs
from robopolicy.types import Batch

FRAME_VALID = torch.tensor([[True] * 4, [True, True, False, False]])


def build_loss(kind: str, keys: tuple[str, ...] | None = None, **sizes: object) -> nn.Module:
    context = LossContext(
        **{"pooled_width": 5, "hidden_width": 7, "arm_width": 6, "predictions": {}, "privileged": {}} | sizes
    )
    found = component("loss", kind)
    return found.make(found.options() if keys is None else found.options(keys=keys), context)


def make_inputs(**parts: object) -> LossInputs:
    batch = parts.pop("batch", Batch({}, torch.zeros(2), (), torch.zeros(0), torch.zeros(0), FRAME_VALID))
    empty = {"privileged": {}, "predictions": {}, "pooled": torch.zeros(0), "hidden": torch.zeros(0)}
    return LossInputs(batch, **empty | parts)


def test_forward_moves_the_memory_but_not_its_goal() -> None:
    """Guards against: a gradient into the predicted frame, which the encoder would meet by making all frames alike."""
    torch.manual_seed(0)
    pooled = torch.randn(2, 4, 5, requires_grad=True)
    memory = nn.Linear(5, 7)
    hidden = memory(cut_windows(pooled.detach(), 3))
    forward = build_loss("forward")
    loss = forward(make_inputs(pooled=pooled, hidden=hidden))
    predicted = forward.predict(hidden)
    errors = [
        (predicted[b, v, w] - pooled[b, v + w + 1]).square()
        for b, v, w in [(0, 0, 0), (0, 0, 1), (0, 1, 0), (0, 1, 1), (1, 0, 0)]
    ]
    torch.testing.assert_close(loss, torch.stack(errors).mean())
    loss.backward()
    assert memory.weight.grad.abs().sum() > 0
    assert pooled.grad is None


def test_forward_refuses_windows_of_one_frame() -> None:
    """Guards against: a loss of zero, without a next frame to predict, that looks like success."""
    inputs = make_inputs(pooled=torch.zeros(2, 4, 5), hidden=torch.zeros(2, 4, 1, 7))
    with pytest.raises(ConfigError, match=r"--losses\.forward needs windows of 2 or more frames"):
        build_loss("forward")(inputs)


def test_memory_keys_counts_real_frames_of_every_window() -> None:
    """Guards against: padding beyond a demo's end, NaN included, that pulls on the memory."""
    torch.manual_seed(0)
    target = torch.randn(2, 4, 3)
    target[1, 2:] = torch.nan
    memory = nn.Linear(5, 7)
    hidden = memory(cut_windows(torch.randn(2, 4, 5), 3))
    memory_keys = build_loss("memory_keys", privileged={"target_pos": 3})
    loss = memory_keys(make_inputs(privileged={"target_pos": target}, hidden=hidden))
    predicted = memory_keys.predict(hidden)
    places = [(0, v, w) for v in range(2) for w in range(3)] + [(1, 0, 0), (1, 0, 1), (1, 1, 0)]
    errors = [(predicted[b, v, w] - target[b, v + w]) ** 2 for b, v, w in places]
    torch.testing.assert_close(loss, torch.stack(errors).mean())
    loss.backward()
    assert memory.weight.grad.isfinite().all()
    assert memory.weight.grad.abs().sum() > 0


def test_attention_keys_counts_the_real_frames_only() -> None:
    """Guards against: padding beyond a demo's end, NaN included, that pulls on the attention."""
    torch.manual_seed(0)
    targets = {"goal": torch.randn(2, 4, 1), "target_pos": torch.randn(2, 4, 3)}
    targets["target_pos"][1, 2:] = torch.nan
    attended = torch.randn(2, 4, 4, requires_grad=True)
    loss = build_loss("attention_keys", predictions={"attended": 4}, privileged={"goal": 1, "target_pos": 3})(
        make_inputs(privileged=targets, predictions={"attended": attended})
    )
    wanted = torch.cat([targets["goal"], targets["target_pos"]], dim=-1)
    torch.testing.assert_close(loss, (attended - wanted)[FRAME_VALID].square().mean())
    loss.backward()
    assert attended.grad.isfinite().all()
    assert attended.grad[FRAME_VALID].all()
    assert not attended.grad[1, 2:].any()


def test_attention_keys_needs_the_encoder_to_predict_as_wide() -> None:
    """Guards against: a KeyError or a broadcast where the encoder predicts nothing, or other columns."""
    for predictions in ({}, {"attended": 2}):
        with pytest.raises(ConfigError, match=r"has 3 columns of target_pos, .* set --encoder\.predict 3"):
            build_loss("attention_keys", predictions=predictions, privileged={"target_pos": 3})


def test_linear_action_learns_the_present_valid_action() -> None:
    """Guards against: later actions of the chunk, or padded ones, NaN included, that pull on the selection."""
    torch.manual_seed(0)
    selected = torch.randn(2, 4, 5, requires_grad=True)
    target = torch.rand(2, 4, 3, 7)
    valid = torch.ones(2, 4, 3, dtype=torch.bool)
    valid[1, 2:] = False
    target[1, 2:] = float("nan")
    batch = Batch({}, torch.zeros(2), (), target, valid, torch.ones(2, 4, dtype=torch.bool))
    linear = build_loss("linear_action", predictions={"selected": 5})
    nn.init.normal_(linear.act.weight)
    loss = linear(make_inputs(batch=batch, predictions={"selected": selected}))
    predicted = linear.act(selected)
    errors = [predicted[b, s] - target[b, s, 0, :6] for b, s in [(0, 0), (0, 1), (0, 2), (0, 3), (1, 0), (1, 1)]]
    torch.testing.assert_close(loss, torch.stack(errors).square().mean())
    loss.backward()
    assert selected.grad.isfinite().all()
    assert selected.grad[0].any()
    assert not selected.grad[1, 2:].any()


def test_linear_action_moves_the_selection_to_the_key_that_the_action_follows() -> None:
    """Guards against: the named object shut out, since the mean of all objects lies opposite to the demonstrated motion."""
    torch.manual_seed(0)
    shares = nn.Parameter(torch.zeros(3))
    widths = {"selected": 3, "sentence": 4, "keys_cube": 3, "choice_0_cube": 3}
    linear = build_loss("linear_action", predictions=widths)
    sentence = torch.randn(64, 1, 4)[:1].expand(64, 1, 4)
    named = torch.randn(64, 1, 3)
    keys = torch.stack(
        [-0.65 * named + 1.2 * torch.randn(64, 1, 3), named, -0.65 * named + 1.2 * torch.randn(64, 1, 3)], dim=-2
    )
    target = torch.cat([named, torch.zeros(64, 1, 4)], dim=-1)[:, :, None]
    batch = Batch({}, torch.zeros(64), (), target, torch.ones(64, 1, 1, dtype=torch.bool), torch.ones(64, 1).bool())
    optimizers = [torch.optim.AdamW(linear.parameters(), lr=0.02), torch.optim.AdamW([shares], lr=0.02)]
    for step in range(150):
        choice = shares.softmax(-1).expand(64, 1, 3)
        seen = {"selected": (choice[..., None] * keys).sum(-2), "sentence": sentence}
        loss = linear(make_inputs(batch=batch, predictions=seen | {"keys_cube": keys, "choice_0_cube": choice}))
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss.backward()
        for optimizer in optimizers[: 1 + (step >= 50)]:
            optimizer.step()
    assert shares.softmax(-1)[1] > 0.8


def test_linear_action_needs_an_encoder_with_groups() -> None:
    """Guards against: a weighted loss that no part of the model can compute."""
    with pytest.raises(ConfigError, match=r"--losses\.linear_action needs .* give --encoder\.groups"):
        build_loss("linear_action")


@pytest.mark.parametrize("kind", ["memory_keys", "attention_keys"])
def test_predicting_no_privileged_key_is_refused(kind: str) -> None:
    """Guards against: a loss of zero, without a key to predict, that looks like success."""
    with pytest.raises(ConfigError, match=rf"--losses\.{kind} needs .* give --data\.privileged_keys"):
        build_loss(kind)


@pytest.mark.parametrize("kind", ["memory_keys", "attention_keys"])
def test_an_unknown_privileged_key_lists_the_known_ones(kind: str) -> None:
    """Guards against: a misspelled key that ends in a KeyError at the first batch."""
    with pytest.raises(ConfigError, match=rf"--losses\.{kind} needs the privileged key 'goal'; .* has: target_pos"):
        build_loss(kind, keys=("goal",), privileged={"target_pos": 3})
