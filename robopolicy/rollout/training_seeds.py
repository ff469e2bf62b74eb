"""Statistics over training runs: grouped by config, summarized per config, and compared on the same evaluation seeds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from robopolicy.experiment.reading import flat
from robopolicy.experiment.run_folder import CONFIG
from robopolicy.options import ConfigError, read_yaml
from robopolicy.rollout.statistics import wilson_interval

REPLICATES = 5000
"""Bootstrap replicates; with this number the ends of an interval are accurate to about half a percentage point."""
LEVEL = 0.95
"""Confidence level of all intervals."""
TAILS = ((1 - LEVEL) / 2, (1 + LEVEL) / 2)
"""Quantiles at the ends of an interval."""

Outcomes = Mapping[int, bool]
"""Success by evaluation seed, of one training run."""


@dataclass(frozen=True)
class TrainingSeeds:
    """The success rate of a config over several training runs, evaluated on the same seeds."""

    rates: Sequence[float]
    """Success rate of each run."""
    mean: float
    std: float
    """Sample standard deviation of the rates; 0 for a single run."""
    interval: tuple[float, float]
    """Interval of the mean that accounts for the choice of both training runs and episodes."""
    level: float
    """Confidence level of the interval."""
    episodes: int
    """Evaluation seeds shared by all runs."""


@dataclass(frozen=True)
class Difference:
    """How much better one group of training runs is than another, on the same evaluation seeds."""

    mean: float
    """Mean success rate of the first group minus that of the second."""
    interval: tuple[float, float]
    """Interval of the difference that accounts for training runs and episodes of both groups."""
    p_value: float
    """Two-sided p-value of no difference, from the same bootstrap."""
    episodes: int
    """Evaluation seeds shared by all runs of both groups."""


def summarize_runs(runs: Sequence[Outcomes]) -> TrainingSeeds:
    """Mean, spread and interval of several training runs.

    The bootstrap draws training runs and evaluation seeds, both with replacement. The seeds are drawn jointly for all runs,
    since a seed gives all runs the same scene, which is hard or easy for all of them. The interval is never narrower than
    Wilson's for all episodes together, so that runs which always succeed do not get an interval of zero width. With R
    runs, the spread between them is underestimated by a factor of about sqrt((R - 1) / R), as in any bootstrap.

    Args:
        runs: success by evaluation seed, one or more runs.

    Raises:
        ValueError: no run, or no evaluation seed that all runs share.
    """
    table = _table(runs, _shared_seeds(runs))
    rates = table.mean(axis=1)
    rng = np.random.default_rng(0)
    means = np.empty(REPLICATES)
    for place in range(REPLICATES):
        chosen = table[rng.integers(len(table), size=len(table))]
        means[place] = chosen[:, rng.integers(table.shape[1], size=table.shape[1])].mean()
    low, high = np.quantile(means, TAILS)
    pooled = wilson_interval(int(table.sum()), table.size)
    return TrainingSeeds(
        rates=[float(rate) for rate in rates],
        mean=float(rates.mean()),
        std=float(rates.std(ddof=1)) if len(rates) > 1 else 0.0,
        interval=(min(float(low), pooled[0]), max(float(high), pooled[1])),
        level=LEVEL,
        episodes=table.shape[1],
    )


def compare_runs(first: Sequence[Outcomes], second: Sequence[Outcomes]) -> Difference:
    """The paired difference between two groups of training runs, on the evaluation seeds that all of them share.

    Evaluation seeds are drawn jointly for both groups, training runs separately in each group; see `summarize_runs`.

    Raises:
        ValueError: a group is empty, or no evaluation seed is shared.
    """
    seeds = _shared_seeds([*first, *second])
    one, other = _table(first, seeds), _table(second, seeds)
    rng = np.random.default_rng(0)
    differences = np.empty(REPLICATES)
    for place in range(REPLICATES):
        episodes = rng.integers(len(seeds), size=len(seeds))
        chosen = one[rng.integers(len(one), size=len(one))][:, episodes].mean()
        differences[place] = chosen - other[rng.integers(len(other), size=len(other))][:, episodes].mean()
    below, above = (differences <= 0).mean(), (differences >= 0).mean()
    low, high = np.quantile(differences, TAILS)
    return Difference(
        mean=float(one.mean() - other.mean()),
        interval=(float(low), float(high)),
        p_value=float(min(1.0, 2 * max(min(below, above), 1 / REPLICATES))),
        episodes=len(seeds),
    )


def success_by_seed(evaluation: Mapping[str, Any]) -> dict[int, bool]:
    """Success by evaluation seed, of an `Evaluation` as a dictionary."""
    return {int(outcome["seed"]): bool(outcome["success"]) for outcome in evaluation["outcomes"]}


def _shared_seeds(runs: Sequence[Outcomes]) -> list[int]:
    if not runs:
        raise ValueError("no evaluation; expected one per training run")
    shared = set(runs[0]).intersection(*runs[1:])
    if not shared:
        raise ValueError("the evaluations share no seed; a paired test needs the same --seed and --episodes")
    return sorted(shared)


def _table(runs: Sequence[Outcomes], seeds: Sequence[int]) -> np.ndarray:
    """(runs, episodes) of 0 and 1."""
    return np.array([[run[seed] for seed in seeds] for run in runs], dtype=float)


@dataclass(frozen=True)
class RunGroup:
    """Runs of one config."""

    name: str
    """The fields in which this config differs from the other groups'; the names of its runs if there is nothing to compare."""
    runs: tuple[str, ...]
    """The runs, in the order given."""


def config_values(run: str | Path) -> dict[str, Any]:
    """The fields of a run folder's config by their dotted names; empty without a config, as for an exported policy."""
    try:
        return flat(read_yaml(Path(run) / CONFIG, aliases=False))
    except ConfigError:
        return {}


def group_runs(configs: Mapping[str, Mapping[str, Any]]) -> list[RunGroup]:
    """Groups of runs whose configs are equal apart from seeds; a run without a config forms its own group.

    Args:
        configs: `config_values` by run.
    """
    members: dict[str, list[str]] = {}
    for run, values in configs.items():
        key = str(sorted((name, str(value)) for name, value in values.items() if not _is_seed(name))) if values else run
        members.setdefault(key, []).append(run)
    groups = list(members.values())
    different = [configs[runs[0]] for runs in groups]
    names = dict.fromkeys(name for values in different for name in values if not _is_seed(name))
    fields = [name for name in names if len({str(values.get(name)) for values in different}) > 1]
    named = []
    for runs in groups:
        values = [f"{field} {configs[runs[0]].get(field, 'none')}" for field in fields]
        named.append(RunGroup(", ".join(values) if values and configs[runs[0]] else ", ".join(runs), tuple(runs)))
    return named


def _is_seed(name: str) -> bool:
    return name.rpartition(".")[2] == "seed"
