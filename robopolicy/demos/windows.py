"""Where segments start in demos, and which of their frames and actions are real. Pure NumPy.

A segment of S frames starts at any step t of a demo and shows the frames t, t + stride, ..., t + (S-1) stride; to each
frame belong the K actions from it on, at the control rate whatever the stride. Frames and actions beyond the demo's
last step are padding: on the right only, never valid.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Int


def frame_rows(
    starts: Int[np.ndarray, " batch"], ends: Int[np.ndarray, " batch"], segment: int, stride: int = 1
) -> tuple[Int[np.ndarray, "batch segment"], Bool[np.ndarray, "batch segment"]]:
    """Row of each frame, and whether it is one of the demo.

    Args:
        starts: row at which each segment starts.
        ends: row behind the last one of the demo it starts in.
        segment: S, frames of a segment.
        stride: rows from one frame to the next.

    Returns:
        Rows, those beyond the end replaced by the demo's last, and `frame_valid`.
    """
    rows = starts[:, None] + stride * np.arange(segment)
    return np.minimum(rows, ends[:, None] - 1), rows < ends[:, None]


def action_rows(
    starts: Int[np.ndarray, " batch"], ends: Int[np.ndarray, " batch"], segment: int, chunk: int, stride: int = 1
) -> tuple[Int[np.ndarray, "batch segment chunk"], Bool[np.ndarray, "batch segment chunk"]]:
    """Row of each of the K actions of each frame, and whether it is one of the demo; the last action is.

    Returns:
        Rows, those beyond the end replaced by the demo's last, and `action_valid`.
    """
    rows = starts[:, None, None] + frame_offsets(segment, chunk, stride)
    return np.minimum(rows, ends[:, None, None] - 1), rows < ends[:, None, None]


def frame_offsets(segment: int, chunk: int, stride: int = 1) -> Int[np.ndarray, "segment chunk"]:
    """How many rows after the segment's start each action of each frame lies."""
    return stride * np.arange(segment)[:, None] + np.arange(chunk)


def episode_streams(
    lengths: Int[np.ndarray, " demos"], order: Sequence[int], count: int, segment: int, stride: int = 1
) -> tuple[Int[np.ndarray, "steps streams"], Bool[np.ndarray, "steps streams"]]:
    """Whole demos distributed to `count` episode streams, each cut into consecutive segments, for truncated BPTT.

    Each demo in turn goes to the shortest stream, so that all streams end at about the same time.

    Args:
        lengths: steps of every demo; their rows lie one after another.
        order: which demos, in which order.
        count: streams, the segments of one batch.
        segment: S, frames of a segment.
        stride: rows from one frame to the next.

    Returns:
        The row at which each segment starts, -1 where its stream has no demo left, and whether it begins its demo.
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
