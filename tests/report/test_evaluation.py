"""The page of one evaluation."""

import json

from robopolicy.report import write_evaluation_report


def test_the_page_says_whose_success_it_is_of_how_many_and_which_failed(tmp_path, evaluation):
    """Guards against: A rate without policy, count, interval and seeds can't be checked by anyone."""
    page = write_evaluation_report(tmp_path / "out", evaluation(set(range(2, 20)))).read_text()
    assert "<h1>lift: runs/&lt;lift&gt;</h1>" in page
    assert "18 of 20 episodes, 95 % interval 70-97 % (Wilson)" in page
    assert "<p>0, 1</p>" in page
    assert "<td>lift &lt;it&gt;</td><td class=n>18 / 20</td>" in page
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
