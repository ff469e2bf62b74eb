"""Success rates one can rely on: every episode to its own end, on seeds the policy was not trained on, with an interval."""

import logging
import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from robopolicy.config import ExecutionConfig
from robopolicy.model.policy import ChunkPolicy
from robopolicy.sim.device_rollout import DevicePolicyActor, run_episodes_on_device
from robopolicy.sim.env import RobotVectorEnv
from robopolicy.sim.physics import Fault
from robopolicy.sim.rollout import Episode, PolicyActor, Timing, run_episodes
from robopolicy.sim.sharding import Shard
from robopolicy.sim.tasks.chain import Chain

LOG = logging.getLogger(__name__)


class SeenSeedsError(ValueError):
    """Seeds to be evaluated are among those the policy was trained on."""


@dataclass(frozen=True)
class Evaluation:
    """What a closed-loop evaluation found."""

    task: str
    successes: int
    episodes: int
    interval: tuple[float, float]
    """Wilson's 95 % interval of the success rate."""
    mean_steps: float
    """Mean length of an episode [control steps]."""
    control_dt: float
    """Seconds of one control step."""
    per_instruction: Mapping[str, tuple[int, int]]
    """Successes and episodes of each instruction."""
    figures: Mapping[str, float]
    """Means of the task's own figures, such as `solved` of a chain."""
    in_a_row: Sequence[float]
    """Share of a chain's episodes that solved 1, 2, ... instructions or more; empty for other tasks."""
    outcomes: Sequence[Mapping[str, Any]]
    """Seed, instruction, success and steps of every episode, by seed."""
    inference_s: float
    """Wall time in the policy [s]."""
    physics_s: float
    """Wall time in physics, pictures and tasks [s]."""
    wall_s: float
    """Wall time in all [s]."""
    env_steps: int
    """Control steps of all episodes together."""
    faults: Mapping[str, Sequence[int]] = field(default_factory=dict)
    """Seeds of the episodes that failed because the simulation broke, by `Fault`; none is what one expects."""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """Policy, command and versions, as the caller states them."""

    @property
    def success_rate(self) -> float:
        """Successes / episodes."""
        return self.successes / self.episodes

    @property
    def failed_seeds(self) -> tuple[int, ...]:
        """Seeds of the episodes that failed."""
        return tuple(outcome["seed"] for outcome in self.outcomes if not outcome["success"])

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; `success_rate`, `successes`, `episodes` and `interval` first."""
        head = {"success_rate": self.success_rate, "successes": self.successes, "episodes": self.episodes}
        return head | asdict(self) | {"failed_seeds": list(self.failed_seeds)}


def evaluate(
    policy: Any,
    env: RobotVectorEnv,
    seeds: Sequence[int],
    execution: ExecutionConfig,
    *,
    trained_on: Sequence[int] = (),
    provenance: Mapping[str, Any] | None = None,
    record: bool = False,
    sink: list[Episode] | None = None,
) -> Evaluation:
    """Run `policy` once on every seed and count successes.

    Args:
        policy: what `robopolicy.load_policy` gives, or an exported policy.
        env: Worlds of the task, autoreset disabled.
        seeds: One episode each.
        execution: Which action of which chunk is executed when.
        trained_on: Seeds of the demonstrations the policy has seen.
        provenance: Kept in the result.
        record: Keep a demo of every episode, for videos.
        sink: Where to append the episodes as they end, for progress and videos.

    Raises:
        SeenSeedsError: some seeds are among those trained on.
    """
    refuse_seen_seeds(seeds, trained_on)
    timing = Timing()
    began = time.perf_counter()
    episodes = []
    for episode in _rolled_out(policy, env, seeds, execution, record, timing):
        episodes.append(episode)
        if sink is not None:
            sink.append(episode)
    return summarize(env.task.name, episodes, env.control_dt, timing, time.perf_counter() - began, provenance or {})


def evaluate_shard(
    policy: Any,
    make_env: Callable[[int], RobotVectorEnv],
    seeds: Sequence[int],
    execution: ExecutionConfig,
    shard: Shard,
    *,
    num_envs: int = 64,
    provenance: Mapping[str, Any] | None = None,
    record: bool = False,
    sink: list[Episode] | None = None,
) -> Evaluation | None:
    """As `evaluate`, each process on its share of the seeds; the first gives what came out of all, the others None.

    Args:
        policy: as for `evaluate`; every process has its own.
        make_env: Number of worlds -> the worlds.
        seeds: Of all processes together.
        execution: as for `evaluate`.
        shard: This process.
        num_envs: Worlds at once in this process, at most.
        provenance: as for `evaluate`.
        record: as for `evaluate`.
        sink: Where the first process appends all episodes.
    """
    began = time.perf_counter()
    mine, timing, part = shard.part(seeds), Timing(), []
    env = make_env(max(1, min(num_envs, len(mine))))
    try:
        part = list(_rolled_out(policy, env, mine, execution, record, timing)) if mine else []
        task, control_dt = env.task.name, env.control_dt
    finally:
        env.close()
    gathered = shard.gather((part, timing))
    if not shard.first:
        return None
    episodes = [episode for part, _ in gathered for episode in part]
    if sink is not None:
        sink += episodes
    total = Timing.together([timing for _, timing in gathered])
    return summarize(task, episodes, control_dt, total, time.perf_counter() - began, provenance or {})


def _rolled_out(
    policy: Any, env: RobotVectorEnv, seeds: Sequence[int], execution: ExecutionConfig, record: bool, timing: Timing
) -> Iterator[Episode]:
    if not env.on_device:
        actor = PolicyActor(policy, env.num_envs, env.control_dt, execution)
        return run_episodes(env, actor, seeds, record=record, timing=timing)
    if not isinstance(policy, ChunkPolicy):
        raise ValueError("an exported policy runs on the CPU with physics 'batch'; for 'warp' give its run folder")
    actor = DevicePolicyActor(policy, env, execution)
    return run_episodes_on_device(env, actor, seeds, record=record, timing=timing)


def refuse_seen_seeds(seeds: Sequence[int], trained_on: Sequence[int]) -> None:
    """Raise `SeenSeedsError` where an evaluation would run on a scene of the training demos."""
    seen = sorted(set(seeds) & set(trained_on))
    if seen:
        raise SeenSeedsError(
            f"seeds {seen[0]} .. {seen[-1]} ({len(seen)} of {len(seeds)}) are in the policy's training demos, which hold "
            f"{min(trained_on)} .. {max(trained_on)}; evaluate on others, such as --seed {max(trained_on) + 10000}"
        )


def summarize(
    task: str,
    episodes: Sequence[Episode],
    control_dt: float,
    timing: Timing,
    wall_s: float,
    provenance: Mapping[str, Any],
) -> Evaluation:
    """The statistics of finished episodes, whatever order they ended in."""
    ordered = sorted(episodes, key=lambda episode: episode.seed)
    successes = sum(episode.success for episode in ordered)
    table: dict[str, tuple[int, int]] = defaultdict(lambda: (0, 0))
    for episode in ordered:
        solved, tried = table[episode.instruction]
        table[episode.instruction] = (solved + episode.success, tried + 1)
    names = ordered[0].info if ordered else {}
    return Evaluation(
        task=task,
        successes=successes,
        episodes=len(ordered),
        interval=wilson_interval(successes, len(ordered)),
        mean_steps=sum(episode.steps for episode in ordered) / len(ordered),
        control_dt=control_dt,
        per_instruction=dict(sorted(table.items())),
        figures={name: sum(episode.info[name] for episode in ordered) / len(ordered) for name in names},
        in_a_row=_in_a_row(task, ordered),
        outcomes=[
            {"seed": e.seed, "instruction": e.instruction, "success": e.success, "steps": e.steps, **e.info}
            for e in ordered
        ],
        inference_s=timing.inference_s,
        physics_s=timing.physics_s,
        wall_s=wall_s,
        env_steps=timing.env_steps,
        faults=_faults(ordered),
        provenance=provenance,
    )


def _in_a_row(task: str, episodes: Sequence[Episode]) -> list[float]:
    """As CALVIN reports a policy."""
    if task != Chain.name:
        return []
    solved = [episode.info["solved"] for episode in episodes]
    return [sum(each >= count for each in solved) / len(solved) for count in range(1, Chain().length + 1)]


def _faults(episodes: Sequence[Episode]) -> dict[str, list[int]]:
    """Seeds of the episodes in which the simulation broke, by what was wrong; said aloud."""
    faults: dict[str, list[int]] = {}
    for kind in Fault:
        if seeds := [episode.seed for episode in episodes if episode.fault & kind]:
            faults[str(kind.name).lower()] = seeds
            LOG.warning(
                "%d episodes count as failures: the simulation broke (%s), seeds %s", len(seeds), kind.name, seeds
            )
    return faults


def wilson_interval(successes: int, episodes: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson's score interval of a success rate; 95 % by default (Wilson 1927)."""
    if not 0 <= successes <= episodes or episodes == 0:
        raise ValueError(
            f"{successes} successes of {episodes} episodes; expected 0 <= successes <= episodes, episodes > 0"
        )
    rate, spread = successes / episodes, z * z / episodes
    centre = (rate + spread / 2) / (1 + spread)
    half = z * math.sqrt(rate * (1 - rate) / episodes + spread / (4 * episodes)) / (1 + spread)
    low = 0.0 if successes == 0 else centre - half
    high = 1.0 if successes == episodes else centre + half
    return low, high


def paired_test(first: Mapping[int, bool], second: Mapping[int, bool]) -> dict[str, int | float]:
    """McNemar's exact test between two policies on the same seeds: is their difference in success chance?

    Args:
        first: Success by seed of one policy.
        second: Success by seed of the other.

    Returns:
        `only_first` and `only_second`, the seeds that just one of them solved, and the two-sided `p_value`.

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
