"""Episodes divided among processes by torch.distributed: each runs its seeds, the first gathers the results.

Processes are started by `torchrun`, or by anything that sets its environment variables; a process alone is one shard.
What travels are results, so gloo does, and on GPUs each process takes the one of its local rank.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist


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

    def agree(self, value: Any) -> Any:
        """The first process's value, in all processes."""
        if self.count == 1:
            return value
        told = [value]
        dist.broadcast_object_list(told)
        return told[0]


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
