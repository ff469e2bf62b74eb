"""Closed-loop evaluation in the simulator: every episode to its own end, by one process or divided among several.

Processes are started by `torchrun`, or by anything that sets its environment variables; a single process is one shard. They
exchange only results, for which gloo suffices. Each process uses the GPU of its local rank.
"""

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from robopolicy.control.execution import ExecutionOptions
from robopolicy.model.policy import ChunkPolicy
from robopolicy.rollout.actor import PolicyActor
from robopolicy.rollout.episodes import Episode, Timing, run_episodes
from robopolicy.rollout.statistics import Evaluation, summarize
from robopolicy.sim.device_rollout import DevicePolicyActor, run_episodes_on_device
from robopolicy.sim.env import RobotVectorEnv


@dataclass(frozen=True)
class Shard:
    """One of `count` processes."""

    rank: int = 0
    count: int = 1
    local_rank: int = 0
    """Rank of this process on its machine."""

    @property
    def first(self) -> bool:
        """Whether this is the process that gathers, writes and prints."""
        return self.rank == 0

    def part(self, seeds: Sequence[int]) -> Sequence[int]:
        """This process's share of the seeds: every `count`-th."""
        return seeds[self.rank :: self.count]

    def device(self, name: str) -> str:
        """The device that `cuda` stands for in this process; names with an index are unchanged."""
        return f"cuda:{self.local_rank}" if name == "cuda" and self.count > 1 else name

    def gather(self, values: Any) -> list[Any]:
        """Every process's values in order of rank, in the first process; an empty list in the others."""
        if self.count == 1:
            return [values]
        gathered: list[Any] | None = [None] * self.count if self.first else None
        dist.gather_object(values, gathered)
        return gathered or []

    def broadcast(self, value: Any) -> Any:
        """The first process's value, in all processes."""
        if self.count == 1:
            return value
        shared = [value]
        dist.broadcast_object_list(shared)
        return shared[0]


@contextmanager
def open_shard() -> Iterator[Shard]:
    """This process's shard; the process group exists within the context."""
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        yield Shard()
        return
    rank, local_rank = int(os.environ["RANK"]), int(os.environ.get("LOCAL_RANK", "0"))
    if torch.cuda.is_available():
        torch.cuda.set_device(local_rank % torch.cuda.device_count())
    dist.init_process_group("gloo", rank=rank, world_size=count)
    try:
        yield Shard(rank, count, local_rank)
    finally:
        dist.destroy_process_group()


def evaluate(
    policy: Any,
    env: RobotVectorEnv,
    seeds: Sequence[int],
    execution: ExecutionOptions | None = None,
    *,
    record: bool = False,
    sink: list[Episode] | None = None,
) -> Evaluation:
    """Run `policy` once on every seed and count successes.

    Args:
        policy: what `robopolicy.load_policy` returns, or an exported policy.
        env: worlds of the task, autoreset disabled.
        seeds: one episode each.
        execution: the execution strategy; None: the one saved in the policy's spec.
        record: keep a demo of every episode, for videos.
        sink: where to append the episodes.
    """
    result = evaluate_shard(policy, env, seeds, execution, Shard(), record=record, sink=sink)
    assert result is not None
    return result


def evaluate_shard(
    policy: Any,
    env: RobotVectorEnv,
    seeds: Sequence[int],
    execution: ExecutionOptions | None,
    shard: Shard,
    *,
    provenance: Mapping[str, Any] | None = None,
    record: bool = False,
    sink: list[Episode] | None = None,
) -> Evaluation | None:
    """As `evaluate`, each process on its share of the seeds; the first returns the result of all, the others None.

    Args:
        policy: as for `evaluate`; every process has its own.
        env: as for `evaluate`; every process has its own.
        seeds: of all processes together.
        execution: as for `evaluate`.
        shard: this process.
        provenance: kept in the result.
        record: as for `evaluate`.
        sink: where the first process appends all episodes.
    """
    began = time.perf_counter()
    mine, timing = shard.part(seeds), Timing()
    part = list(_rolled_out(policy, env, mine, execution, record, timing)) if mine else []
    gathered = shard.gather((part, timing))
    if not shard.first:
        return None
    episodes = [episode for part, _ in gathered for episode in part]
    if sink is not None:
        sink += episodes
    total = Timing.together([timing for _, timing in gathered])
    wall_s, in_a_row = time.perf_counter() - began, env.task.instructions_in_a_row
    return summarize(env.task.name, episodes, env.control_dt, total, wall_s, provenance or {}, in_a_row)


def _rolled_out(
    policy: Any,
    env: RobotVectorEnv,
    seeds: Sequence[int],
    execution: ExecutionOptions | None,
    record: bool,
    timing: Timing,
) -> Iterator[Episode]:
    if not env.on_device:
        actor = PolicyActor(policy, env.num_envs, env.control_dt, execution)
        return run_episodes(env, actor, seeds, record=record, timing=timing)
    if not isinstance(policy, ChunkPolicy):
        raise ValueError(
            f"simulation on the GPU needs the ChunkPolicy of a run folder, got {type(policy).__name__}; for an exported "
            "policy, or one with a backbone, use --physics batch"
        )
    actor = DevicePolicyActor(policy, env, execution)
    return run_episodes_on_device(env, actor, seeds, record=record, timing=timing)
