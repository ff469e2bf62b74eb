"""ChunkPolicy: observations in the demos' own units in, action rows in the demos' own units out."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from robopolicy.config import DataConfig, EncoderConfig, ExperimentConfig, HeadConfig, LossConfig
from robopolicy.model.normalization import Statistics
from robopolicy.model.policy import ChunkPolicy
from robopolicy.model.text import Vocabulary
from robopolicy.types import ActionSpec, ArraySpec, Batch, Observation

W, K, S = 3, 2, 6
INSTRUCTIONS = ("lift the red cube", "lift the blue cube")
SPEC = ActionSpec(arm=[0, 1, 3], gripper=[2], constant={4: 0.5}, gripper_values=[(0.0, 1.0)])
LOW_DIM = {"ee_pose": ArraySpec((7,)), "gripper": ArraySpec((1,))}
FRONT = {"front": ArraySpec((16, 16, 3), "uint8")}
TARGETS = {"target_pos": ArraySpec((3,))}


def make_policy(kind="keys", terms=None, seed=0, **head):
    torch.manual_seed(seed)
    options = {"window": W, "chunk": K, "hidden": 8, "layers": 2, "head_widths": (8,)} | head
    config = ExperimentConfig(
        data=DataConfig(target_keys=("target_pos",)),
        encoder=EncoderConfig(kind=kind, width=8, hidden=8),
        head=HeadConfig(**options),
        loss=LossConfig(terms=terms or {"arm": 1.0, "gripper": 0.01}),
    )
    rng = np.random.default_rng(seed)
    rows = rng.uniform(-2, 2, size=(50, 5))
    obs = LOW_DIM | (FRONT if kind == "pixels" else {})
    statistics = {
        key: Statistics.of(rng.normal(3, 2, size=(50, spec.width))) for key, spec in (LOW_DIM | TARGETS).items()
    }
    return ChunkPolicy(
        config,
        SPEC,
        obs,
        Vocabulary.of(INSTRUCTIONS),
        targets=TARGETS if kind == "pixels" else {},
        obs_statistics=statistics,
        action_statistics=Statistics.of(rows),
    )


def make_batch(kind="keys", batch=4, frames=S, seed=0):
    rng = torch.Generator().manual_seed(seed)
    obs = {key: torch.randn(batch, frames, *spec.shape, generator=rng) for key, spec in (LOW_DIM | TARGETS).items()}
    if kind == "pixels":
        obs["front"] = torch.randint(0, 256, (batch, frames, 16, 16, 3), dtype=torch.uint8, generator=rng)
    labels = torch.randint(0, 2, (batch, frames, K, 1), generator=rng).float()
    return Batch(
        obs=obs,
        instruction_id=torch.arange(batch) % 3 - 1,
        instructions=INSTRUCTIONS,
        target=torch.cat([torch.rand(batch, frames, K, 3, generator=rng) * 2 - 1, labels], dim=-1),
        action_valid=torch.rand(batch, frames, K, generator=rng) < 0.8,
        frame_valid=torch.ones(batch, frames, dtype=torch.bool),
    )


def frame(batch=4, index=0, kind="keys"):
    return {key: value[:, index] for key, value in make_batch(kind, batch).obs.items()}


@pytest.mark.parametrize("head", ["regression", "gmm", "discrete"])
@pytest.mark.parametrize("kind", ["keys", "pixels"])
def test_each_frame_is_encoded_once_and_every_window_supervised(kind, head):
    """Encoding every window by itself costs W times as much; cutting windows wrongly trains on other frames' targets."""
    policy = make_policy(kind, head=head)
    batch = make_batch(kind)
    calls = []
    policy.encoder.register_forward_hook(lambda module, inputs, output: calls.append(output.tokens.shape))
    whole = policy.losses(batch)
    assert [shape[:2] for shape in calls] == [(4, S)]
    count, total = 0, 0.0
    for start in range(S - W + 1):
        cut = slice(start, start + W)
        part = replace(
            batch,
            obs={key: value[:, cut] for key, value in batch.obs.items()},
            target=batch.target[:, cut],
            action_valid=batch.action_valid[:, cut],
            frame_valid=batch.frame_valid[:, cut],
        )
        valid = int(part.action_valid.sum())
        total += policy.losses(part)["loss"].item() * valid
        count += valid
    assert whole["loss"].item() == pytest.approx(total / count, rel=1e-4)


@pytest.mark.parametrize("kind", ["keys", "pixels"])
@pytest.mark.parametrize("history", ["window", "carry", "none"])
def test_running_frame_by_frame_gives_what_training_saw(kind, history):
    """Another normalization, instruction or window at run time is the field's commonest silent failure."""
    policy = make_policy(kind, history=history).eval()
    batch = make_batch(kind)
    told = [None if i < 0 else INSTRUCTIONS[i] for i in batch.instruction_id.tolist()]
    state = policy.initial_state(4)
    for t in range(S):
        seen = {key: value[:, t] for key, value in batch.obs.items()}
        rows, state = policy.act(Observation(seen, instruction=told), state)
        first = {"window": max(0, t - W + 1), "carry": 0, "none": t}[history]
        text = policy._batch_text(batch)
        encoding = policy.encode(
            policy.inputs({k: v[:, first : t + 1] for k, v in batch.obs.items()}, policy.obs), text
        )
        pooled = policy.head.pool(encoding.tokens, encoding.token_valid)
        hidden, _ = policy.head.rnn.unroll(pooled, policy.initial_state(4))
        expected = policy.action_normalizer.to_rows(policy.head.action_head(hidden[:, -1]))
        torch.testing.assert_close(rows, expected, atol=1e-5, rtol=1e-5)


def test_rows_come_in_the_demos_units_and_columns():
    """Normalized actions sent to a robot are wrong in every joint."""
    policy = make_policy()
    rows, _ = policy.act({**frame(), "instruction": INSTRUCTIONS[0]}, policy.initial_state(4))
    assert rows.shape == (4, K, 5)
    assert (rows[..., 4] == 0.5).all()
    assert set(rows[..., 2].flatten().tolist()) <= {0.0, 1.0}
    assert rows[..., [0, 1, 3]].abs().max() <= 2


@pytest.mark.parametrize("lead", [(), (2,), (2, 3)])
def test_any_leading_axes_and_numpy_of_any_float_type_are_taken(lead):
    """One robot, many worlds, or several agents in many worlds: no axis may have to be made up."""
    policy = make_policy()
    obs = {key: np.random.default_rng(0).normal(size=(*lead, *spec.shape)) for key, spec in LOW_DIM.items()}
    for value in obs.values():
        value.flags.writeable = False
    rows, state = policy.act({**obs, "instruction": INSTRUCTIONS[0]}, policy.initial_state(lead))
    assert rows.shape == (*lead, K, 5)
    assert state.batch_shape == lead


def test_the_instruction_of_each_entry_counts_for_that_entry():
    """One instruction for a whole batch would tell every world the first one's goal."""
    policy = make_policy().eval()
    obs = frame(batch=2)
    both, _ = policy.predict({**obs, "instruction": list(INSTRUCTIONS)}, policy.initial_state(2))
    for row, instruction in enumerate(INSTRUCTIONS):
        one, _ = policy.predict({**obs, "instruction": instruction}, policy.initial_state(2))
        torch.testing.assert_close(both.arm[row], one.arm[row])
        assert not torch.equal(both.arm[1 - row], one.arm[1 - row])
    with pytest.raises(ValueError, match=r"2 instructions for a batch of \(3,\)"):
        policy.act({**frame(batch=3), "instruction": list(INSTRUCTIONS)}, policy.initial_state(3))


def test_an_untold_policy_is_blind_to_the_instruction():
    """The baseline that isn't told must not be able to cheat."""
    told = make_policy()
    config = replace(told.config, encoder=replace(told.config.encoder, instruction=False))
    policy = ChunkPolicy(config, SPEC, LOW_DIM, Vocabulary.of(INSTRUCTIONS)).eval()
    red, blue = (policy.act({**frame(), "instruction": i}, policy.initial_state(4))[0] for i in INSTRUCTIONS)
    assert torch.equal(red, blue)
    assert policy.losses(make_batch())["loss"] > 0


def test_a_missing_camera_or_key_is_named_and_the_present_ones_listed():
    """'KeyError: front' leaves the user to read our code."""
    policy = make_policy("pixels")
    obs = {**frame(kind="pixels"), "top": 0}
    del obs["front"]
    with pytest.raises(
        KeyError, match=r"camera 'front' is not in this observation. It has: ee_pose, gripper, target_pos, top"
    ):
        policy.act(obs, policy.initial_state(4))
    with pytest.raises(KeyError, match="key 'gripper' is not in this observation"):
        policy.act({"ee_pose": torch.zeros(4, 7)}, policy.initial_state(4))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ee_pose": torch.zeros(4, 6)}, r"'ee_pose' has shape \(4, 6\); expected"),
        ({"gripper": torch.zeros(3, 1)}, r"'gripper' has shape \(3, 1\); expected \(4\), then \(1,\)"),
        ({"front": torch.zeros(4, 32, 32, 3, dtype=torch.uint8)}, r"'front' has shape \(4, 32, 32, 3\)"),
        ({"front": torch.zeros(4, 16, 16, 3)}, "camera 'front' has type torch.float32; expected uint8"),
    ],
)
def test_a_wrong_shape_or_type_says_found_and_expected(change, message):
    """Broadcasting or casting would let the policy act on nonsense."""
    policy = make_policy("pixels")
    with pytest.raises(ValueError, match=message):
        policy.act({**frame(kind="pixels"), **change}, policy.initial_state(4))


def test_a_segment_shorter_than_the_window_is_refused():
    """Zero windows would be a loss of zero."""
    with pytest.raises(ValueError, match="segments of 2 frames for a window of 3"):
        make_policy().losses(make_batch(frames=2))


def gradients(policy, name, batch):
    """Names of the policy's parts that the gradient of one term reaches."""
    policy.zero_grad()
    policy.losses(batch)[f"loss_{name}"].backward()
    return {key.split(".")[0] for key, p in policy.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}


ALL_TERMS = {"arm": 1.0, "gripper": 0.1, "where": 0.5, "forward": 0.2, "remember": 0.3}


@pytest.mark.parametrize(
    ("term", "reached"),
    [
        ("arm", {"text", "encoder", "head"}),
        ("gripper", {"text", "encoder", "head"}),
        ("where", {"text", "encoder"}),
        ("forward", {"text", "encoder", "head", "added_terms"}),
        ("remember", {"text", "encoder", "head", "added_terms"}),
    ],
)
def test_each_terms_gradient_reaches_what_it_should(term, reached):
    """A term that is cut off from the weights is only a number in the log."""
    policy = make_policy("pixels", terms=ALL_TERMS)
    assert gradients(policy, term, make_batch("pixels")) == reached


def test_every_size_of_the_head_is_an_option_of_the_config():
    """A hidden width that eight attention heads don't divide left a user of YAML without a way."""
    policy = make_policy(cell="transformer", attention_heads=2, pooling="resampler", pooling_heads=4, pooling_depth=1)
    assert policy.head.rnn.blocks[0].heads == 2
    assert [layer.heads for layer in policy.head.pooling.layers] == [4]
    assert make_policy(head="discrete", bins=16).head.action_head.actions.mlp[-1].out_features == K * 16 * len(
        SPEC.arm_columns
    )
    assert make_policy(head="gmm", modes=3, min_std=0.1).head.action_head.min_std == 0.1


def test_choosing_reaches_the_encoder_from_the_linear_policy():
    """The chooser would be left with the policy's own gradient, that of scenes learned by heart."""
    cubes = {"cube_red": ArraySpec((3,)), "cube_blue": ArraySpec((3,))}
    policy = ChunkPolicy(make_policy().config, SPEC, LOW_DIM | cubes, Vocabulary.of(INSTRUCTIONS))
    batch = make_batch()
    batch = replace(batch, obs={**batch.obs, **{key: torch.randn(*batch.frame_valid.shape, 3) for key in cubes}})
    assert gradients(policy, "choose", batch) == {"added_terms"}  # it follows nothing yet
    nn.init.ones_(policy.added_terms[0].act.weight)
    assert gradients(policy, "choose", batch) == {"encoder", "added_terms"}


def test_the_loss_is_the_weighted_sum_of_the_terms_logged_apart():
    """A term that is logged but not minimized, or the other way round."""
    losses = make_policy("pixels", terms=ALL_TERMS).losses(make_batch("pixels"))
    expected = sum(weight * losses[f"loss_{name}"] for name, weight in ALL_TERMS.items())
    torch.testing.assert_close(losses["loss"], expected)


class Contributed(nn.Module):
    """What a part outside the policy would contribute."""

    def __init__(self, *names):
        super().__init__()
        self.term_names = names
        self.scale = nn.Parameter(torch.ones(len(names)))

    def terms(self, inputs):
        """One scalar each."""
        means = self.scale * inputs.pooled.square().mean()
        return dict(zip(self.term_names, means, strict=True))


@pytest.mark.parametrize("term", ["caption", "kl", "cotraining"])
def test_others_can_contribute_terms(term):
    """A backbone's own losses must not need a change of the policy."""
    policy = make_policy(terms={"arm": 1.0, term: 0.5})
    with pytest.raises(ValueError, match=f"loss term '{term}' is provided by no part .* Available: arm, gripper"):
        policy.losses(make_batch())
    policy.add_terms(Contributed(term))
    losses = policy.losses(make_batch())
    torch.testing.assert_close(losses["loss"], losses["loss_arm"] + 0.5 * losses[f"loss_{term}"])
    assert gradients(policy, term, make_batch()) == {"text", "encoder", "contributed_terms"}


def test_a_contributed_term_that_the_config_does_not_weight_has_robovlms_weight():
    """A term that is contributed and then left out of the sum is only a number in the log."""
    policy = make_policy(terms={"arm": 1.0})
    policy.add_terms(Contributed("caption", "cotraining"))
    losses = policy.losses(make_batch())
    expected = losses["loss_arm"] + 0.05 * losses["loss_caption"] + 0.1 * losses["loss_cotraining"]
    torch.testing.assert_close(losses["loss"], expected)
    with pytest.raises(ValueError, match=r"'kl' has no weight, and no customary one .* give it one in --loss\.terms"):
        policy.add_terms(Contributed("kl"))
    with pytest.raises(TypeError, match="Linear provides no loss terms"):
        policy.add_terms(nn.Linear(1, 1))


def test_where_without_its_target_key_is_one_clear_line():
    """Demos from a real robot don't know where the object is."""
    policy = make_policy("pixels", terms=ALL_TERMS)
    batch = make_batch("pixels")
    obs = {key: value for key, value in batch.obs.items() if key != "target_pos"}
    with pytest.raises(
        ValueError, match=r"'where' needs the target key 'target_pos', .* They have: ee_pose, gripper, front"
    ):
        policy.losses(replace(batch, obs=obs))


def test_padding_beyond_the_end_of_a_demo_changes_nothing():
    """Frames beyond the end hold whatever the store left there."""
    policy = make_policy("pixels", terms=ALL_TERMS)
    batch = make_batch("pixels")
    frame_valid = torch.arange(S).expand(4, S) < 4
    batch = replace(batch, frame_valid=frame_valid, action_valid=batch.action_valid & frame_valid[..., None])
    other = make_batch("pixels", seed=1)
    keep = {key: frame_valid.reshape(4, S, *(1,) * (value.dim() - 2)) for key, value in batch.obs.items()}
    changed = {key: torch.where(keep[key], value, other.obs[key]) for key, value in batch.obs.items()}
    before, after = policy.losses(batch), policy.losses(replace(batch, obs=changed))
    for name, value in before.items():
        torch.testing.assert_close(after[name], value)


def test_a_carried_state_goes_on_where_the_last_segment_ended():
    """Truncated BPTT that starts each segment from zero trains another memory than the robot has."""
    policy = make_policy(history="carry").eval()
    batch = replace(make_batch(), action_valid=torch.ones(4, S, K, dtype=torch.bool))
    whole = policy.losses(batch)["loss"]
    halves, state = [], None
    for part in (slice(0, 3), slice(3, 6)):
        cut = replace(
            batch,
            obs={key: value[:, part] for key, value in batch.obs.items()},
            target=batch.target[:, part],
            action_valid=batch.action_valid[:, part],
            frame_valid=batch.frame_valid[:, part],
        )
        losses, state = policy.unroll_losses(cut, state)
        halves.append(losses["loss"])
    torch.testing.assert_close(torch.stack(halves).mean(), whole)


def test_a_key_without_statistics_is_refused():
    """A key left unscaled would be learned at another size."""
    with pytest.raises(ValueError, match=r"no statistics of 'gripper'. There are: ee_pose"):
        ChunkPolicy(ExperimentConfig(), SPEC, LOW_DIM, obs_statistics={"ee_pose": Statistics.of(np.zeros((2, 7)))})
