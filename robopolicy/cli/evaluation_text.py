"""Output of `robopolicy eval`: one run, several training seeds, and the comparison with other runs."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from robopolicy.cli import say
from robopolicy.cli.outputs import write_json
from robopolicy.components import ConfigError
from robopolicy.rollout.statistics import Evaluation, paired_test, shown_p
from robopolicy.rollout.training_seeds import (
    compare_runs,
    config_values,
    group_runs,
    success_by_seed,
    summarize_runs,
)


def report_runs(options: Namespace, results: Sequence[Evaluation]) -> int:
    """Print and write a summary of several runs; returns the exit code.

    Runs whose configs differ only in the seed count as training seeds of one config. With several configs, a table has one
    row per config, each compared with the first config on the same evaluation seeds.
    """
    if len(results) == 0 or (len(results) == 1 and len(options.against) < 2):
        return 0
    names = [f"{run} ({place})" if run in options.policy[:place] else run for place, run in enumerate(options.policy)]
    evaluations = dict(zip(names, results, strict=True))
    configs = {name: config_values(run) for name, run in zip(names, options.policy, strict=True)}
    others, rows = read_others(options, results[0].task), []
    for group in group_runs(configs):
        mine = [evaluations[run] for run in group.runs]
        rows.append({"config": group.name, "runs": list(group.runs), **_summary(mine, others, options)})
        if len(results) > len(mine):
            say(f"config    {group.name}")
        _print_group(rows[-1])
    if len(rows) > 1:
        _print_differences(rows, evaluations)
    if options.json and len(results) > 1:
        common = rows[0] if len(rows) == 1 else {"configs": rows}
        values = {"task": results[0].task, **common, "runs": [result.to_dict() for result in results]}
        write_json(Path(options.json), values)
        say(f"result    {options.json}")
    return 0


def _summary(results: Sequence[Evaluation], others: Sequence[Mapping[int, bool]], options: Namespace) -> dict[str, Any]:
    """Mean, spread and interval of one config's runs, their rates by instruction, and the difference from other runs."""
    runs = [success_by_seed(result.to_dict()) for result in results]
    values = {**asdict(summarize_runs(runs)), "per_instruction": _rates_by_instruction(results)}
    if others:
        difference = asdict(compare_runs(runs, others))
        values["against"] = {"files": list(options.against), "count": len(others), **difference}
    return values


def _print_group(row: Mapping[str, Any]) -> None:
    """Print one config: the mean of its runs, also by instruction, and their difference from the runs of --against."""
    rates = ", ".join(f"{100 * rate:.0f}" for rate in row["rates"])
    if len(row["rates"]) > 1:
        low, high = (round(100 * bound) for bound in row["interval"])
        say(
            f"training  {len(row['rates'])} runs: mean {100 * row['mean']:.1f} %, std {100 * row['std']:.1f} points "
            f"({rates} %)   (95 % interval {low}-{high} %, training runs and episodes)"
        )
        for instruction, by_run in row["per_instruction"].items():
            shares = ", ".join(f"{100 * rate:.0f}" for rate in by_run)
            say(f"          {100 * sum(by_run) / len(by_run):4.0f} % {instruction}   ({shares} %)")
    if "against" in row:
        against = row["against"]
        say(f"against   {against['count']} runs, {against['episodes']} shared seeds: {_difference_text(against)}")


def _print_differences(rows: Sequence[dict[str, Any]], evaluations: Mapping[str, Evaluation]) -> None:
    """Print a table of all configs, each with its difference from the first; also store the differences in `rows`."""
    outcomes = [[success_by_seed(evaluations[run].to_dict()) for run in row["runs"]] for row in rows]
    width = max(len(row["config"]) for row in rows)
    for row, mine in zip(rows, outcomes, strict=True):
        low, high = (round(100 * bound) for bound in row["interval"])
        text = f"{row['config']:<{width}}  {len(mine)} runs  {100 * row['mean']:5.1f} %  ({low}-{high} %)"
        if row is not rows[0]:
            row["minus_first"] = asdict(compare_runs(mine, outcomes[0]))
            text += f"  minus the first: {_difference_text(row['minus_first'])}"
        say(f"table     {text}")


def _difference_text(difference: Mapping[str, Any]) -> str:
    """A difference in success with its interval and p-value."""
    low, high = (100 * bound for bound in difference["interval"])
    return (
        f"{100 * difference['mean']:+.1f} points (95 % interval {low:+.0f} to {high:+.0f}), p {shown_p(difference['p_value'])} "
        f"(bootstrap, training runs and episodes)"
    )


def _rates_by_instruction(results: Sequence[Evaluation]) -> dict[str, list[float]]:
    """Success rate of each run, by instruction; empty if there is only one instruction."""
    names = dict.fromkeys(name for result in results for name in result.per_instruction)
    if len(names) < 2:
        return {}
    rates = {}
    for name in names:
        counts = [result.per_instruction.get(name, (0, 0)) for result in results]
        rates[name] = [solved / tried for solved, tried in counts if tried]
    return rates


def print_evaluation(result: Evaluation) -> None:
    """Print the result in a few lines, with units."""
    low, high = (round(100 * bound) for bound in result.interval)
    limited = "" if result.limited_share is None else f"   limited steps {100 * result.limited_share:.1f} %"
    say(
        f"success   {result.successes} / {result.episodes} = {100 * result.success_rate:.0f} %  "
        f"(95 % interval {low}-{high} %)   mean length {result.mean_steps:.0f} steps of {result.control_dt:.3g} s{limited}"
    )
    for instruction, (solved, tried) in result.per_instruction.items():
        if instruction:
            say(f"          {solved:4d} / {tried:<4d} {instruction}")
    if result.in_a_row:
        shares = "  ".join(f"{count}: {100 * share:.0f} %" for count, share in enumerate(result.in_a_row, start=1))
        say(f"in a row  {shares}   {result.figures['solved']:.2f} on average")
    if "return" in result.figures:
        figures = ", ".join(f"{name} {value:.3g}" for name, value in result.figures.items())
        say(f"means     {figures}")
    if result.failed_seeds:
        shown = ", ".join(map(str, result.failed_seeds[:20]))
        say(f"failed    seeds {shown}{' ...' if len(result.failed_seeds) > 20 else ''}")
    for fault, seeds in result.faults.items():
        say(f"FAULTS    {len(seeds)} episodes failed because of a simulator fault ({fault}): seeds {list(seeds)[:20]}")
    rate = result.env_steps / result.wall_s
    say(
        f"time      {result.wall_s:.1f} s: inference {result.inference_s:.1f} s, sim {result.physics_s:.1f} s; "
        f"{rate:.0f} env steps/s"
    )


def read_others(options: Namespace, task: str) -> list[dict[int, bool]]:
    """Success by seed of each evaluation in the files of --against.

    Raises:
        ConfigError: a file can't be read, holds no evaluation or one of another task, or no seed of `options` is in all files.
    """
    others = [each for path in options.against for each in _read_evaluations(Path(path), task)]
    seeds = range(options.seed, options.seed + options.episodes)
    if others and not set(seeds).intersection(*others):
        names = " ".join(options.against)
        raise ConfigError(f"--against {names} shares no seed with {seeds[0]} .. {seeds[-1]}; give its --seed")
    return others


def _read_evaluations(path: Path, task: str) -> list[dict[int, bool]]:
    """Success by seed of each run in one file of --against."""
    try:
        values = json.loads(path.read_text())
        found = [success_by_seed(each) for each in values.get("runs", [values])]
    except OSError as error:
        raise ConfigError(f"--against {path}: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"--against {path}: not an evaluation written by robopolicy eval --json") from error
    if values.get("task") != task:
        raise ConfigError(
            f"--against {path} is of task {values.get('task')}, not {task}; equal seeds are not the same scenes"
        )
    return found


def print_paired(result: Evaluation, other: Mapping[int, bool], name: str) -> None:
    """Print McNemar's test against one other evaluation, in one line."""
    test = paired_test({outcome["seed"]: outcome["success"] for outcome in result.outcomes}, other)
    say(
        f"paired    {test['seeds']} shared seeds: only this {test['only_first']}, only {name} {test['only_second']}, "
        f"p {shown_p(test['p_value'])} (McNemar, exact)"
    )
