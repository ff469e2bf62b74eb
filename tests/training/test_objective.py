"""The objective: every window supervised, a weighted sum of named losses, gradients where they belong."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from robopolicy import components
from robopolicy.components import ConfigError, register
from robopolicy.experiment import DemoFacts, ExperimentConfig, build_policy
from robopolicy.experiment.building import key_scaling
from robopolicy.model.policy import ChunkPolicy
from robopolicy.model.statistics import Statistics
from robopolicy.model.texts import Vocabulary
from robopolicy.training.losses import LossContext, LossInputs
from robopolicy.training.objective import Objective
from robopolicy.types import ActionSpec, ArraySpec, Batch
from tests.small_runs import SMALL

W, K, S = 3, 2, 6
INSTRUCTIONS = ("lift the red cube", "lift the blue cube")
SPEC = ActionSpec(arm=[0, 1, 3], gripper=[2], constant={4: 0.5}, gripper_values=[(0.0, 1.0)])
LOW_DIM = {"ee_pose": ArraySpec((7,)), "gripper": ArraySpec((1,))}
CUBES = {"cube_red": ArraySpec((3,)), "cube_blue": ArraySpec((3,))}
FRONT = {"front": ArraySpec((16, 16, 3), "uint8")}
PRIVILEGED = {"target_pos": ArraySpec((3,))}
ALL_LOSSES = {"arm": 1.0, "gripper": 0.1, "attention_keys": 0.5, "forward": 0.2, "memory_keys": 0.3}
PIXELS = {"encoder.kind": "pixels", "encoder.predict": 3}
GROUPS = {"encoder.groups": {"object": ["cube_red", "cube_blue"]}}


def make_config(losses: Mapping[str, Any] | None = None, **changes: Any) -> ExperimentConfig:
    given = SMALL | {"memory.window": W, "action_head.chunk": K, "memory.layers": 2} | changes
    if given.get("memory.kind") == "none":
        del given["memory.window"], given["memory.layers"]
    given |= {"data.privileged_keys": list(PRIVILEGED)}
    return ExperimentConfig().change(given if losses is None else given | {"losses": losses})


def make_objective(losses: Mapping[str, Any] | None = None, **changes: Any) -> tuple[ChunkPolicy, Objective]:
    """A policy with random weights, without dropout, and its objective."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    config = make_config(losses, **changes)
    obs = LOW_DIM | (FRONT if "encoder.predict" in changes else {}) | (CUBES if "encoder.groups" in changes else {})
    keys = LOW_DIM | CUBES | PRIVILEGED
    statistics = {key: Statistics.of(rng.normal(3, 2, size=(50, spec.width))) for key, spec in keys.items()}
    actions = Statistics.of(rng.uniform(-2, 2, size=(50, 5)))
    facts = DemoFacts(SPEC, obs, Vocabulary.of(INSTRUCTIONS), statistics, actions)
    policy = build_policy(config, facts)
    return policy, Objective(config.losses, policy, key_scaling(config.normalization, PRIVILEGED, statistics))


def make_batch(count: int = 4, frames: int = S, seed: int = 0) -> Batch:
    """Segments that hold every key; a policy and its objective use their own."""
    rng = torch.Generator().manual_seed(seed)
    specs = LOW_DIM | CUBES | PRIVILEGED
    obs = {key: torch.randn(count, frames, *spec.shape, generator=rng) for key, spec in specs.items()}
    obs["front"] = torch.randint(0, 256, (count, frames, 16, 16, 3), dtype=torch.uint8, generator=rng)
    labels = torch.randint(0, 2, (count, frames, K, 1), generator=rng).float()
    return Batch(
        obs=obs,
        instruction_id=torch.arange(count) % 3 - 1,
        instructions=INSTRUCTIONS,
        target=torch.cat([torch.rand(count, frames, K, 3, generator=rng) * 2 - 1, labels], dim=-1),
        action_valid=torch.rand(count, frames, K, generator=rng) < 0.8,
        frame_valid=torch.ones(count, frames, dtype=torch.bool),
    )


def cut(batch: Batch, part: slice) -> Batch:
    """Some frames of each segment."""
    return replace(
        batch,
        obs={key: value[:, part] for key, value in batch.obs.items()},
        target=batch.target[:, part],
        action_valid=batch.action_valid[:, part],
        frame_valid=batch.frame_valid[:, part],
    )


@pytest.mark.parametrize("head", ["regression", "gmm", "discrete"])
@pytest.mark.parametrize("encoder", [{}, PIXELS], ids=["keys", "pixels"])
def test_frames_are_encoded_once_all_windows_supervised(encoder: dict[str, Any], head: str) -> None:
    """Guards against: encoding every window by itself, W times the cost; windows with other frames' labels."""
    policy, objective = make_objective(**{**encoder, "action_head.kind": head})
    batch = make_batch()
    calls = []
    policy.encoder.register_forward_hook(lambda module, inputs, output: calls.append(output.tokens.shape))
    whole, state = objective(policy, batch)
    assert state is None
    assert [shape[:2] for shape in calls] == [(4, S)]
    count, total = 0, 0.0
    for start in range(S - W + 1):
        part = cut(batch, slice(start, start + W))
        valid = int(part.action_valid.sum())
        total += objective(policy, part)[0]["loss"].item() * valid
        count += valid
    assert whole["loss"].item() == pytest.approx(total / count, rel=1e-4)


def test_a_segment_shorter_than_the_window_is_refused() -> None:
    """Guards against: a loss of zero from zero windows."""
    policy, objective = make_objective()
    with pytest.raises(ValueError, match="segments must hold a window of 3 frames, got 2"):
        objective(policy, make_batch(frames=2))


def test_without_memory_every_frame_is_a_window() -> None:
    """Guards against: a policy without memory supervised at some frames only, or refused for its segments."""
    policy, objective = make_objective({"arm": 1.0}, **{"memory.kind": "none"})
    batch = make_batch()
    whole = objective(policy, batch)[0]["loss"]
    parts = [cut(batch, slice(t, t + 1)) for t in range(S)]
    each = [objective(policy, part)[0]["loss"] * part.action_valid.sum() for part in parts]
    torch.testing.assert_close(whole, torch.stack(each).sum() / batch.action_valid.sum())


def test_an_unconditional_policy_can_be_trained() -> None:
    """Guards against: an objective that needs the instructions of a policy which doesn't read them."""
    policy, objective = make_objective(**{"text.kind": "none"})
    figures = objective(policy, make_batch())[0]
    other = replace(make_batch(), instruction_id=torch.zeros(4, dtype=torch.int64))
    assert figures["loss"] > 0
    assert objective(policy, other)[0]["loss"] == figures["loss"]


def test_each_segment_is_trained_with_its_instruction() -> None:
    """Guards against: the instruction of another segment, or the last one where a demo has none (number -1)."""
    policy, objective = make_objective({"arm": 1.0})
    batch = replace(make_batch(count=3), action_valid=torch.ones(3, S, K, dtype=torch.bool))
    assert batch.instruction_id.tolist() == [-1, 0, 1]
    each = []
    for row, instructions in enumerate([(), INSTRUCTIONS[:1], INSTRUCTIONS[1:]]):
        one = replace(
            batch,
            obs={key: value[row : row + 1] for key, value in batch.obs.items()},
            target=batch.target[row : row + 1],
            action_valid=batch.action_valid[row : row + 1],
            frame_valid=batch.frame_valid[row : row + 1],
            instruction_id=torch.tensor([-1 if not instructions else 0]),
            instructions=instructions,
        )
        each.append(objective(policy, one)[0]["loss"])
    torch.testing.assert_close(objective(policy, batch)[0]["loss"], torch.stack(each).mean())
    others = replace(batch, instruction_id=torch.tensor([1, 1, 0]))
    assert objective(policy, others)[0]["loss"] != objective(policy, batch)[0]["loss"]


# -- gradients -------------------------------------------------------------------------------------------------------------


def gradients(policy: ChunkPolicy, objective: Objective, name: str, batch: Batch) -> set[str]:
    """Names of the parts of the policy and the objective that the gradient of one loss reaches."""
    policy.zero_grad()
    objective.zero_grad()
    objective(policy, batch)[0][f"loss_{name}"].backward()
    named = [*policy.named_parameters(), *objective.named_parameters()]
    return {key.split(".")[0] for key, p in named if p.grad is not None and p.grad.abs().sum() > 0}


@pytest.mark.parametrize(
    ("loss", "reached"),
    [
        ("arm", {"text", "encoder", "head"}),
        ("gripper", {"text", "encoder", "head"}),
        ("attention_keys", {"text", "encoder"}),
        ("forward", {"text", "encoder", "head", "auxiliary"}),
        ("memory_keys", {"text", "encoder", "head", "auxiliary"}),
    ],
)
def test_the_gradient_of_each_loss_reaches_what_it_should(loss: str, reached: set[str]) -> None:
    """Guards against: a loss that is cut off from the weights, only a number in the log."""
    policy, objective = make_objective(ALL_LOSSES, **PIXELS)
    assert gradients(policy, objective, loss, make_batch()) == reached


def test_linear_action_trains_the_selection_once_it_has_learned() -> None:
    """Guards against: a selection left with the policy's own gradient, that of memorized scenes."""
    policy, objective = make_objective({"arm": 1.0, "linear_action": 1.0}, **GROUPS)
    batch = make_batch()
    assert gradients(policy, objective, "linear_action", batch) == {"auxiliary"}  # from zero, nothing is followed yet
    nn.init.ones_(objective.auxiliary[0].act.weight)
    assert gradients(policy, objective, "linear_action", batch) == {"encoder", "auxiliary"}


def test_what_only_trains_the_policy_is_not_part_of_it() -> None:
    """Guards against: predictors of auxiliary losses saved with the policy, or privileged keys that it needs to act."""
    policy, objective = make_objective(ALL_LOSSES, **PIXELS)
    plain, _ = make_objective({"arm": 1.0}, **PIXELS)
    assert list(policy.state_dict()) == list(plain.state_dict())
    assert not {id(p) for p in policy.parameters()} & {id(p) for p in objective.parameters()}
    assert objective.auxiliary_names == ["attention_keys", "forward", "memory_keys"]
    assert [bool(list(loss.parameters())) for loss in objective.auxiliary] == [False, True, True]
    assert "target_pos" not in policy.obs


# -- the weighted sum ------------------------------------------------------------------------------------------------------


def test_the_loss_is_the_weighted_sum_of_those_logged_apart() -> None:
    """Guards against: a loss that is logged but not minimized, or the other way around."""
    policy, objective = make_objective(ALL_LOSSES, **PIXELS)
    figures = objective(policy, make_batch())[0]
    expected = sum(weight * figures[f"loss_{name}"] for name, weight in ALL_LOSSES.items())
    torch.testing.assert_close(figures["loss"], expected)
    assert set(figures) == {"loss", "gripper_accuracy", *(f"loss_{name}" for name in ALL_LOSSES)}
    assert 0 <= figures["gripper_accuracy"] <= 1


def test_a_loss_without_a_weight_is_not_minimized() -> None:
    """Guards against: a loss of the action head that counts although the config leaves it out."""
    policy, objective = make_objective({"arm": 2.0})
    figures = objective(policy, make_batch())[0]
    torch.testing.assert_close(figures["loss"], 2 * figures["loss_arm"])
    assert figures["loss_gripper"] > 0


def test_a_weight_of_zero_leaves_an_auxiliary_loss_out() -> None:
    """Guards against: a loss that a config file names and no option can switch off, though the policy can't compute it."""
    policy, objective = make_objective({"arm": 1.0, "linear_action": 0.0})  # would need groups
    figures = objective(policy, make_batch())[0]
    torch.testing.assert_close(figures["loss"], figures["loss_arm"])
    assert "loss_linear_action" not in figures


@pytest.mark.parametrize(
    ("losses", "message"),
    [
        ({"fwd": 1.0}, r"--losses\.fwd: loss 'fwd' is unknown; choose one of attention_keys, .*own are arm, gripper"),
        ({"forward": {"weight": 1.0, "decay": 2}}, r"unknown option --losses\.forward\.decay; the options of .* none"),
        ({"memory_keys": {"weight": 1.0, "key": "a"}}, r"unknown option --losses\.memory_keys\.key; .* are: keys"),
        (
            {"arm": {"weight": 1.0, "delta": 2.0}},
            r"--losses\.arm takes a weight only; its options belong to --action_head",
        ),
        ({"attention_keys": 1.0}, r"set --encoder\.predict 3"),
        ({"linear_action": 1.0}, r"give --encoder\.groups"),
        ({"arm": 1.0, "liner_action": 0.0}, r"loss 'liner_action' is unknown"),
        ({}, r"no loss; give a weight to one or more of: arm, gripper"),
    ],
)
def test_a_loss_that_cannot_be_built_is_one_line(losses: dict[str, Any], message: str) -> None:
    """Guards against: a misspelled loss that is silently never trained."""
    with pytest.raises(ConfigError, match=message) as refused:
        make_objective(losses)
    assert "\n" not in str(refused.value)


class Caption(nn.Module):
    """What a plug-in would contribute."""

    def __init__(self, options: object, context: LossContext) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(context.pooled_width))

    def forward(self, inputs: LossInputs) -> Tensor:
        """A scalar."""
        return (self.scale * inputs.pooled).square().mean()


@pytest.fixture
def caption() -> Iterator[None]:
    """The loss `caption`, registered for one test."""
    register("loss", "caption")(Caption)
    yield
    components._registered.pop(("loss", "caption"))


@pytest.mark.usefixtures("caption")
def test_a_plug_in_can_contribute_a_loss() -> None:
    """Guards against: a backbone's own loss that needs a change of the policy or of the training."""
    policy, objective = make_objective({"arm": 1.0, "caption": 0.5})
    figures = objective(policy, make_batch())[0]
    torch.testing.assert_close(figures["loss"], figures["loss_arm"] + 0.5 * figures["loss_caption"])
    assert gradients(policy, objective, "caption", make_batch()) == {"text", "encoder", "auxiliary"}


def test_a_privileged_key_that_is_missing_is_named() -> None:
    """Guards against: a KeyError with demos of a real robot, which don't know where the object is."""
    policy, objective = make_objective(ALL_LOSSES, **PIXELS)
    batch = make_batch()
    obs = {key: value for key, value in batch.obs.items() if key != "target_pos"}
    with pytest.raises(ConfigError, match=r"privileged key 'target_pos' is not in these demos"):
        objective(policy, replace(batch, obs=obs))


def test_padding_beyond_the_end_of_a_demo_changes_nothing() -> None:
    """Guards against: frames beyond the end, which hold whatever the store left there, that pull on the weights."""
    policy, objective = make_objective(ALL_LOSSES, **PIXELS)
    batch = make_batch()
    frame_valid = torch.arange(S).expand(4, S) < 4
    batch = replace(batch, frame_valid=frame_valid, action_valid=batch.action_valid & frame_valid[..., None])
    other = make_batch(seed=1)
    keep = {key: frame_valid.reshape(4, S, *(1,) * (value.dim() - 2)) for key, value in batch.obs.items()}
    changed = {key: torch.where(keep[key], value, other.obs[key]) for key, value in batch.obs.items()}
    before, after = objective(policy, batch)[0], objective(policy, replace(batch, obs=changed))[0]
    for name, value in before.items():
        torch.testing.assert_close(after[name], value)


# -- carried states --------------------------------------------------------------------------------------------------------


def carried() -> tuple[ChunkPolicy, Objective, Batch]:
    policy, objective = make_objective(**{"memory.history": "carry"})
    return policy, objective, replace(make_batch(), action_valid=torch.ones(4, S, K, dtype=torch.bool))


def test_a_carried_state_continues_from_the_last_segment() -> None:
    """Guards against: truncated BPTT that starts each segment from zero, another memory than the robot has."""
    policy, objective, batch = carried()
    whole = objective(policy, batch)[0]["loss"]
    halves, state = [], None
    for part in (slice(0, 3), slice(3, 6)):
        figures, state = objective(policy, cut(batch, part), state)
        halves.append(figures["loss"])
    torch.testing.assert_close(torch.stack(halves).mean(), whole)
    fresh = objective(policy, cut(batch, slice(3, 6)))[0]["loss"]
    assert not torch.allclose(halves[1], fresh)


def test_a_carried_state_holds_no_gradient() -> None:
    """Guards against: a graph that grows over all segments of an episode until the memory is full."""
    policy, objective, batch = carried()
    state = objective(policy, cut(batch, slice(0, 3)))[1]
    assert state is not None
    assert not any(tensor.requires_grad for tensor in state.tensors)


def test_an_episode_that_starts_forgets_the_one_before() -> None:
    """Guards against: the memory of one demo carried into the next one of the same row."""
    policy, objective, batch = carried()
    state = objective(policy, cut(batch, slice(0, 3)))[1]
    following = cut(batch, slice(3, 6))
    fresh, continued = (objective(policy, following, start)[0]["loss"] for start in (None, state))
    starts = replace(following, episode_start=torch.ones(4, dtype=torch.bool))
    torch.testing.assert_close(objective(policy, starts, state)[0]["loss"], fresh)
    runs_on = replace(following, episode_start=torch.zeros(4, dtype=torch.bool))
    torch.testing.assert_close(objective(policy, runs_on, state)[0]["loss"], continued)
