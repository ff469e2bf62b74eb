"""Runs side by side: what the page says, and what it is made from."""

import json

import pytest

from robopolicy.report.comparison import write_comparison


def write_run(folder, evaluation, hidden, losses=(1.0, 0.1)):
    """A run folder with a config, metrics and one evaluation."""
    (folder / "eval").mkdir(parents=True)
    (folder / "config.yaml").write_text(f"head: {{hidden: {hidden}, layers: 2}}\n")
    rows = [{"step": 10 * place, "loss": loss} for place, loss in enumerate(losses, start=1)]
    metrics = {"train": rows, "valid": rows, "steps": 20, "success": [{"step": 10, "rate": 0.5}]}
    (folder / "metrics.json").write_text(json.dumps(metrics))
    (folder / "eval" / "lift.json").write_text(json.dumps(evaluation))
    return folder


def test_two_runs_are_compared_in_success_config_and_loss(tmp_path, evaluation):
    """Guards against: two lists side by side, without whether the difference is chance and where it comes from."""
    one = write_run(tmp_path / "one", evaluation(set(range(18))), hidden=64)
    other = write_run(tmp_path / "other", evaluation(set(range(8))), hidden=128)
    page = write_comparison([one, other], tmp_path / "report.html").read_text()
    assert "<td class=n>18 / 20</td><td class=n>90 %</td><td class=n>70-97 %</td>" in page
    assert "<td class=n>20</td><td class=n>10</td><td class=n>0</td><td class=n>0.002</td>" in page  # the paired test
    assert "<td>head.hidden</td><td class=n>64</td><td class=n>128</td>" in page
    assert "head.layers" not in page
    assert page.count("<polyline") == 6  # train and valid of each, and the success of each while training
    assert "http" not in page


def test_runs_of_improve_share_one_learning_curve(tmp_path, evaluation):
    """Guards against: an improve run whose progress is in a file that no page shows; iterations without an ended episode."""
    runs = [write_run(tmp_path / name, evaluation({1}), hidden=64) for name in ("one", "other")]
    for run in runs:
        rows = [{"step": 10, "success": 0.1}, {"step": 20}, {"step": 30, "success": 0.4, "anchor_kl": 0.1}]
        metrics = json.loads((run / "metrics.json").read_text()) | {"improve": rows, "success": []}
        (run / "metrics.json").write_text(json.dumps(metrics))
    page = write_comparison(runs, tmp_path / "report.html").read_text()
    assert "Success in training rollouts" in page
    assert "Divergence" not in page  # a single point is no curve
    assert page.count("<polyline") == 9  # train and valid loss and the success in rollouts: each run's, and their mean


def test_the_mean_of_training_seeds_is_over_the_steps_that_all_have(tmp_path, evaluation):
    """Guards against: a mean that jumps where one of the runs ends, and seeds that are compared as if they were configs."""
    runs = [
        write_run(tmp_path / str(n), evaluation({1}), hidden=64, losses=losses)
        for n, losses in enumerate([(4.0, 2.0), (2.0, 1.0, 9.0)])
    ]
    page = write_comparison(runs, tmp_path / "report.html").read_text()
    assert page.count("mean of 2 runs: 1.5") == 2  # of the losses at step 20, train and valid; not at 30


def test_rounds_of_dagger_share_one_learning_curve(tmp_path):
    """Guards against: rounds whose success is in a file that no page shows."""
    runs = [tmp_path / name for name in ("one", "other")]
    for run in runs:
        run.mkdir()
        rows = [{"round": 0, "success_rate": 0.3}, {"round": 1, "labeled_steps": 50, "success_rate": 0.6}]
        (run / "dagger.json").write_text(json.dumps({"rounds": rows}))
    page = write_comparison(runs, tmp_path / "report.html").read_text()
    assert "Success over the rounds" in page
    assert page.count("<polyline") == 2


def test_a_run_that_was_not_evaluated_says_how_to(tmp_path, evaluation):
    """Guards against: A page of loss curves alone left a new user to guess where the success rate is."""
    run = write_run(tmp_path / "run", evaluation({1}), hidden=64)
    (run / "eval" / "lift.json").unlink()
    assert "robopolicy eval" in write_comparison([run], tmp_path / "report.html").read_text()


def test_an_evaluation_is_named_by_its_run(tmp_path, evaluation):
    """Guards against: columns headed by long paths of files, and a p-value of 0."""
    one = write_run(tmp_path / "one", evaluation(set()), hidden=64)
    other = write_run(tmp_path / "other", evaluation(set(range(20))), hidden=64)
    page = write_comparison([one, other], tmp_path / "report.html").read_text()
    assert f"<td>{one}</td><td>{other}</td>" in page
    assert "<td class=n>&lt; 0.001</td>" in page
    (other / "eval" / "again.json").write_text((other / "eval" / "lift.json").read_text())
    page = write_comparison([one, other], tmp_path / "report.html").read_text()
    assert f"<td>{other}: again</td><td>{other}: lift</td>" in page


def test_evaluations_of_different_tasks_are_not_paired(tmp_path, evaluation):
    """Guards against: The same seeds are other scenes in another task."""
    one = write_run(tmp_path / "one", evaluation({1}), hidden=64)
    other = write_run(tmp_path / "other", evaluation({1}) | {"task": "reach"}, hidden=64)
    assert "McNemar" not in write_comparison([one, other], tmp_path / "report.html").read_text()


def test_no_run_at_all_is_refused(tmp_path):
    """Guards against: An empty page would look like a result."""
    with pytest.raises(ValueError, match="expected run folders"):
        write_comparison([tmp_path], tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


def test_runs_that_differ_in_their_seed_are_one_row(tmp_path, evaluation):
    """Guards against: a page that leaves the mean over training seeds, and its interval, to the reader."""
    runs = []
    for number, (solved, hidden) in enumerate([(18, 64), (16, 64), (8, 128)]):
        run = write_run(tmp_path / f"run{number}", evaluation(set(range(solved))), hidden=hidden)
        (run / "config.yaml").write_text(f"memory: {{hidden: {hidden}}}\ntraining: {{seed: {number}}}\n")
        runs.append(run)
    page = write_comparison(runs, tmp_path / "report.html").read_text()
    assert (
        "<td>memory.hidden 64</td><td>lift</td><td class=n>2</td><td class=n>85 %</td><td class=n>7.1 points</td>"
        in page
    )
    assert "<td>memory.hidden 128</td><td>lift</td><td class=n>1</td><td class=n>40 %</td>" in page
    assert "-45.0 (" in page
