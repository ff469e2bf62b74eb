"""The order in which segments are sampled, and a loader of batches that can be stopped and resumed at any batch."""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from robopolicy.demos.rows import DemoRows
from robopolicy.demos.store import DemoStore
from robopolicy.types import Batch

PREFETCHED = 2
"""Number of batches prefetched while the model computes, if making a batch reads the disk or copies data."""


@runtime_checkable
class Order(Protocol):
    """Which segments form the batches of an epoch; depends only on the epoch's number."""

    @property
    def length(self) -> int:
        """Batches of an epoch."""
        ...

    def epoch(self, number: int) -> tuple[Tensor, Tensor | None]:
        """(batches, batch) int64: first row of each segment, -1 for none; and for carried memory, True where a demo begins."""
        ...


@dataclass(frozen=True)
class Shuffled:
    """Every step of every demo starts one segment per epoch, in random order; an incomplete last batch is left out."""

    rows: DemoRows
    batch_size: int
    seed: int
    source_weights: Sequence[float] = ()
    """Sampling weight of each source, independent of its size; if given, segments are drawn with replacement."""
    first_step_share: float = 0.0
    """Fraction of the segments that are moved to the first step of their demo."""
    row_weights: np.ndarray | None = None
    """(rows,) sampling weight of each row as the start of a segment; if given, segments are drawn with replacement."""

    @property
    def length(self) -> int:
        """See `Order`."""
        return max(1, self.rows.steps // self.batch_size)

    def epoch(self, number: int) -> tuple[Tensor, None]:
        """See `Order`."""
        # NumPy's generator, since torch's CPU generator uses only 32 bits of the seed.
        random = np.random.default_rng([self.seed, number])
        count = self.length * self.batch_size
        if self.source_weights or self.row_weights is not None:
            starts = self._weighted(count, random)
        else:
            rounds = -(-count // self.rows.steps)  # more than one if the demos have fewer steps than a batch
            starts = np.concatenate([random.permutation(self.rows.steps) for _ in range(rounds)])[:count]
        if self.first_step_share:
            first_steps = np.repeat(self.rows.offsets[:-1], self.rows.lengths)
            starts = np.where(random.random(count) < self.first_step_share, first_steps[starts], starts)
        return torch.from_numpy(starts.reshape(self.length, self.batch_size)), None

    def _weighted(self, count: int, random: np.random.Generator) -> np.ndarray:
        weights = np.ones(self.rows.steps) if self.row_weights is None else self.row_weights.astype(np.float64)
        if self.source_weights:
            source = np.repeat(self.rows.source_id, self.rows.lengths)
            weights = weights * (np.asarray(self.source_weights) / np.bincount(source, weights))[source]
        return random.choice(len(weights), size=count, p=weights / weights.sum())


@dataclass(frozen=True)
class InOrder:
    """For validation: segments that start at every step, or at `limit` evenly spaced steps; the same each epoch."""

    rows: DemoRows
    batch_size: int
    limit: int = 4096
    """Largest number of segments in an epoch."""

    @property
    def length(self) -> int:
        """See `Order`."""
        return -(-min(self.rows.steps, self.limit) // self.batch_size)

    def epoch(self, number: int) -> tuple[Tensor, None]:
        """See `Order`; the last batch is filled up with -1."""
        count = min(self.rows.steps, self.limit)
        starts = torch.full((self.length * self.batch_size,), -1)
        starts[:count] = torch.arange(count) * self.rows.steps // count
        return starts.view(self.length, self.batch_size), None


@dataclass(frozen=True)
class Carried:
    """Whole demos distributed to episode streams, each cut into consecutive segments, for truncated BPTT."""

    rows: DemoRows
    batch_size: int
    segment: int
    stride: int = 1
    seed: int | None = None
    """Seed of the order of the demos; None: the order of the files."""

    @property
    def length(self) -> int:
        """Batches of the first epoch; other epochs may have a few batches more or fewer."""
        return len(self.epoch(0)[0])

    def epoch(self, number: int) -> tuple[Tensor, Tensor]:
        """See `Order`."""
        demos = np.arange(len(self.rows.lengths))
        if self.seed is not None:
            demos = np.random.default_rng([self.seed, number]).permutation(demos)
        starts, begins = episode_streams(self.rows.lengths, demos.tolist(), self.batch_size, self.segment, self.stride)
        return torch.from_numpy(starts), torch.from_numpy(begins)


def episode_streams(
    lengths: Int[np.ndarray, " demos"], order: Sequence[int], count: int, segment: int, stride: int = 1
) -> tuple[Int[np.ndarray, "steps streams"], Bool[np.ndarray, "steps streams"]]:
    """Whole demos distributed to `count` episode streams, each cut into consecutive segments, for truncated BPTT.

    Each demo in turn goes to the shortest stream, so that all streams end at about the same time.

    Args:
        lengths: steps of every demo; the rows of a demo follow those of the demo before it.
        order: indices of the demos, in the order in which they are distributed.
        count: number of streams, which is the number of segments of one batch.
        segment: S, frames of a segment.
        stride: rows from one frame to the next.

    Returns:
        The row at which each segment starts (-1 where the stream has no demo left), and whether the segment begins a demo.
    """
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    starts: list[list[int]] = [[] for _ in range(count)]
    begins: list[list[bool]] = [[] for _ in range(count)]
    for demo in order:
        stream = min(range(count), key=lambda number: len(starts[number]))
        rows = range(int(offsets[demo]), int(offsets[demo + 1]), segment * stride)
        starts[stream].extend(rows)
        begins[stream].extend(row == rows[0] for row in rows)
    steps = max(len(stream) for stream in starts)
    table = np.full((steps, count), -1, dtype=np.int64)
    first = np.ones((steps, count), dtype=bool)
    for number, stream in enumerate(starts):
        table[: len(stream), number] = stream
        first[: len(stream), number] = begins[number]
    return table, first


class BatchLoader:
    """Batches of one process, epoch after epoch: `for batch in loader` is one epoch, or what is left of it.

    The order depends only on seed and epoch, so it is the same for any number of reader threads. With several processes, each
    takes its share of every batch, so that together they train on the same batches as a single process.

    Args:
        store: gathers the segments.
        order: order of the segments.
        rank: number of this process.
        processes: number of processes that share each batch.
        before_epoch: called when an epoch begins or is continued.
    """

    def __init__(
        self,
        store: DemoStore,
        order: Order,
        rank: int = 0,
        processes: int = 1,
        before_epoch: Callable[[], None] = lambda: None,
    ) -> None:
        self.store, self.order, self._before_epoch = store, order, before_epoch
        self._rank, self._processes = rank, processes
        self._epoch = self._position = 0
        self.waited_s = 0.0
        """Time spent making or waiting for batches so far [s]."""

    def __len__(self) -> int:
        """Batches of an epoch."""
        return self.order.length

    def __iter__(self) -> Iterator[Batch]:
        self._before_epoch()
        starts, begins = self._share(self._epoch)
        if self._position >= len(starts):
            self._next_epoch()
            starts, begins = self._share(self._epoch)
        places = range(self._position, len(starts))

        def made(place: int) -> Batch:
            return self.store.gather(starts[place], None if begins is None else begins[place])

        batches = map(made, places) if self.store.gathers_at_once else prefetched(made, places)
        began = time.perf_counter()
        for batch in batches:
            self.waited_s += time.perf_counter() - began
            self._position += 1
            yield batch
            began = time.perf_counter()
        self._next_epoch()

    def state_dict(self) -> dict[str, Any]:
        """Position in the epoch, and the sizes that it depends on."""
        return {"epoch": self._epoch, "position": self._position, "steps": len(self.store), "length": len(self)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue at that position.

        Raises:
            ValueError: the state was saved with different demos or a different batch size.
        """
        now = self.state_dict()
        if (state_dict["steps"], state_dict["length"]) != (now["steps"], now["length"]):
            raise ValueError(
                f"the run was saved with {state_dict['steps']} steps of demos and {state_dict['length']} batches an epoch; "
                f"these demos and batch size give {now['steps']} and {now['length']}; resume with the same"
            )
        self._epoch, self._position = state_dict["epoch"], state_dict["position"]

    def _next_epoch(self) -> None:
        self._epoch, self._position = self._epoch + 1, 0

    def _share(self, epoch: int) -> tuple[Tensor, Tensor | None]:
        starts, begins = self.order.epoch(epoch)
        size = starts.shape[1] // self._processes
        mine = slice(self._rank * size, (self._rank + 1) * size)
        device = self.store.start_device
        return starts[:, mine].to(device), None if begins is None else begins[:, mine].to(device)


def prefetched(make: Callable[[int], Batch], places: Iterable[int]) -> Iterator[Batch]:
    """`make(place)` for each place, computed ahead of use in a thread; its exceptions are raised here."""
    ahead, places = deque[Future[Batch]](), iter(places)
    with ThreadPoolExecutor(1, "batch-prefetch") as pool:
        try:
            for place in islice(places, PREFETCHED):
                ahead.append(pool.submit(make, place))
            while ahead:
                batch = ahead.popleft().result()
                ahead.extend(pool.submit(make, place) for place in islice(places, 1))
                yield batch
        finally:  # also if the training stops in the middle of an epoch
            for future in ahead:
                future.cancel()
