"""Damaged files: whatever bytes change, a file is refused in one line or its demos are what they were; nothing hangs.

Native files that were converted carry checksums: every demo that is given back must equal the one written. Others' files
have none, so a changed number can't be detected: what is returned must be whole and finite.
"""

import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from robopolicy.demos import probe
from robopolicy.demos.formats import convert, open_demos
from robopolicy.demos.hdf5 import DemoFile
from robopolicy.demos.rows import row_types
from robopolicy.demos.tokens import TokenWriter, tokens_beside
from robopolicy.types import TOKENS_KEY, Demo, DemoFormatError
from tests.demo_samples import assert_same, write_act, write_minari, write_robomimic

MUTATIONS = ("bits", "noise", "truncate", "zeros", "copy")


def mutated(data: bytes, rng: np.random.Generator) -> bytes:
    """The file with some bits flipped, a stretch of noise or zeros, its end cut off, or one part copied over another."""
    changed, size = bytearray(data), len(data)
    start, other = (int(place) for place in rng.integers(size, size=2))
    kind = MUTATIONS[rng.integers(len(MUTATIONS))]
    if kind == "truncate":
        return bytes(changed[:start])
    if kind == "bits":
        for place in rng.integers(size, size=rng.integers(1, 9)):
            changed[place] ^= 1 << int(rng.integers(8))
        return bytes(changed)
    span = min(int(rng.integers(1, 65 if kind == "noise" else 513)), size - max(start, other))
    source = {"noise": rng.bytes(span), "zeros": bytes(span), "copy": data[other : other + span]}
    changed[start : start + span] = source[kind]
    return bytes(changed)


def assert_plausible(found: Demo, written: Demo) -> None:
    """One row of numbers per step, all finite."""
    for key, values in {"actions": found.actions, **found.obs}.items():
        assert len(values) == len(found), key
        assert values.dtype.kind in "biuf", key
        assert np.isfinite(values).all(), key


FAMILIES = {
    "native": (lambda folder: _native(folder), assert_same, 0.6),
    "robomimic": (lambda folder: write_robomimic(folder / "demos.hdf5"), assert_plausible, 0.2),
    "act": (lambda folder: write_act(folder / "act") / "episode_1.hdf5", assert_plausible, 0.1),
    "minari": (lambda folder: write_minari(folder / "pen") / "data/main_data.hdf5", assert_plausible, 0.1),
}


def _native(folder):
    convert(write_robomimic(folder / "source.hdf5"), folder / "native.hdf5")
    return folder / "native.hdf5"


def fuzz(family: str, cases: int, folder, monkeypatch, silence_s: float) -> Counter:
    """Open and read this many damaged files; returns how many files and demos were refused, and how many demos were given.

    A file that stalls its reader is given up after `silence_s`, for the sake of the test's own time.
    """
    make, judge, _ = FAMILIES[family]
    original = make(folder)
    data, rng, outcome = original.read_bytes(), np.random.default_rng(0), Counter()
    with open_demos(original) as demos:
        written = {name: demos.read(name) for name in demos.names}
    monkeypatch.setattr(probe, "SILENCE_S", silence_s)
    path = folder / f"episode_{next(iter(written)).removeprefix('demo_')}.hdf5"
    for _ in range(cases):
        path.write_bytes(mutated(data, rng))
        try:
            with open_demos(path) as demos:
                for name in demos.names:
                    try:
                        found = demos.read(name)
                    except DemoFormatError as error:
                        outcome["demos refused" if "\n" not in str(error) else "messages of several lines"] += 1
                    else:
                        judge(found, written[name])
                        outcome["demos given"] += 1
        except DemoFormatError as error:
            outcome["files refused" if "\n" not in str(error) else "messages of several lines"] += 1
        path.unlink()
    return outcome


@pytest.mark.parametrize("family", FAMILIES)
def test_damaged_files_are_refused_or_read_as_they_were(family, tmp_path, monkeypatch):
    """Guards against: one flipped bit that ends the process, hangs it, or becomes a training target."""
    outcome = fuzz(family, round(500 * FAMILIES[family][2]), tmp_path, monkeypatch, silence_s=0.7)
    assert outcome["messages of several lines"] == 0
    assert outcome["files refused"] > 0, "the mutations reach the file's structure"
    assert outcome["demos given"] > 0, "and leave some of it readable"


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("family", FAMILIES)
def test_ten_thousand_damaged_files_are_refused_or_read_as_they_were(family, tmp_path, monkeypatch):
    """Guards against: the same on rarer paths through the library."""
    outcome = fuzz(family, round(10_000 * FAMILIES[family][2]), tmp_path, monkeypatch, silence_s=1.0)
    print(family, dict(outcome))
    assert outcome["messages of several lines"] == 0
    assert outcome["demos given"] > 0


def with_tokens(tiny_demos: Path, folder: Path) -> Path:
    """A copy of the demos with random tokens beside it."""
    path = Path(shutil.copy(tiny_demos, folder / "demos.hdf5"))
    rng = np.random.default_rng(0)
    with (
        DemoFile(path) as demos,
        TokenWriter(
            tokens_beside(path),
            {"model": "x", "template": "{instruction}"},
            {name: demos.mark(name) for name in demos.names},
        ) as writer,
    ):
        for name in demos.names:
            steps = len(demos.read(name, ()))
            writer.write(name, rng.normal(size=(steps, 3, 4)).astype(np.float16), np.array([True, True, False]))
    return path


def places_beside_arrays(path: Path) -> np.ndarray:
    """Offsets of the bytes, other than 0, that are not of a step array: names, attributes, masks, shapes, indices."""
    free = np.frombuffer(path.read_bytes(), np.uint8) != 0

    def mark(name: str, item: object) -> None:
        if isinstance(item, h5py.Dataset) and not name.startswith("mask") and item.chunks is None:
            free[item.id.get_offset() :][: item.nbytes] = False
        elif isinstance(item, h5py.Dataset) and item.chunks is not None:
            item.id.chunk_iter(
                lambda chunk: free.__setitem__(slice(chunk.byte_offset, chunk.byte_offset + chunk.size), 0)
            )

    with h5py.File(path) as file:
        file.visititems(mark)
    return np.flatnonzero(free)


def all_that_decides(path: Path) -> tuple[Any, ...]:
    """What training takes from a file: its attributes, masks, and of each demo the tokens and the keys of the first."""
    with DemoFile(path) as demos:
        keys = [key for key in row_types(demos, demos.names[0]) if key != TOKENS_KEY]
        return demos.attributes, demos.filter_keys, [demos.read(name, keys) for name in demos.names]


def flip_bits(path: Path, damaged: Path, cases: int) -> Counter:
    """Flip one bit of `damaged`, which is `path` or what belongs to it; every file that is not refused must be as it was."""
    data, places, outcome = damaged.read_bytes(), places_beside_arrays(damaged), Counter()
    attributes, masks, written = all_that_decides(path)
    rng = np.random.default_rng(0)
    for place in rng.choice(places, cases):
        changed = bytearray(data)
        changed[place] ^= 1 << int(rng.integers(8))
        damaged.write_bytes(changed)
        try:
            found = all_that_decides(path)
        except DemoFormatError:
            outcome["refused"] += 1
            continue
        outcome["as it was"] += 1
        assert found[:2] == (attributes, masks), place
        for demo, expected in zip(found[2], written, strict=True):
            assert_same(demo, expected)
    damaged.write_bytes(data)
    return outcome


@pytest.mark.parametrize("damaged", ["demos", "tokens"])
@pytest.mark.parametrize("cases", [40, pytest.param(1000, marks=[pytest.mark.slow, pytest.mark.timeout(3600)])])
def test_a_flipped_bit_changes_nothing_that_is_trained_on(tiny_demos, tmp_path, monkeypatch, damaged, cases):
    """Guards against: another rate, split, camera, token or token mask after a bit flip that no checksum covers."""
    monkeypatch.setattr(probe, "SILENCE_S", 1.0)
    path = with_tokens(tiny_demos, tmp_path)
    outcome = flip_bits(path, tokens_beside(path) if damaged == "tokens" else path, cases)
    print(dict(outcome))
    assert outcome["refused"] > cases / 4
