"""ChunkPolicy: observations in the demos' own units in, action rows in the demos' own units out."""

import numpy as np
import pytest
import torch

from robopolicy.experiment import DemoFacts, ExperimentConfig, build_policy
from robopolicy.model.inputs import checked_inputs
from robopolicy.model.statistics import Statistics
from robopolicy.model.texts import Vocabulary
from robopolicy.training.objective import batch_text
from robopolicy.types import ActionSpec, ArraySpec, Batch, Observation, Policy
from tests.small_runs import SMALL

W, K, S = 3, 2, 6
INSTRUCTIONS = ("lift the red cube", "lift the blue cube")
SPEC = ActionSpec(arm=[0, 1, 3], gripper=[2], constant={4: 0.5}, gripper_values=[(0.0, 1.0)])
LOW_DIM = {"ee_pose": ArraySpec((7,)), "gripper": ArraySpec((1,))}
FRONT = {"front": ArraySpec((16, 16, 3), "uint8")}
MEMORIES = {
    "window": {},
    "carry": {"memory.history": "carry"},
    "transformer": {"memory.kind": "transformer", "memory.heads": 2},
    "none": {"memory.kind": "none"},
}


def make_config(kind="keys", changes=None):
    changes = {"encoder.kind": kind, "memory.layers": 2} | (changes or {})
    absent = ("memory.window", "memory.layers") if changes.get("memory.kind") == "none" else ()
    given = SMALL | {"memory.window": W, "action_head.chunk": K} | changes
    return ExperimentConfig().change({path: value for path, value in given.items() if path not in absent})


def make_policy(kind="keys", changes=None, seed=0):
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    facts = DemoFacts(
        SPEC,
        LOW_DIM | (FRONT if kind == "pixels" else {}),
        Vocabulary.of(INSTRUCTIONS),
        action_statistics=Statistics.of(rng.uniform(-2, 2, size=(50, 5))),
        obs_statistics={key: Statistics.of(rng.normal(3, 2, size=(50, spec.width))) for key, spec in LOW_DIM.items()},
    )
    return build_policy(make_config(kind, changes), facts).eval()


def frames(kind="keys", batch=4, seed=0):
    """Observations of S frames, (batch, S, ...)."""
    rng = torch.Generator().manual_seed(seed)
    obs = {key: torch.randn(batch, S, *spec.shape, generator=rng) for key, spec in LOW_DIM.items()}
    if kind == "pixels":
        obs["front"] = torch.randint(0, 256, (batch, S, 16, 16, 3), dtype=torch.uint8, generator=rng)
    return obs


def frame(kind="keys", batch=4, index=0):
    return {key: value[:, index] for key, value in frames(kind, batch).items()}


@pytest.mark.parametrize("kind", ["keys", "pixels"])
@pytest.mark.parametrize("memory", MEMORIES)
def test_running_frame_by_frame_gives_what_training_saw(kind, memory):
    """Guards against: another normalization, instruction or window at run time, the field's commonest silent failure."""
    policy = make_policy(kind, MEMORIES[memory])
    obs, numbers = frames(kind), torch.arange(4) % 3 - 1
    given = [None if number < 0 else INSTRUCTIONS[number] for number in numbers.tolist()]
    empty = torch.zeros(0)
    text = batch_text(policy, Batch(obs, numbers, INSTRUCTIONS, empty, empty, empty))
    state = policy.initial_state(4)
    for t in range(S):
        rows, state = policy.act(Observation({key: value[:, t] for key, value in obs.items()}, given), state)
        first = {"carry": 0, "none": t}.get(memory, max(0, t - W + 1))
        seen = {key: value[:, first : t + 1] for key, value in obs.items()}
        encoding = policy.encode(checked_inputs(seen, policy.obs, policy.device), text)
        pooled = policy.head.pool(encoding.tokens, encoding.token_valid)
        hidden, _ = policy.head.memory.unroll(pooled, policy.initial_state(4))
        expected = policy.action_normalizer.to_rows(policy.head.action_head.decode(hidden[:, -1]))
        torch.testing.assert_close(rows, expected, atol=1e-5, rtol=1e-5)


def test_a_reset_starts_the_episode_from_scratch():
    """Guards against: the memory of the episode before in one entry of a batch, or the others losing theirs."""
    policy = make_policy()
    _, state = policy.act({**frame(), "instruction": INSTRUCTIONS[0]}, policy.initial_state(4))
    now = {**frame(index=1), "instruction": INSTRUCTIONS[0]}
    continued, _ = policy.act(now, state)
    fresh, _ = policy.act(now, policy.initial_state(4))
    mixed, _ = policy.act(now, state.reset(torch.tensor([True, False, False, True])))
    torch.testing.assert_close(mixed[[0, 3]], fresh[[0, 3]])
    torch.testing.assert_close(mixed[[1, 2]], continued[[1, 2]])
    assert not torch.allclose(continued, fresh)


def test_rows_have_the_demos_units_and_columns():
    """Guards against: normalized actions sent to a robot, wrong in every joint."""
    policy = make_policy()
    rows, _ = policy.act({**frame(), "instruction": INSTRUCTIONS[0]}, policy.initial_state(4))
    assert rows.shape == (4, K, 5)
    assert (rows[..., 4] == 0.5).all()
    assert set(rows[..., 2].flatten().tolist()) <= {0.0, 1.0}
    assert rows[..., [0, 1, 3]].abs().max() <= 2


def test_a_prediction_is_the_actions_and_the_gripper_logits():
    """Guards against: logits of another gripper column, or of another frame, than the actions beside them."""
    policy = make_policy()
    assert isinstance(policy, Policy)
    obs = {**frame(), "instruction": INSTRUCTIONS[0]}
    prediction, state = policy.predict(obs, policy.initial_state(4))
    rows, after = policy.act(obs, policy.initial_state(4))
    assert torch.equal(prediction.actions, rows)
    assert torch.equal(state.age, after.age)
    assert prediction.gripper_logit.shape == (4, K, 1)
    assert torch.equal(prediction.gripper_logit[..., 0] > 0, rows[..., 2] == 1.0)
    assert not rows.requires_grad
    assert not prediction.gripper_logit.requires_grad


@pytest.mark.parametrize("batch", [(), (2,), (2, 3)])
def test_any_batch_axes_and_numpy_of_any_float_type_work(batch):
    """Guards against: a batch axis that has to be made up for one robot, or several agents in many worlds."""
    policy = make_policy()
    obs = {key: np.random.default_rng(0).normal(size=(*batch, *spec.shape)) for key, spec in LOW_DIM.items()}
    for value in obs.values():
        value.flags.writeable = False
    rows, state = policy.act({**obs, "instruction": INSTRUCTIONS[0]}, policy.initial_state(batch))
    assert rows.shape == (*batch, K, 5)
    assert state.batch_shape == batch


def test_the_instruction_of_each_entry_counts_for_that_entry():
    """Guards against: one instruction for a whole batch, which gives every world the first one's goal."""
    policy = make_policy()
    obs = frame(batch=2)
    both, _ = policy.predict({**obs, "instruction": list(INSTRUCTIONS)}, policy.initial_state(2))
    for row, instruction in enumerate(INSTRUCTIONS):
        one, _ = policy.predict({**obs, "instruction": instruction}, policy.initial_state(2))
        torch.testing.assert_close(both.actions[row], one.actions[row])
        torch.testing.assert_close(both.gripper_logit[row], one.gripper_logit[row])
        assert not torch.equal(both.actions[1 - row], one.actions[1 - row])
    with pytest.raises(ValueError, match=r"2 instructions for a batch of \(3,\)"):
        policy.act({**frame(batch=3), "instruction": list(INSTRUCTIONS)}, policy.initial_state(3))


def test_an_unconditional_policy_ignores_the_instruction():
    """Guards against: the baseline without the instruction seeing it after all."""
    policy = make_policy(changes={"text.kind": "none"})
    red, blue = (policy.act({**frame(), "instruction": i}, policy.initial_state(4))[0] for i in INSTRUCTIONS)
    assert torch.equal(red, blue)
    assert not policy.spec.instruction
    assert make_policy().spec.instruction


def test_a_missing_camera_or_key_is_named():
    """Guards against: 'KeyError: front', which leaves the user to read our code."""
    policy = make_policy("pixels")
    obs = {**frame("pixels"), "top": 0}
    del obs["front"]
    with pytest.raises(KeyError, match=r"camera 'front' is not in this observation. It has: ee_pose, gripper, top"):
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
    """Guards against: broadcasting or casting, which lets the policy act on nonsense."""
    policy = make_policy("pixels")
    with pytest.raises(ValueError, match=message):
        policy.act({**frame("pixels"), **change}, policy.initial_state(4))


def test_every_size_of_the_head_is_an_option_of_the_config():
    """Guards against: a hidden width that eight attention heads don't divide, without an option to change it."""
    attentive = {"memory.kind": "transformer", "memory.heads": 2}
    attentive |= {"pooling.kind": "resampler", "pooling.heads": 4, "pooling.depth": 1}
    head = make_policy(changes=attentive).head
    assert head.memory.blocks[0].heads == 2
    assert [layer.heads for layer in head.pooling.layers] == [4]
    discrete = make_policy(changes={"action_head.kind": "discrete", "action_head.bins": 16}).head.action_head
    assert discrete.actions.mlp[-1].out_features == K * 16 * len(SPEC.arm_columns)
    gmm = {"action_head.kind": "gmm", "action_head.modes": 3, "action_head.min_std": 0.1}
    assert make_policy(changes=gmm).head.action_head.options.min_std == 0.1


def test_a_policy_samples_only_from_a_generator():
    """Guards against: an evaluation that can't be repeated, or a generator that is passed on to nobody."""
    policy = make_policy(changes={"action_head.kind": "gmm"})
    obs = {**frame(), "instruction": INSTRUCTIONS[0]}

    def rows(seed):
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        return policy.act(obs, policy.initial_state(4), generator=generator)[0]

    assert torch.equal(rows(None), rows(None))
    assert torch.equal(rows(0), rows(0))
    assert not torch.equal(rows(0), rows(1))
    assert not torch.equal(rows(0), rows(None))


def test_a_prefix_is_refused_by_a_head_that_ignores_it():
    """Guards against: committed actions that the chunk silently doesn't continue."""
    policy = make_policy()
    with pytest.raises(ValueError, match="uses_prefix is False"):
        policy.act({**frame(), "instruction": None}, policy.initial_state(4), prefix=torch.zeros(4, 1, 5))


def test_a_key_without_statistics_is_refused():
    """Guards against: a key left unscaled, which is learned at another size."""
    facts = DemoFacts(SPEC, LOW_DIM, obs_statistics={"ee_pose": Statistics.of(np.zeros((2, 7)))})
    with pytest.raises(ValueError, match=r"no statistics of 'gripper'; there are those of: ee_pose"):
        build_policy(ExperimentConfig(), facts)


# -- freezing --------------------------------------------------------------------------------------------------------------


def streamed(policy):
    """Action rows of S frames, one after another."""
    rows, state, obs = [], policy.initial_state(4), frames()
    for t in range(S):
        seen = {key: value[:, t] for key, value in obs.items()}
        actions, state = policy.act({**seen, "instruction": INSTRUCTIONS[0]}, state)
        rows.append(actions)
    return torch.stack(rows, dim=1)


def double_weights(policy):
    with torch.no_grad():
        for parameter in policy.head.parameters():
            parameter.mul_(2.0)


@pytest.mark.parametrize("head", ["regression", "gmm", "discrete"])
@pytest.mark.parametrize("memory", ["gru", *MEMORIES])
def test_a_frozen_policy_acts_as_the_unfrozen_one(memory, head):
    """Guards against: packed weights that give other actions than those that were evaluated."""
    changes = {"memory.kind": "gru"} if memory == "gru" else MEMORIES[memory]
    policy = make_policy(changes={**changes, "action_head.kind": head})
    before = streamed(policy)
    assert policy.freeze() is policy
    torch.testing.assert_close(streamed(policy), before, atol=1e-5, rtol=1e-5)


def test_freezing_is_undone_by_training_and_by_moving():
    """Guards against: a policy that is trained on, or moved, and still acts from the weights that it once had."""
    for undo in (lambda policy: policy.train().eval(), lambda policy: policy.double().float()):
        policy = make_policy().freeze()
        frozen = streamed(policy)
        double_weights(policy)
        torch.testing.assert_close(streamed(policy), frozen)
        undo(policy)
        present = streamed(policy)
        assert not torch.allclose(present, frozen, atol=1e-3)
        reference = make_policy()
        double_weights(reference)
        torch.testing.assert_close(present, streamed(reference))


def test_eval_mode_alone_keeps_a_policy_frozen():
    """Guards against: `eval()`, which callers repeat as a precaution, silently undoing the faster path."""
    policy = make_policy().freeze()
    frozen = streamed(policy)
    double_weights(policy)
    torch.testing.assert_close(streamed(policy.eval()), frozen)


def test_freezing_leaves_weights_and_their_names_alone():
    """Guards against: packed copies saved with the policy, or in place of its weights, or trained with them."""
    policy = make_policy()
    before = {name: tensor.clone() for name, tensor in policy.state_dict().items()}
    parameters = [name for name, _ in policy.named_parameters()]
    policy.freeze()
    streamed(policy)
    after = policy.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert [name for name, _ in policy.named_parameters()] == parameters
