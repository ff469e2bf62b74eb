"""The memory state of running episodes, as a value that the caller holds.

With `history="window"` the output at step t is that of the cell run from zero over the last min(t+1, W) frames. The
state keeps W staggered rows per episode, row k having seen the last k+1 frames. A tick shifts the rows by one, puts
a zero state in row 0 and advances all rows in one batched step on the newest frame; the output is the row of
the episode's age. Rows that include frames before the episode's start are never read, so a reset only sets `age = 0`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import torch
from jaxtyping import Bool, Int, Shaped
from torch import Tensor

History: TypeAlias = Literal["window", "carry", "none"]


@dataclass(frozen=True, eq=False)
class MemoryState:
    """The state of a memory for each running episode; `*B` are the batch axes.

    Every method returns a new state and leaves this one unchanged.
    """

    history: History
    """The memory's history, which defines the meaning of `tensors`: window, carry or none."""
    age: Int[Tensor, "*batch"]
    """(*B) frames since the episode began, counted up to W; 0 before its first frame."""
    tensors: tuple[Tensor, ...]
    """window: hidden (and LSTM's cell) state (layers, *B, W, H), or the transformer's last frames (1, *B, W, P);
    carry: (layers, *B, H); none: empty."""

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """*B, the shape of the batch of episodes."""
        return tuple(self.age.shape)

    def reset(self, done: Bool[Tensor, "*batch"]) -> "MemoryState":
        """Reset the episodes where `done` (*B) is True; the others are unchanged, bit for bit."""
        if done.shape != self.age.shape:
            raise ValueError(
                f"done has shape {tuple(done.shape)}; this state holds episodes of shape {self.batch_shape}"
            )
        age = self.age.masked_fill(done, 0)
        if self.history != "carry":
            return replace(self, age=age)
        tensors = []
        for tensor in self.tensors:  # (k, *B, any axes of the memory's own)
            mask = done.reshape(*done.shape, *(1,) * (tensor.dim() - 1 - done.dim()))
            tensors.append(tensor.masked_fill(mask, 0.0))
        return replace(self, age=age, tensors=tuple(tensors))

    def detach(self) -> "MemoryState":
        """The same state, detached from the autograd graph."""
        return replace(self, tensors=tuple(t.detach() for t in self.tensors))

    def clone(self) -> "MemoryState":
        """A copy that shares no memory with this state."""
        return replace(self, age=self.age.clone(), tensors=tuple(t.clone() for t in self.tensors))

    def to(self, *args: Any, **kwargs: Any) -> "MemoryState":
        """Move to a device or cast to a floating dtype, as `Tensor.to`; ages stay integers."""
        tensors = tuple(t.to(*args, **kwargs) for t in self.tensors)
        device = torch.empty(0, device=self.age.device).to(*args, **kwargs).device
        return replace(self, age=self.age.to(device), tensors=tensors)

    def __getitem__(self, index: int | slice | Tensor | Sequence[int]) -> "MemoryState":
        """The episodes at `index` along the batch's first axis."""
        index = list(index) if isinstance(index, Sequence) else index
        return replace(self, age=self.age[index], tensors=tuple(t[:, index] for t in self.tensors))

    def split(self, sizes: int | list[int]) -> tuple["MemoryState", ...]:
        """Parts along the batch's first axis, as `torch.split`; `concat` undoes it."""
        ages = self.age.split(sizes)
        parts = [t.split(sizes, dim=1) for t in self.tensors]
        return tuple(replace(self, age=age, tensors=tuple(part[i] for part in parts)) for i, age in enumerate(ages))

    @staticmethod
    def concat(states: Sequence["MemoryState"]) -> "MemoryState":
        """One state from several, concatenated along the batch's first axis."""
        return _join(torch.cat, states)

    @staticmethod
    def stack(states: Sequence["MemoryState"]) -> "MemoryState":
        """One state from several of equal shape, stacked along a new first batch axis."""
        return _join(torch.stack, states)

    def state_dict(self) -> dict[str, Shaped[Tensor, "..."]]:
        """Named tensors, as safetensors and `torch.save` take them; `load` reads them back."""
        return {f"{self.history}.age": self.age} | {f"{self.history}.{i}": t for i, t in enumerate(self.tensors)}

    @classmethod
    def load(cls, saved: Mapping[str, Tensor]) -> "MemoryState":
        """The inverse of `state_dict`.

        Raises:
            ValueError: the tensors are not those of one state.
        """
        history = next((key.removesuffix(".age") for key in saved if key.endswith(".age")), None)
        if history is None or any(f"{history}.{i}" not in saved for i in range(len(saved) - 1)):
            raise ValueError(f"no state in {', '.join(saved) or 'nothing'}; expected <history>.age, <history>.0, ...")
        tensors = tuple(saved[f"{history}.{i}"] for i in range(len(saved) - 1))
        return cls(history, saved[f"{history}.age"], tensors)  # type: ignore[arg-type]


def shift_in_zero(rows: Tensor, row_axes: int = 1) -> Tensor:
    """Rows (..., W, H) shifted by one: the oldest is dropped, row 0 is zero.

    Args:
        rows: W rows of `row_axes` axes each; (..., W, heads, d, d) has 3.
        row_axes: axes after W.
    """
    axis = -1 - row_axes
    newest = rows.narrow(axis, 0, 1)
    return torch.cat([torch.zeros_like(newest), rows.narrow(axis, 0, rows.shape[axis] - 1)], dim=axis)


def row_of_age(rows: Tensor, age: Tensor) -> Tensor:
    """The row (*B, H) among rows (*B, W, H) that has seen exactly the last `age` (*B) frames, 1 <= age <= W."""
    # Not `take_along_dim`, which would fix B in an exported graph.
    index = (age - 1)[..., None, None].expand(*age.shape, 1, rows.shape[-1])
    return rows.gather(-2, index).squeeze(-2)


def _join(join: Any, states: Sequence[MemoryState]) -> MemoryState:
    if not states:
        raise ValueError("no states to join; expected one or more")
    first = states[0]
    kind = (first.history, len(first.tensors))
    other = next((state for state in states if (state.history, len(state.tensors)) != kind), None)
    if other is not None:
        raise ValueError(
            f"states of different memories: history {first.history!r} with {len(first.tensors)} tensors and "
            f"{other.history!r} with {len(other.tensors)}; join states of one memory"
        )
    tensors = zip(*(state.tensors for state in states), strict=True)
    return replace(
        first, age=join([state.age for state in states], 0), tensors=tuple(join(list(parts), 1) for parts in tensors)
    )
