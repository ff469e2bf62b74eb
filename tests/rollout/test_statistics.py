"""Properties of the statistics behind a reported success rate."""

import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from robopolicy.rollout.episodes import Episode, Timing
from robopolicy.rollout.statistics import SeenSeedsError, paired_test, refuse_seen_seeds, summarize, wilson_interval


def test_wilson_interval_is_the_published_one():
    """Guards against: A wrong interval would make an honest-looking claim false (Newcombe 1998, table I: 81 of 263)."""
    low, high = wilson_interval(81, 263)
    assert low == pytest.approx(0.2553, abs=1e-4)
    assert high == pytest.approx(0.3662, abs=1e-4)


@given(share=st.floats(0, 1), episodes=st.integers(1, 2000))
@settings(max_examples=50, deadline=None)
def test_interval_holds_the_rate_and_stays_within_0_and_1(share, episodes):
    """Guards against: At 0 or all successes, a normal approximation leaves [0, 1] or has no width."""
    successes = round(share * episodes)
    low, high = wilson_interval(successes, episodes)
    assert 0.0 <= low <= successes / episodes <= high <= 1.0
    assert low < high


def test_interval_of_no_episode_is_refused():
    """Guards against: 0 / 0 must not come out as a rate."""
    with pytest.raises(ValueError, match="episodes > 0"):
        wilson_interval(0, 0)


def test_paired_test_counts_only_the_seeds_on_which_they_differ():
    """Guards against: Shared successes say nothing of a difference; McNemar's exact p of 1 against 9 is 22 / 1024."""
    first = dict.fromkeys(range(20), True) | dict.fromkeys(range(20, 29), False) | {29: True}
    second = dict.fromkeys(range(20), True) | dict.fromkeys(range(20, 29), True) | {29: False}
    test = paired_test(first, second)
    assert (test["only_first"], test["only_second"], test["seeds"]) == (1, 9, 30)
    assert test["p_value"] == pytest.approx(22 / 1024)


def test_paired_test_of_equal_policies_finds_nothing():
    """Guards against: Identical outcomes are no evidence; p must be 1, not above it."""
    same = {seed: seed % 3 == 0 for seed in range(30)}
    assert paired_test(same, same)["p_value"] == 1.0


def test_paired_test_without_a_shared_seed_is_refused():
    """Guards against: Two evaluations on different scenes can't be paired."""
    with pytest.raises(ValueError, match="share no seed"):
        paired_test({1: True}, {2: True})


def test_seeds_of_the_training_demos_are_refused():
    """Guards against: A success rate on scenes of the training file is no success rate."""
    with pytest.raises(SeenSeedsError, match=r"seeds 195 .. 199 \(5 of 105\)"):
        refuse_seen_seeds(range(195, 300), range(200))


def test_summary_does_not_depend_on_the_order_in_which_episodes_end():
    """Guards against: Short episodes end first; a summary that cared would favor them."""
    episodes = [
        Episode(seed=seed, instruction=f"lift {seed % 2}", success=seed % 3 > 0, steps=10 + seed, info={"solved": seed})
        for seed in range(9)
    ]
    first = summarize("lift", episodes, 0.05, Timing(), 1.0, {})
    second = summarize("lift", episodes[::-1], 0.05, Timing(), 1.0, {})
    assert first == second
    assert (first.successes, first.episodes, first.mean_steps, first.figures) == (6, 9, 14.0, {"solved": 4.0})
    assert first.per_instruction == {"lift 0": (3, 5), "lift 1": (3, 4)}
    assert first.failed_seeds == (0, 3, 6)
    assert first.to_dict()["success_rate"] == pytest.approx(6 / 9)


def test_a_figure_that_an_episode_does_not_report_is_left_out():
    """Guards against: NaN in a result file, which other readers of JSON refuse."""
    infos = [{"grasped": 1.0, "lifted": math.nan}, {"grasped": math.nan, "lifted": math.nan}]
    episodes = [Episode(seed=seed, instruction="", success=True, steps=1, info=info) for seed, info in enumerate(infos)]
    result = summarize("lift", episodes, 0.05, Timing(), 1.0, {})
    assert result.figures == {"grasped": 1.0}
    json.dumps(result.to_dict(), allow_nan=False)
