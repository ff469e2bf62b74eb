"""Closed-loop evaluation in the simulator: every episode to its own end, on seeds that the policy was not trained on."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from robopolicy.control.execution import ExecutionOptions
from robopolicy.model.policy import ChunkPolicy
from robopolicy.rollout.actor import PolicyActor
from robopolicy.rollout.episodes import Episode, Timing, run_episodes
from robopolicy.rollout.statistics import Evaluation, refuse_seen_seeds, summarize
from robopolicy.sim.device_rollout import DevicePolicyActor, run_episodes_on_device
from robopolicy.sim.env import RobotVectorEnv
from robopolicy.sim.sharding import Shard


def evaluate(
    policy: Any,
    env: RobotVectorEnv,
    seeds: Sequence[int],
    execution: ExecutionOptions,
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
    wall_s, in_a_row = time.perf_counter() - began, env.task.instructions_in_a_row
    return summarize(env.task.name, episodes, env.control_dt, timing, wall_s, provenance or {}, in_a_row)


def evaluate_shard(
    policy: Any,
    make_env: Callable[[int], RobotVectorEnv],
    seeds: Sequence[int],
    execution: ExecutionOptions,
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
        task, control_dt = env.task, env.control_dt
    finally:
        env.close()
    gathered = shard.gather((part, timing))
    if not shard.first:
        return None
    episodes = [episode for part, _ in gathered for episode in part]
    if sink is not None:
        sink += episodes
    total = Timing.together([timing for _, timing in gathered])
    wall_s, in_a_row = time.perf_counter() - began, task.instructions_in_a_row
    return summarize(task.name, episodes, control_dt, total, wall_s, provenance or {}, in_a_row)


def _rolled_out(
    policy: Any, env: RobotVectorEnv, seeds: Sequence[int], execution: ExecutionOptions, record: bool, timing: Timing
) -> Iterator[Episode]:
    if not env.on_device:
        actor = PolicyActor(policy, env.num_envs, env.control_dt, execution)
        return run_episodes(env, actor, seeds, record=record, timing=timing)
    if not isinstance(policy, ChunkPolicy):
        raise ValueError(
            "worlds on a device run a run folder's policy alone; for an exported policy, or one behind a backbone, give "
            "--physics batch"
        )
    actor = DevicePolicyActor(policy, env, execution)
    return run_episodes_on_device(env, actor, seeds, record=record, timing=timing)
