"""A page that compares runs: success with intervals, training seeds, paired tests, config differences and losses."""

from collections.abc import Mapping, Sequence
from itertools import accumulate, combinations
from pathlib import Path
from typing import Any

from robopolicy.files import read_json
from robopolicy.report.page import percent, percent_range, success_table, table, write_page
from robopolicy.report.plots import COLORS, Series, interval_plot, line_plot
from robopolicy.rollout.statistics import paired_test, shown_p
from robopolicy.rollout.training_seeds import (
    Outcomes,
    RunGroup,
    compare_runs,
    config_values,
    group_runs,
    success_by_seed,
    summarize_runs,
)


def write_comparison(runs: Sequence[Path], out: Path) -> Path:
    """Write one page that compares runs: every evaluation found as JSON in their folders, their configs and their losses.

    Raises:
        ValueError: none of the folders holds `metrics.json`, `dagger.json` or an evaluation.
    """
    evaluations = {name: values for run in runs for name, values in _named_evaluations(run)}
    metrics = {str(run): found for run in runs if (found := _read_json(run / "metrics.json"))}
    rounds = {str(run): found for run in runs if (found := _read_json(run / "dagger.json").get("rounds"))}
    if not evaluations and not metrics and not rounds:
        found = ", ".join(map(str, runs))
        raise ValueError(f"no metrics.json, no dagger.json and no evaluation in {found}; expected run folders")
    parts = [
        _closed_loop(evaluations),
        _instructions(evaluations),
        _training_seeds(runs),
        _paired(evaluations),
        _differences(runs),
        _trained(metrics),
        _curves(runs, metrics),
        _rounds(rounds),
    ]
    title = str(runs[0]) if len(runs) == 1 else f"{len(runs)} runs compared"
    return write_page(out, title, parts)


def _evaluations(run: Path) -> list[tuple[Path, dict[str, Any]]]:
    found = [(path, _read_json(path)) for path in sorted(run.rglob("*.json"))]
    return [(path, values) for path, values in found if {"success_rate", "interval", "outcomes"} <= values.keys()]


def _named_evaluations(run: Path) -> list[tuple[str, dict[str, Any]]]:
    """(name, evaluation) pairs; an evaluation is named after its run, and also after its file if the run has several."""
    found = _evaluations(run)
    if len(found) == 1:
        return [(str(run), found[0][1])]
    files = [str(path.relative_to(run).with_suffix("")).removeprefix("eval/") for path, _ in found]
    return [(f"{run}: {file}", values) for file, (_, values) in zip(files, found, strict=True)]


def _closed_loop(evaluations: Mapping[str, Mapping[str, Any]]) -> str:
    if not evaluations:
        return "<h2>Closed loop</h2><p>No evaluation in these folders; <code>robopolicy eval RUN</code> makes one.</p>"
    rows = [
        (
            name,
            values["task"],
            f"{values['successes']} / {values['episodes']}",
            percent(values["success_rate"]),
            percent_range(values["interval"]),
            f"{values['mean_steps']:.0f}",
        )
        for name, values in evaluations.items()
    ]
    head = ("evaluation", "task", "solved", "success", "95 % interval", "mean steps")
    plot = interval_plot({name: (each["success_rate"], each["interval"]) for name, each in evaluations.items()})
    return f"<h2>Closed loop</h2>{table(head, rows, numbers_from=2)}{plot}"


def _instructions(evaluations: Mapping[str, Mapping[str, Any]]) -> str:
    """For each task with several instructions, a column for each evaluation."""
    tables = []
    for task in dict.fromkeys(values["task"] for values in evaluations.values()):
        tried = {
            name: values["per_instruction"]
            for name, values in evaluations.items()
            if values["task"] == task and len(values.get("per_instruction", ())) > 1
        }
        tables += [success_table(tried)] if tried else []
    return "".join(tables)


def _training_seeds(runs: Sequence[Path]) -> str:
    """A table with the mean of each group of runs whose configs differ only in their seed, and differences from the first.

    For each task, the newest evaluation of each run is used, on the seeds that all runs share.
    """
    newest = {str(run): {values["task"]: values for _, values in _evaluations(run)} for run in runs}
    groups = group_runs({str(run): config_values(run) for run in runs})
    rows = []
    for task in dict.fromkeys(task for found in newest.values() for task in found):
        first: Sequence[Outcomes] = ()
        for group in groups:
            outcomes = [success_by_seed(newest[run][task]) for run in group.runs if task in newest[run]]
            if not outcomes or not set(outcomes[0]).intersection(*outcomes[1:]):
                continue
            summary = summarize_runs(outcomes)
            rates = ", ".join(percent(rate) for rate in summary.rates)
            spread = f"{100 * summary.std:.1f} points" if len(outcomes) > 1 else ""
            row = (
                group.name,
                task,
                len(outcomes),
                percent(summary.mean),
                spread,
                percent_range(summary.interval),
                rates,
            )
            rows.append((*row, _difference(outcomes, first)))
            first = first or outcomes
    if len(runs) < 2 or not rows:
        return ""
    head = ("config", "task", "runs", "mean", "std over runs", "95 % interval", "each run", "difference from the first")
    note = "<p>Intervals account for training runs and episodes (bootstrap over both). Differences are on shared seeds.</p>"
    return f"<h2>Training seeds</h2>{table(head, rows, numbers_from=2)}{note}"


def _difference(outcomes: Sequence[Outcomes], first: Sequence[Outcomes]) -> str:
    """The difference from the first group with its interval and p-value; empty for the first group."""
    if not first or not set(first[0]).intersection(*first[1:], *outcomes):
        return ""
    difference = compare_runs(outcomes, first)
    low, high = (100 * bound for bound in difference.interval)
    return f"{100 * difference.mean:+.1f} ({low:+.0f} to {high:+.0f}), p {shown_p(difference.p_value)}"


def _paired(evaluations: Mapping[str, Mapping[str, Any]]) -> str:
    """McNemar's test between any two evaluations of a task that share seeds."""
    rows = []
    for (name, one), (second_name, other) in combinations(evaluations.items(), 2):
        first, second = ({each["seed"]: each["success"] for each in values["outcomes"]} for values in (one, other))
        if one["task"] == other["task"] and first.keys() & second.keys():
            test = paired_test(first, second)
            figures = (
                test["seeds"],
                test["only_first"],
                test["only_second"],
                shown_p(test["p_value"]).removeprefix("= "),
            )
            rows.append((name, second_name, *figures))
    head = (
        "first",
        "second",
        "shared seeds",
        "solved only by the first",
        "solved only by the second",
        "p (McNemar, exact)",
    )
    return f"<h2>On the same seeds</h2>{table(head, rows, numbers_from=2)}" if rows else ""


def _differences(runs: Sequence[Path]) -> str:
    """The fields of the configs in which the runs differ."""
    configs = {str(run): config_values(run) for run in runs}
    configs = {name: values for name, values in configs.items() if values}
    fields = dict.fromkeys(field for values in configs.values() for field in values)
    rows = [(field, *(values.get(field, "") for values in configs.values())) for field in fields]
    rows = [row for row in rows if len({str(value) for value in row[1:]}) > 1]
    return f"<h2>What differs</h2>{table(('field', *configs), rows)}" if rows else ""


def _trained(metrics: Mapping[str, Mapping[str, Any]]) -> str:
    rows = [
        (name, *(found.get(key, "") for key in ("steps", "wall_s", "step_ms", "parameters")), _kept(found))
        for name, found in metrics.items()
    ]
    head = ("run", "steps", "wall time [s]", "ms per batch", "parameters", "best checkpoint")
    return f"<h2>Training</h2>{table(head, rows)}" if rows else ""


def _kept(found: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value:.4g}" for key, value in (found.get("best") or {}).items() if value is not None)


def _curves(runs: Sequence[Path], metrics: Mapping[str, Mapping[str, Any]]) -> str:
    """Plots of each loss, of the success during training and of `improve`; training seeds are thin lines behind their mean."""
    groups = group_runs({run: config_values(run) for run in map(str, runs) if run in metrics})
    rows = [row for found in metrics.values() for split in ("train", "valid") for row in found.get(split, ())]
    plots = []
    for name in dict.fromkeys(key for row in rows for key in row if key.startswith("loss")):
        series = [
            line
            for split in ("train", "valid")
            for line in _series(groups, metrics, split, name, f" {split}", positive=True)
        ]
        if series:
            plots.append(f"<h2>{name}</h2>{line_plot(series, 'steps', log=True)}")
    for split, key, title, axis in (
        ("success", "rate", "Success while training", "steps"),
        ("improve", "success", "Success in training rollouts, with exploration noise", "environment steps"),
        ("improve", "anchor_kl", "KL divergence from the start policy", "environment steps"),
    ):
        if series := _series(groups, metrics, split, key):
            plots.append(f"<h2>{title}</h2>{line_plot(series, axis, log=False)}")
    return "".join(plots)


def _series(
    groups: Sequence[RunGroup],
    metrics: Mapping[str, Mapping[str, Any]],
    split: str,
    key: str,
    suffix: str = "",
    positive: bool = False,
) -> list[Series]:
    """Curves of one metric over the steps, one color per config; a mean of runs covers the steps that all of them have.

    Args:
        groups: the runs of each config.
        metrics: `metrics.json` by run.
        split: name of the list of rows in it.
        key: name of the metric; rows without it are skipped.
        suffix: appended to the names in the legend.
        positive: leave out values that a logarithmic axis can't show.
    """
    series = []
    for place, group in enumerate(groups):
        look = {"color": COLORS[place % len(COLORS)], "dashed": split == "valid"}
        curves = []
        for run in group.runs:
            rows = [row for row in metrics[run].get(split, ()) if key in row]
            points = {float(row["step"]): float(row[key]) for row in rows if not positive or row[key] > 0}
            if len(points) > 1 or split == "success":
                curves.append(points)
        curves = [points for points in curves if points]
        if len(curves) == 1:
            series.append(Series(f"{group.name}{suffix}", [*curves[0].items()], **look))
            continue
        series += [Series(group.name, [*points.items()], **look, thin=True) for points in curves]
        if curves and (shared := sorted(set(curves[0]).intersection(*curves[1:]))):
            means = [(step, sum(points[step] for points in curves) / len(curves)) for step in shared]
            series.append(Series(f"{group.name}{suffix}, mean of {len(curves)} runs", means, **look))
    return series


def _rounds(runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """A plot of each `dagger` run's success over the number of labeled steps."""
    series = []
    for place, (run, rows) in enumerate(runs.items()):
        labeled = accumulate(float(row.get("labeled_steps", 0)) for row in rows)
        points = [
            (steps, row["success_rate"]) for steps, row in zip(labeled, rows, strict=True) if "success_rate" in row
        ]
        if len(points) > 1:
            series.append(Series(run, points, COLORS[place % len(COLORS)]))
    return f"<h2>Success over the rounds</h2>{line_plot(series, 'labeled steps', log=False)}" if series else ""


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return read_json(path)
    except ValueError:
        return {}
