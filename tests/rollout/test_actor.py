"""`robopolicy.Runner`: a policy in a loop of one's own."""

import numpy as np
import pytest
import torch

import robopolicy
from robopolicy.experiment import DemoFacts, ExperimentConfig, build_policy
from robopolicy.model.normalization import Statistics
from robopolicy.model.policy import ChunkPolicy
from robopolicy.types import ActionSpec, ArraySpec
from tests.small_runs import SMALL

ROWS = np.random.default_rng(0).normal(size=(50, 2))


@pytest.fixture(scope="module")
def policy() -> ChunkPolicy:
    """A policy of random weights with a memory of three frames and chunks of two actions."""
    torch.manual_seed(0)
    config = ExperimentConfig().change(SMALL | {"execution.replan_every": 2})
    statistics = Statistics.of(ROWS)
    facts = DemoFacts(
        ActionSpec(arm=2, gripper=0, kind="delta"),
        {"state": ArraySpec((2,))},
        obs_statistics={"state": statistics},
        action_statistics=statistics,
    )
    return build_policy(config, facts).eval()


def test_a_runner_executes_the_chunk_as_the_policy_was_trained(policy):
    """Guards against: a loop of one's own that replans at another pace than eval."""
    runner, state = robopolicy.Runner(policy), policy.initial_state()
    expected = []
    for step in range(6):
        actions, state = policy.act({"state": ROWS[step]}, state)
        expected = actions.numpy() if step % 2 == 0 else expected
        np.testing.assert_allclose(runner.act({"state": ROWS[step]}), expected[step % 2], atol=1e-6)


def test_a_reset_begins_an_episode_in_the_chosen_rows_only(policy):
    """Guards against: a memory that outlives its episode, and one that is lost with its neighbor's."""
    fresh = robopolicy.Runner(policy, batch=2)
    first = fresh.act({"state": ROWS[[0, 1]]})
    runner, kept = robopolicy.Runner(policy, batch=2), robopolicy.Runner(policy, batch=2)
    for step in range(4):
        for each in (runner, kept):
            each.act({"state": ROWS[[step, step + 5]]})
    runner.reset(np.array([True, False]))
    actions, others = (each.act({"state": ROWS[[0, 1]]}) for each in (runner, kept))
    np.testing.assert_allclose(actions[0], first[0], atol=1e-6)
    np.testing.assert_allclose(actions[1], others[1], atol=1e-6)
    assert np.abs(others[0] - first[0]).max() > 1e-6
    runner.reset()
    np.testing.assert_allclose(runner.act({"state": ROWS[[0, 1]]}), first, atol=1e-6)
