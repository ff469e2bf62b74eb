"""Checksums of a demo's content."""

import dataclasses

import pytest

from robopolicy.demos.checksums import checksums_of, verify
from robopolicy.types import DemoFormatError


def test_the_same_demo_has_the_same_checksums(make_demo):
    """Else every read would be a false alarm."""
    verify(make_demo(1), checksums_of(make_demo(1)), "x.hdf5, demo_1")


def test_truth_values_match_the_integers_they_are_stored_as(make_demo):
    """The file stores bool as int64, as robomimic does."""
    demo = make_demo(1)
    stored = dataclasses.replace(demo, dones=demo.dones.astype("int64"))
    verify(stored, checksums_of(demo), "x.hdf5, demo_1")


@pytest.mark.parametrize(
    ("change", "part"),
    [({"instruction": "lift the bl1e cube"}, "attributes"), ({"seed": 2}, "attributes"), ({"rewards": None}, None)],
)
def test_what_the_demo_says_is_covered_and_what_wasn_t_read_is_not_missed(make_demo, change, part):
    """A changed instruction is as wrong as a changed action; reading without some key is no damage."""
    demo = make_demo(1)
    changed = dataclasses.replace(demo, **change)
    if part is None:
        verify(changed, checksums_of(demo), "x.hdf5, demo_1")
    else:
        with pytest.raises(DemoFormatError, match=f"x.hdf5, demo_1: {part} changed since it was written"):
            verify(changed, checksums_of(demo), "x.hdf5, demo_1")
