"""Holds the demos as flat arrays on the model's device, and gathers batches of segments without a Python loop over samples."""

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from robopolicy.demos.rows import DemoRows
from robopolicy.types import Batch


class DemoStore:
    """Gathers segments of S frames, the chunk of K actions that starts at each frame, and their masks.

    The low-dimensional keys are concatenated to one row per step, so that a segment is one contiguous block of memory and a
    batch is one `index_select` over overlapping blocks. Each demo is followed by copies of its last row, for segments that
    extend beyond its end. Images and tokens are not padded with copies: beyond the end of a demo, its last row is read again.

    Args:
        rows: the demos.
        segment: S, number of frames of a segment.
        chunk: K, number of actions from each frame on.
        stride: number of control steps from one frame to the next.
        action_transform: maps the actions (rows, width) to the action targets (rows, A+G); None: they are the same.
        device: the device on which batches are made.
    """

    def __init__(
        self,
        rows: DemoRows,
        *,
        segment: int,
        chunk: int,
        stride: int = 1,
        action_transform: Callable[[Tensor], Tensor] | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.rows, self.segment, self.chunk, self.stride = rows, segment, chunk, stride
        self.device = torch.device(device)
        # (S, K): number of rows from the segment's start to each action of each frame.
        offsets = stride * np.arange(segment)[:, None] + np.arange(chunk)
        self._offsets = torch.from_numpy(offsets).to(self.device)
        self._columns: dict[str, tuple[slice, tuple[int, ...]]] = {}
        self._frame_span = (segment - 1) * stride + 1
        self._action_span = self._frame_span + chunk - 1
        padded = _padded_rows(rows.lengths, self._action_span - 1)
        targets = torch.from_numpy(rows.actions)
        targets = targets if action_transform is None else action_transform(targets)
        self._target_width = targets.shape[-1]
        self._targets = _blocks(targets[padded].to(self.device, torch.float32), self._action_span)
        low_dim = self._side_by_side()
        self._low_dim_width = low_dim.shape[1]
        self._low_dim = _blocks(torch.from_numpy(low_dim[padded]).to(self.device), self._frame_span)
        self._lookup = self._start_table().to(self.device)
        self._ends = torch.from_numpy(np.append(np.repeat(rows.offsets[1:], rows.lengths), 1)).to(self.start_device)

    def __len__(self) -> int:
        """Number of segments: one starts at every row."""
        return self.rows.steps

    @property
    def gathers_at_once(self) -> bool:
        """Whether `gather` needs neither the disk nor a copy from host memory to the device."""
        return (
            not self.rows.large
            or self.rows.placement == "device"
            or (self.rows.placement, self.device.type) == ("host", "cpu")
        )

    @property
    def start_device(self) -> torch.device:
        """The device on which `gather` expects `starts`: the one where rows of images and tokens are looked up."""
        return self.device if self.gathers_at_once else torch.device("cpu")

    def gather(self, starts: Int[Tensor, " batch"], episode_start: Tensor | None = None) -> Batch:
        """The segments that start at these rows (B,); the start -1 gives a segment without valid frames."""
        number = (starts % (len(self) + 1)).to(self.device, non_blocking=True)
        place, remaining, instruction = self._lookup.index_select(1, number).unbind(0)
        count, width = len(starts), self._target_width
        action_valid = self._offsets < remaining.view(-1, 1, 1)
        actions = self._targets.index_select(0, place)
        # Action k of frame s is row s * stride + k of the block.
        sizes, strides = (
            (count, self.segment, self.chunk, width),
            (actions.shape[1], self.stride * width, width, 1),
        )
        return Batch(
            obs=self._low_dim_obs(place) | self._large_obs(starts),
            instruction_id=instruction,
            instructions=self.rows.instructions,
            target=actions.as_strided(sizes, strides).contiguous(),
            action_valid=action_valid,
            frame_valid=action_valid[:, :, 0],
            episode_start=None if episode_start is None else episode_start.to(self.device),
        )

    def _low_dim_obs(self, place: Tensor) -> dict[str, Tensor]:
        blocks = self._low_dim.index_select(0, place)
        frames = blocks.view(len(place), self._frame_span, self._low_dim_width)[:, :: self.stride]
        obs = {}
        for key, (columns, shape) in self._columns.items():
            values = frames[..., columns]
            obs[key] = values if len(shape) == 1 else values.unflatten(-1, shape)
        return obs

    def _large_obs(self, starts: Tensor) -> dict[str, Tensor]:
        if not self.rows.large:
            return {}
        starts = starts.to(self._ends.device)
        last = self._ends.index_select(0, starts % (len(self) + 1)) - 1
        ahead = self.stride * torch.arange(self.segment, device=starts.device)
        rows = torch.minimum(starts.clamp(min=0).view(-1, 1) + ahead, last.view(-1, 1))
        return {key: large.gather(rows).to(self.device, non_blocking=True) for key, large in self.rows.large.items()}

    def _side_by_side(self) -> np.ndarray:
        """Concatenate the low-dimensional keys to (rows, sum of widths); sets `_columns`, the columns and shape of each key."""
        flat = [np.zeros((self.rows.steps, 0), dtype=np.float32)]
        column = 0
        for key, values in self.rows.low_dim.items():
            flat.append(values.reshape(len(values), -1))
            self._columns[key] = (slice(column, column + flat[-1].shape[1]), values.shape[1:])
            column += flat[-1].shape[1]
        return np.concatenate(flat, axis=1)

    def _start_table(self) -> Tensor:
        """(3, rows + 1) int64: for each start, its padded row, the demo's remaining steps, and its instruction's index.

        The last column is for the start -1.
        """
        demos = np.repeat(np.arange(len(self.rows.lengths)), self.rows.lengths)
        row = np.arange(self.rows.steps)
        table = np.zeros((3, self.rows.steps + 1), dtype=np.int64)
        table[0, :-1] = row + demos * (self._action_span - 1)
        table[1, :-1] = self.rows.offsets[demos + 1] - row
        table[2, :-1] = self.rows.instruction_id[demos]
        table[2, -1] = -1
        return torch.from_numpy(table)


def _padded_rows(lengths: np.ndarray, padding: int) -> np.ndarray:
    """Row indices of all demos, each demo followed by `padding` repetitions of its last row."""
    ends = np.cumsum(lengths)
    row = np.concatenate([[0], np.cumsum(lengths + padding)])[:-1]
    demos = np.repeat(np.arange(len(lengths)), lengths + padding)
    local = np.arange(len(demos)) - row[demos]
    return np.minimum(local + (ends - lengths)[demos], ends[demos] - 1)


def _blocks(rows: Tensor, span: int) -> Tensor:
    """(rows - span + 1, span * width): a view in which every `span` consecutive rows (overlapping) are one row."""
    rows = rows.contiguous()
    count, width = rows.shape
    return rows.as_strided((count - span + 1, span * width), (width, 1))
