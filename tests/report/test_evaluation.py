"""The page of one evaluation."""

import json
from dataclasses import replace

import av
import numpy as np

from robopolicy.report.evaluation import write_evaluation_report, write_side_by_side
from robopolicy.rollout.episodes import Episode
from robopolicy.types import Demo


def test_the_page_says_whose_success_it_is_of_how_many_and_which_failed(tmp_path, evaluation):
    """Guards against: A rate without policy, count, interval and seeds can't be checked by anyone."""
    page = write_evaluation_report(tmp_path / "out", evaluation(set(range(2, 20)))).read_text()
    assert "<h1>lift: runs/&lt;lift&gt;</h1>" in page
    assert "18 of 20 episodes, 95 % interval 70-97 % (Wilson)" in page
    assert "<p>0, 1</p>" in page
    assert "<td>lift &lt;it&gt;</td><td class=n>18 / 20 = 90 % (70-97 %)</td>" in page
    assert json.loads((tmp_path / "out" / "result.json").read_text())["successes"] == 18


def test_a_chain_is_reported_as_calvin_does(tmp_path, evaluation):
    """Guards against: Success of all five alone hides how far a policy comes."""
    values = evaluation({1}) | {"in_a_row": [1.0, 0.9, 0.8, 0.75, 0.5]}
    page = write_evaluation_report(tmp_path, values).read_text()
    assert "<th class=n>5 or more</th><th class=n>on average</th>" in page
    assert "<td class=n>50 %</td><td class=n>3.95</td>" in page


def test_an_evaluation_without_a_success_has_a_page_too(tmp_path, evaluation):
    """Guards against: The first evaluation of a new user's policy is often 0 %."""
    page = write_evaluation_report(tmp_path, evaluation(set())).read_text()
    assert "0 of 20 episodes" in page
    assert "<rect" not in page


def test_episodes_in_which_the_simulator_broke_are_named(tmp_path, evaluation):
    """Guards against: a crash of the simulator that reads like a failure of the policy."""
    values = evaluation({1}) | {"faults": {"no reply within 60 s": [3, 4]}}
    page = write_evaluation_report(tmp_path, values).read_text()
    assert "<td>no reply within 60 s</td><td class=n>2</td><td class=n>3, 4</td>" in page


def test_policies_are_shown_side_by_side_where_they_differ(tmp_path, evaluation):
    """Guards against: videos of different seeds beside each other, of which nobody can tell which policy is better."""

    def episodes(solved, length):
        images = np.zeros((length, 16, 16, 3), np.uint8)
        demo = Demo(name="demo_0", obs={"front": images}, actions=np.zeros((length, 1), np.float32))
        made = Episode(seed=0, instruction="lift <it>", success=False, steps=length, demos=(demo,))
        return [replace(made, seed=seed, success=seed in solved) for seed in range(6)]

    runs = {
        "one": (evaluation({0, 1}), episodes({0, 1}, 5)),
        "the <other>": (evaluation({1, 2, 3}), episodes({1, 2, 3}, 9)),
    }
    page = write_side_by_side(tmp_path, runs, videos=1).read_text()
    parts = ["one only: 1 seeds", "the &lt;other&gt; only: 2 seeds", "none: 2 seeds", "all: 1 seeds"]
    places = [page.index(f"Solved by {part}") for part in parts]
    assert places == sorted(places)
    assert page.count("<video") == 4
    assert "seed 0: lift &lt;it&gt;; solved in 5 steps, failed in 9 steps" in page
    assert "<th class=n>one</th><th class=n>the &lt;other&gt;</th>" in page
    assert "from left to right: one, the &lt;other&gt;." in page
    with av.open(tmp_path / "seed_0.mp4") as video:
        assert len(list(video.decode(video=0))) == 9


def test_policies_without_videos_are_compared_too(tmp_path, evaluation):
    """Guards against: a page that fails where nothing was filmed."""
    bare = [Episode(seed=seed, instruction="", success=False, steps=3) for seed in range(20)]
    page = write_side_by_side(tmp_path, {"a": (evaluation(set()), bare), "b": (evaluation(set()), bare)}, videos=0)
    assert "Solved by none: 20 seeds" in page.read_text()
