"""Converts between episodes and the sequences on which a recurrent policy is trained.

There are two ways of cutting, each with its inverse:

- Truncated back-propagation through time: episodes (E, S, ...) -> chunks of T steps (C, T, E, ...), each with the
  state at its first step, (layers, E, H). See `split_episodes`, `join_episodes`, `start_states`, `unroll_truncated`.
- Recurrent mini-batches: a time-major rollout (T, E, ...) in which episodes end and begin -> one trajectory per episode,
  padded to the longest, with a mask and the state saved at its first step. See `Trajectories`, `SequenceStorage`.

A cell's state is as in `torch.nn`: for an LSTM a pair of tensors (layers, E, H), for a GRU a single tensor. A policy's
`MemoryState`, of any kind, only needs to be saved at the rollout's first step, since every later trajectory begins an
episode (`Trajectories.start_states`). Steps are a tensor or a TensorDict, whose batch size is the leading axes named here.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, TypeAlias, cast

import torch
from jaxtyping import Bool, Float, Int, Shaped
from tensordict import TensorDict
from torch import Tensor

from robopolicy.model.streaming import MemoryState

Steps: TypeAlias = Tensor | TensorDict
CellState: TypeAlias = Tensor | tuple[Tensor, ...]


def split_episodes(
    episodes: Steps, steps: int, remainder: Literal["drop", "pad"] = "pad"
) -> tuple[Steps, Bool[Tensor, "chunks steps episodes"]]:
    """Chunks (C, steps, E, ...) of episodes (E, S, ...), in order and time-major, and which of their steps are real.

    A remainder of S / steps is dropped (1000 steps in chunks of 128: 7 chunks, 104 steps lost), or padded with zeros.

    Raises:
        ValueError: `steps` is below 1, `remainder` is unknown, or dropping it leaves no chunk.
    """
    if steps < 1:
        raise ValueError(f"chunks of {steps} steps; expected 1 or more")
    if remainder not in ("drop", "pad"):
        raise ValueError(f"remainder {remainder!r} is unknown; expected drop or pad")
    count, length = episodes.shape[0], episodes.shape[1]
    if remainder == "drop" and length < steps:
        raise ValueError(
            f"episodes of {length} steps hold no chunk of {steps}; pad the remainder or shorten the chunks"
        )
    chunks = length // steps if remainder == "drop" else -(-length // steps)
    device = episodes.device or torch.device("cpu")
    time = torch.arange(chunks * steps, device=device)
    valid = (time < length).view(chunks, steps, 1).expand(-1, -1, count)
    index = time.clamp(max=length - 1).view(chunks, steps)

    def cut(rows: Tensor) -> Tensor:
        """(E, S, ...) -> (C, steps, E, ...)."""
        picked = rows.movedim(0, 1)[index]
        return picked.masked_fill(~_like(valid, picked), 0)

    return _each(cut, episodes, (chunks, steps, count)), valid


def join_episodes(chunks: Steps, length: int) -> Steps:
    """The inverse of `split_episodes`: chunks (C, T, E, ...) -> episodes (E, min(length, C * T), ...)."""
    number, steps, count = chunks.shape[:3]
    kept = min(length, number * steps)
    return _each(lambda rows: rows.flatten(0, 1)[:kept].movedim(0, 1), chunks, (count, kept))


def start_states(recorded: CellState, steps: int, chunks: int) -> list[CellState]:
    """The state at the first step of each chunk, (layers, E, H), from the states recorded before every step.

    Args:
        recorded: each tensor (S, layers, E, H).
        steps: T, the steps of one chunk.
        chunks: C, number of chunks.
    """
    return [map_state(lambda saved, first=chunk * steps: saved[first].detach(), recorded) for chunk in range(chunks)]


def unroll_truncated(
    chunks: Steps, unroll: Callable[[Any, Any], tuple[Any, CellState]], state: CellState
) -> Iterator[Any]:
    """Run `unroll(frames (T, E, ...), state) -> (output, state)` over chunks (C, T, E, ...), without gradients between chunks.

    Yields each chunk's output, ready for a loss and `backward()`; with one chunk, this is full back-propagation through time.
    """
    for frames in chunks:
        output, state = unroll(frames, state)
        yield output
        state = map_state(Tensor.detach, state)


def map_state(function: Callable[[Tensor], Tensor], state: CellState) -> CellState:
    """Apply a function to a cell's state, an LSTM's pair or a GRU's single tensor."""
    return function(state) if isinstance(state, Tensor) else tuple(function(part) for part in state)


@dataclass(frozen=True)
class Trajectories:
    """Where the episodes of a rollout begin and end: T steps of E environments hold J trajectories.

    In each environment, a trajectory begins at step 0 and after every step where `done` is True. Trajectories are numbered by
    environment, then time.
    """

    done: Bool[Tensor, "time environments"]
    """True where an episode ended on that step."""

    @cached_property
    def starts(self) -> Bool[Tensor, "time environments"]:
        """True where a trajectory begins."""
        starts = torch.ones_like(self.done)
        starts[1:] = self.done[:-1]
        return starts

    @cached_property
    def number(self) -> Int[Tensor, "time environments"]:
        """Which trajectory each step belongs to."""
        return (self.starts.t().flatten().cumsum(0) - 1).view(self.done.shape[1], -1).t()

    @cached_property
    def lengths(self) -> Int[Tensor, "trajectories"]:
        """Steps of each trajectory."""
        return torch.bincount(self.number.flatten())

    @cached_property
    def valid(self) -> Bool[Tensor, "steps trajectories"]:
        """(S, J) True where a step of the padded trajectories is real; S is the length of the longest one."""
        longest = int(self.lengths.max())
        return torch.arange(longest, device=self.done.device).unsqueeze(1) < self.lengths

    def split(self, rollout: Steps) -> Steps:
        """A rollout (T, E, ...) -> its trajectories (S, J, ...), padded with zeros to the longest."""
        padded, total = tuple(self.valid.shape), len(self.done)
        first = self.lengths.cumsum(0) - self.lengths
        index = (first + torch.arange(padded[0], device=first.device).unsqueeze(1)).clamp(max=self.done.numel() - 1)

        def cut(rows: Tensor) -> Tensor:
            picked = rows[index % total, index // total]
            return picked.masked_fill(~_like(self.valid, picked), 0)

        return _each(cut, rollout, padded)

    def join(self, trajectories: Steps) -> Steps:
        """The inverse of `split`: (S, J, ...) -> (T, E, ...); gradients pass."""
        first = self.lengths.cumsum(0) - self.lengths
        steps = (
            torch.arange(self.done.numel(), device=first.device).view(self.done.shape[1], -1).t() - first[self.number]
        )
        return _each(lambda rows: rows[steps, self.number], trajectories, tuple(self.done.shape))

    def first(self, recorded: CellState) -> CellState:
        """States (T, layers, E, H) before each step -> those of the trajectories' first steps, (layers, J, H)."""
        return map_state(
            lambda saved: saved.permute(2, 0, 1, 3)[self.starts.t()].transpose(0, 1).contiguous().detach(), recorded
        )

    def start_states(self, before: MemoryState) -> MemoryState:
        """Memory state of E environments before the rollout's first step -> that of J trajectories before their first steps.

        The first trajectory of each environment continues the state; the others begin an episode.
        """
        environment, time = self.starts.t().nonzero(as_tuple=True)
        return before[environment].reset(time > 0).detach()


@dataclass(frozen=True)
class RecurrentMiniBatch:
    """The trajectories of a group of environments, and the same steps in the order of the rollout."""

    steps: TensorDict
    """[T, e]: the group's steps in the order of the rollout."""
    layout: Trajectories
    """`layout.join(outputs)` maps (S, J, ...) back to (T, e, ...)."""
    state: CellState | None
    """(layers, J, H): each trajectory's state at its first step; None where no states were recorded."""
    environments: Int[Tensor, "e"]
    """Which environments of the rollout are in the group."""

    @cached_property
    def trajectories(self) -> TensorDict:
        """[S, J]: padded trajectories, time-major."""
        return cast(TensorDict, self.layout.split(self.steps))

    @property
    def valid(self) -> Bool[Tensor, "steps trajectories"]:
        """True where a step of `trajectories` is real."""
        return self.layout.valid


class SequenceStorage:
    """A rollout of E environments in one TensorDict of batch size [T, E], filled a step at a time.

    Every step needs the keys `terminated` and `truncated` (E,) bool: an episode ends with either, but the
    value of the next state is 0 only after `terminated` (`bootstrap`).
    """

    def __init__(self, steps: int, environments: int, device: str | torch.device = "cpu") -> None:
        self._empty = TensorDict({}, batch_size=[steps, environments], device=torch.device(device))
        self._data: TensorDict = self._empty
        self._filled = 0
        self._single_state = False

    def __len__(self) -> int:
        return self._filled

    def append(self, step: TensorDict, state: CellState | None = None) -> None:
        """Add the data of one step [E], and optionally the cell's state (layers, E, H) before it.

        Raises:
            OverflowError: all T steps are filled; `clear()` first.
            KeyError: `terminated` or `truncated` is missing, or the step's keys differ from those of earlier steps.
        """
        if self._filled == self._data.shape[0]:
            raise OverflowError(f"the storage holds {self._filled} steps already; clear() it before the next rollout")
        if missing := {"terminated", "truncated"} - set(step.keys()):
            raise KeyError(
                f"a step needs {' and '.join(sorted(missing))}; it has: {', '.join(sorted(map(str, step.keys())))}"
            )
        row = step.clone()
        if state is not None:
            parts = (state,) if isinstance(state, Tensor) else state
            row["state"] = TensorDict(
                {str(i): part.detach().transpose(0, 1) for i, part in enumerate(parts)}, batch_size=row.batch_size
            )
        if self._filled == 0:
            self._single_state = isinstance(state, Tensor)
            self._data = row.expand(self._empty.shape).clone().zero_().to(self._empty.device)
        if _names(row) != _names(self._data):
            raise KeyError(
                f"step {self._filled} holds {', '.join(_names(row))}; the steps before it hold "
                f"{', '.join(_names(self._data))}; give every step the same, its state included"
            )
        self._data[self._filled] = row
        self._filled += 1

    def add(self, name: str, values: Shaped[Tensor, "time environments ..."]) -> None:
        """Add a key computed from the whole rollout, such as advantages, to its steps.

        Raises:
            ValueError: the storage is not full; later steps would lack the key.
        """
        if self._filled < self._data.shape[0]:
            raise ValueError(f"{self._filled} of {self._data.shape[0]} steps are filled; add {name!r} when all are")
        self._data[name] = values

    def clear(self) -> None:
        """Start again at step 0; the next rollout may have different keys."""
        self._filled = 0
        self._data = self._empty

    @property
    def steps(self) -> TensorDict:
        """[T, E]: the steps appended so far, without states."""
        return self._data[: self._filled].exclude("state")

    @property
    def states(self) -> CellState | None:
        """(T, layers, E, H): the states before each step; None if no states were recorded."""
        if "state" not in self._data.keys():  # noqa: SIM118 (a TensorDict iterates over its first axis)
            return None
        recorded = self._data["state"][: self._filled]
        parts = tuple(recorded[name].transpose(1, 2) for name in sorted(recorded.keys()))
        return parts[0] if self._single_state else parts

    @property
    def done(self) -> Bool[Tensor, "time environments"]:
        """True where an episode ended."""
        return self.steps["terminated"] | self.steps["truncated"]

    @property
    def bootstrap(self) -> Bool[Tensor, "time environments"]:
        """True where the value of the next state counts: everywhere except after a terminated step."""
        return ~self.steps["terminated"]

    def mini_batches(self, groups: int, generator: torch.Generator | None = None) -> Iterator[RecurrentMiniBatch]:
        """The rollout in `groups` mini-batches of whole environments, shuffled if a generator is given.

        Raises:
            ValueError: there are more groups than environments, or no steps.
        """
        environments = self._data.shape[1]
        if not self._filled:
            raise ValueError("the storage holds no steps; append() a rollout first")
        if not 1 <= groups <= environments:
            raise ValueError(f"{groups} mini-batches of {environments} environments; expected 1 .. {environments}")
        order = torch.arange(environments) if generator is None else torch.randperm(environments, generator=generator)
        steps, states, done = self.steps, self.states, self.done
        for group in order.to(done.device).tensor_split(groups):
            layout = Trajectories(done[:, group])
            picked = None if states is None else map_state(lambda saved, group=group: saved[:, :, group], states)
            start = None if picked is None else layout.first(picked)
            yield RecurrentMiniBatch(steps[:, group], layout, start, group)


class EpisodeStatistics:
    """Return, length and success of every episode that ends, over E environments."""

    def __init__(self, environments: int, device: str | torch.device = "cpu") -> None:
        self._returns = torch.zeros(environments, device=device)
        self._lengths = torch.zeros(environments, dtype=torch.int64, device=device)

    def add(
        self,
        reward: Float[Tensor, "environments"],
        done: Bool[Tensor, "environments"],
        success: Bool[Tensor, "environments"],
    ) -> dict[str, Shaped[Tensor, "ended"]]:
        """Add one step; returns `return`, `length` and `success` of the episodes that ended with it."""
        self._returns += reward
        self._lengths += 1
        ended = {"return": self._returns[done], "length": self._lengths[done], "success": success[done]}
        self._returns[done] = 0
        self._lengths[done] = 0
        return ended


def _each(function: Callable[[Tensor], Tensor], steps: Steps, leading: tuple[int, ...]) -> Steps:
    if isinstance(steps, Tensor):
        return function(steps)
    return cast(TensorDict, steps.apply(function, batch_size=leading))


def _names(steps: TensorDict) -> list[str]:
    """All keys; those of nested entries as `outer.inner`."""
    keys = steps.keys(include_nested=True, leaves_only=True)
    return sorted(key if isinstance(key, str) else ".".join(key) for key in keys)


def _like(mask: Tensor, rows: Tensor) -> Tensor:
    return mask.reshape(*mask.shape, *(1,) * (rows.ndim - mask.ndim))
