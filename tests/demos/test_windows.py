"""Where windows start and what in them is real."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from robopolicy.demos.windows import action_rows, episode_streams, frame_rows


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 9), st.integers(1, 6), st.integers(1, 5), st.integers(1, 3))
def test_every_step_is_a_start_and_padding_is_on_the_right_only(length, segment, chunk, stride):
    """Off-by-one masks cost the last action of every demo (RoboVLMs) or train on copies (robomimic)."""
    starts, ends = np.arange(length), np.full(length, length)
    rows, frame_valid = frame_rows(starts, ends, segment, stride)
    targets, action_valid = action_rows(starts, ends, segment, chunk, stride)
    for start in range(length):
        for frame in range(segment):
            place = start + frame * stride
            assert frame_valid[start, frame] == (place < length)
            assert rows[start, frame] == min(place, length - 1)
            for ahead in range(chunk):
                assert action_valid[start, frame, ahead] == (place + ahead < length)
                assert targets[start, frame, ahead] == min(place + ahead, length - 1)
    assert action_valid[:, 0, 0].all(), "the action of every step, the last included, is a target"


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=8),
    st.integers(1, 4),
    st.integers(1, 4),
    st.integers(1, 2),
    st.randoms(),
)
def test_lanes_hold_every_demo_once_whole_and_in_order(lengths, count, segment, stride, random):
    """A carried state would else run from one demo's middle into another."""
    order = list(range(len(lengths)))
    random.shuffle(order)
    starts, begins = episode_streams(np.array(lengths), order, count, segment, stride)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    seen = []
    for lane in range(count):
        current = None
        for start, begin in zip(starts[:, lane].tolist(), begins[:, lane].tolist(), strict=True):
            if start < 0:
                assert begin, "a lane without a demo starts anew"
                continue
            demo = int(np.searchsorted(offsets, start, side="right")) - 1
            if begin:
                assert start == offsets[demo]
                seen.append(demo)
            else:
                assert start == current
            current = start + segment * stride
        ends = [row for row in starts[:, lane].tolist() if row >= 0]
        assert starts[: len(ends), lane].tolist() == ends, "a lane that has run out stays empty"
    assert sorted(seen) == list(range(len(lengths)))
    covered = sum(-(-length // (segment * stride)) for length in lengths)
    assert int((starts >= 0).sum()) == covered
