"""Statistics of finished episodes: success rates with intervals, and paired tests between policies."""

import logging
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from robopolicy.rollout.episodes import Episode, Timing

LOG = logging.getLogger(__name__)

Z = 1.959964
"""97.5 % quantile of the standard normal distribution, for 95 % intervals."""


class SeenSeedsError(ValueError):
    """Some seeds to be evaluated are among those of the policy's training demos."""


@dataclass(frozen=True)
class Evaluation:
    """The result of a closed-loop evaluation."""

    task: str
    successes: int
    episodes: int
    interval: tuple[float, float]
    """Wilson's 95 % interval of the success rate."""
    mean_steps: float
    """Mean length of an episode [control steps]."""
    control_dt: float
    """Duration of one control step [s]."""
    per_instruction: Mapping[str, tuple[int, int]]
    """Instruction -> (successes, episodes)."""
    figures: Mapping[str, float]
    """Means of the task's own metrics, such as `solved`, the number of instructions solved in a chain."""
    in_a_row: Sequence[float]
    """Fraction of a chain's episodes that solved at least 1, 2, ... instructions; empty for other tasks."""
    outcomes: Sequence[Mapping[str, Any]]
    """Seed, instruction, success, steps and metrics of every episode, sorted by seed."""
    inference_s: float
    """Wall time of policy inference [s]."""
    physics_s: float
    """Wall time in physics, rendering and tasks [s]."""
    wall_s: float
    """Total wall time [s]."""
    env_steps: int
    """Control steps of all episodes together."""
    faults: Mapping[str, Sequence[int]] = field(default_factory=dict)
    """Fault of the simulator -> seeds of the episodes that failed because of it."""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """Policy, command and versions, as given by the caller."""

    @property
    def success_rate(self) -> float:
        """Successes / episodes."""
        return self.successes / self.episodes

    @property
    def limited_share(self) -> float | None:
        """Fraction of the commands that the robot's limits changed; None for environments that don't count them."""
        if "limited" not in self.figures:
            return None
        return self.figures["limited"] / self.mean_steps

    @property
    def failed_seeds(self) -> tuple[int, ...]:
        """Seeds of the episodes that failed."""
        return tuple(outcome["seed"] for outcome in self.outcomes if not outcome["success"])

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; `success_rate`, `successes`, `episodes` and `interval` first."""
        head = {"success_rate": self.success_rate, "successes": self.successes, "episodes": self.episodes}
        tail = {"limited_share": self.limited_share, "failed_seeds": list(self.failed_seeds)}
        return head | asdict(self) | tail


def refuse_seen_seeds(seeds: Sequence[int], trained_on: Sequence[int]) -> None:
    """Raise `SeenSeedsError` if an evaluation uses a seed of the training demos, and so the same scene."""
    seen = sorted(set(seeds) & set(trained_on))
    if seen:
        raise SeenSeedsError(
            f"seeds {seen[0]} .. {seen[-1]} ({len(seen)} of {len(seeds)}) are in the policy's training demos, which hold "
            f"{min(trained_on)} .. {max(trained_on)}; choose other seeds, such as --seed {max(trained_on) + 10000}"
        )


def summarize(
    task: str,
    episodes: Sequence[Episode],
    control_dt: float,
    timing: Timing,
    wall_s: float,
    provenance: Mapping[str, Any],
    instructions_in_a_row: int = 0,
) -> Evaluation:
    """The statistics of finished episodes, given in any order.

    A figure that is not finite, such as one that the environment did not report, is left out of its episode and of the mean.

    Args:
        task: name of the task or environment.
        episodes: one or more.
        control_dt: time of one control step [s].
        timing: time and steps of the rollout.
        wall_s: total wall time [s].
        provenance: kept in the result.
        instructions_in_a_row: number of instructions in an episode of a chain; 0 for other tasks.
    """
    ordered = sorted(episodes, key=lambda episode: episode.seed)
    successes = sum(episode.success for episode in ordered)
    table: dict[str, tuple[int, int]] = defaultdict(lambda: (0, 0))
    for episode in ordered:
        solved, tried = table[episode.instruction]
        table[episode.instruction] = (solved + episode.success, tried + 1)
    infos = [{name: value for name, value in e.info.items() if math.isfinite(value)} for e in ordered]
    given = {name: [info[name] for info in infos if name in info] for name in ordered[0].info}
    return Evaluation(
        task=task,
        successes=successes,
        episodes=len(ordered),
        interval=wilson_interval(successes, len(ordered)),
        mean_steps=sum(episode.steps for episode in ordered) / len(ordered),
        control_dt=control_dt,
        per_instruction=dict(sorted(table.items())),
        figures={name: sum(values) / len(values) for name, values in given.items() if values},
        in_a_row=_in_a_row(ordered, instructions_in_a_row),
        outcomes=[
            {"seed": e.seed, "instruction": e.instruction, "success": e.success, "steps": e.steps, **info}
            for e, info in zip(ordered, infos, strict=True)
        ],
        inference_s=timing.inference_s,
        physics_s=timing.physics_s,
        wall_s=wall_s,
        env_steps=timing.env_steps,
        faults=_faults(ordered),
        provenance=provenance,
    )


def _in_a_row(episodes: Sequence[Episode], count: int) -> list[float]:
    """Fraction of the episodes that solved at least 1, 2, ... `count` instructions, as in CALVIN's results."""
    if not count:
        return []
    solved = [episode.info["solved"] for episode in episodes]
    return [sum(each >= least for each in solved) / len(solved) for least in range(1, count + 1)]


def _faults(episodes: Sequence[Episode]) -> dict[str, list[int]]:
    """Seeds of the episodes with a simulator fault, by fault; also logged as warnings."""
    faults: dict[str, list[int]] = defaultdict(list)
    for episode in episodes:
        for fault in episode.faults:
            faults[fault].append(episode.seed)
    for fault, seeds in faults.items():
        LOG.warning(
            "%d episodes count as failures because of a simulator fault (%s): seeds %s", len(seeds), fault, seeds
        )
    return dict(faults)


def wilson_interval(successes: int, episodes: int) -> tuple[float, float]:
    """Wilson's 95 % score interval of a success rate (Wilson 1927)."""
    if not 0 <= successes <= episodes or episodes == 0:
        raise ValueError(
            f"{successes} successes of {episodes} episodes; expected 0 <= successes <= episodes, episodes > 0"
        )
    rate, spread = successes / episodes, Z**2 / episodes
    center = (rate + spread / 2) / (1 + spread)
    half = Z * math.sqrt(rate * (1 - rate) / episodes + spread / (4 * episodes)) / (1 + spread)
    low = 0.0 if successes == 0 else center - half
    high = 1.0 if successes == episodes else center + half
    return low, high


def paired_test(first: Mapping[int, bool], second: Mapping[int, bool]) -> dict[str, int | float]:
    """McNemar's exact test of the difference in success between two policies on the same seeds.

    Args:
        first: success by seed of one policy.
        second: success by seed of the other.

    Returns:
        `only_first` and `only_second`, the numbers of seeds that only one policy solved; `seeds`, the number of shared seeds;
        and the two-sided `p_value`.

    Raises:
        ValueError: they share no seed.
    """
    shared = first.keys() & second.keys()
    if not shared:
        raise ValueError("the two evaluations share no seed; a paired test needs the same --seed and --episodes")
    only_first = sum(first[seed] and not second[seed] for seed in shared)
    only_second = sum(second[seed] and not first[seed] for seed in shared)
    trials = only_first + only_second
    tail = sum(math.comb(trials, k) for k in range(min(only_first, only_second) + 1)) / 2**trials
    return {"only_first": only_first, "only_second": only_second, "p_value": min(1.0, 2 * tail), "seeds": len(shared)}


def shown_p(value: float) -> str:
    """A p-value with its relation, to be printed after the letter p: `= 0.012`, or `< 0.001`."""
    return "< 0.001" if value < 0.001 else f"= {value:.3f}"
