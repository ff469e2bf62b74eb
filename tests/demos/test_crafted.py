"""Crafted files: sound sets of every layout with one to three parts replaced by anything that the format can hold.

A generator follows the grammar of the layouts: groups, datasets, attributes of every type, JSON of every type, shapes,
dtypes, chunks, filters, links and names. Each file is refused in one line, or its demos are whole; never a traceback.
"""

import json
import resource
import shutil
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from robopolicy.cli import main
from robopolicy.components import kinds
from robopolicy.demos import probe
from robopolicy.demos.formats import action_spec_of, open_demos
from robopolicy.types import DemoFormatError
from tests.demo_samples import write_act, write_lerobot, write_libero, write_minari, write_robomimic

SECRET = 12345.5
"""Value in a file beside the crafted one, which no demo may contain."""
SAMPLES: dict[str, Callable[[Path], Path]] = {
    "robomimic": lambda folder: write_robomimic(folder / "demos.hdf5"),
    "libero": lambda folder: write_libero(folder / "task_demo.hdf5"),
    "act": lambda folder: write_act(folder / "act"),
    "minari": lambda folder: write_minari(folder / "pen"),
    "lerobot": lambda folder: write_lerobot(folder / "set"),
}
NAMES = ("demo_0", "demo_-1", "demo_01", "demo_99999999999999999999", "demo_x", "obs", "mask", "actions", "states", "x")
NAMES += ("tokens", "rewards", "dones", "executed_actions", "\x1b[2J", "ü" * 80, "a b", ".hidden", "n" * 300)
ATTRIBUTES = (
    "env_args",
    "action_spec",
    "checksums",
    "seed",
    "instruction",
    "num_samples",
    "total",
    "renderer",
    "ep_meta",
)
ATTRIBUTES += ("problem_info", "macros_image_convention", "env_spec", "id", "sim", "compress", "token_valid", "x\x07")
DTYPES = (
    "f2",
    "f4",
    "f8",
    ">f8",
    "g",
    "i1",
    "u1",
    "u2",
    "<i8",
    "u8",
    "?",
    "c8",
    "S3",
    "S0",
    "O",
    "compound",
    "ref",
    "enum",
)
TEXTS = (
    "",
    "train",
    "{",
    "[]",
    "null",
    "9" * 5000,
    "{:d}",
    "{episode_index:09999d}",
    "../../x",
    "/etc",
    "\x1b]0;x\x07",
    "é",
)
KEYS = (
    "arm",
    "gripper",
    "rate_hz",
    "kind",
    "units",
    "gripper_values",
    "constant",
    "env_name",
    "env_kwargs",
    "task",
    "lang",
)
KEYS += (
    "control_freq",
    "controller_configs",
    "type",
    "fps",
    "shape",
    "dtype",
    "names",
    "splits",
    "features",
    "cameras",
)


class Crafter:
    """Draws values, arrays and edits."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng

    def one(self, choices: Any) -> Any:
        """One of a sequence."""
        return choices[int(self.rng.integers(len(choices)))]

    def json(self, depth: int = 0) -> Any:
        """A JSON value of any type."""
        leaves = (
            None,
            True,
            0,
            -1,
            1,
            3.5,
            1e308,
            -1e308,
            float("inf"),
            float("nan"),
            10**30,
            2**62,
            *TEXTS[:6],
            *KEYS,
        )
        kind = self.rng.integers(6 if depth < 3 else 4)
        if kind < 4:
            return self.one(leaves)
        count = int(self.rng.integers(4))
        if kind == 4:
            return [self.json(depth + 1) for _ in range(count)]
        return {self.one(KEYS): self.json(depth + 1) for _ in range(count)}

    def attribute(self) -> Any:
        """An attribute's value of any type."""
        kind = self.rng.integers(9)
        if kind < 4:
            return json.dumps(self.json())
        simple = (
            1,
            -1,
            2**63,
            1.5,
            np.nan,
            True,
            b"\xff\xfe",
            b"text",
            np.complex64(1),
            np.longdouble(2),
            h5py.Empty("f4"),
        )
        if kind < 6:
            return self.one(simple)
        if kind == 6:
            return self.one(TEXTS)
        if kind == 7:
            return "[" * int(self.rng.integers(1, 5000))
        return self.array(self.one(((), (2,), (0,), (2, 2))), self.one(("f4", "u1", "<i8", "?", "S3", "g")))

    def array(self, shape: tuple[int, ...], dtype: str) -> np.ndarray:
        """Numbers of this type, or texts, records, references; one in four has a value that is not finite."""
        if dtype == "O":
            return np.full(shape, self.one(TEXTS[1:3]), h5py.string_dtype())
        if dtype == "compound":
            return np.zeros(shape, [("x", "f4"), ("y", "S2")])
        if dtype[0] == "S":
            return np.full(shape, b"abc", "S3")
        values = self.rng.normal(size=shape) * self.one((0, 1, 100, 1e30))
        if self.rng.random() < 0.25 and values.size and np.dtype(dtype).kind in "fc":
            values = values + self.one((np.nan, np.inf))
        with np.errstate(all="ignore"):
            return np.asarray(values).astype(dtype)

    def put_dataset(self, group: h5py.Group, name: str, like: h5py.Dataset | None) -> None:
        """A dataset of any shape, dtype and storage; often with the shape or dtype of the one it replaces."""
        rows = like.shape[0] if like is not None and like.shape else 9
        shapes = [
            (rows,),
            (),
            (0, 3),
            (rows, 0),
            (rows, 1),
            (rows, 7),
            (rows, 8, 8, 3),
            (rows, 3, 8, 8),
            (rows + 1, 3),
            (1,) * 9,
        ]
        shape = like.shape if like is not None and like.shape and self.rng.random() < 0.5 else self.one(shapes)
        dtype = self.one(DTYPES)
        kind = self.rng.integers(10)
        if kind == 0:  # declared, never written
            huge = self.one([(rows, 2**28), (2**40, 3), (rows, 2**12), (2**31, 7)])
            group.create_dataset(name, huge, "f4", chunks=self.one([None, (2, 3)]))
        elif kind == 1:
            group.create_dataset(name, shape, "f4", fillvalue=np.nan)
        elif kind == 2:
            group.create_dataset(name, data=h5py.Empty("f4"))
        elif dtype == "ref":
            group.create_dataset(name, shape, h5py.ref_dtype)
        elif dtype == "enum":
            group.create_dataset(name, shape, h5py.enum_dtype({"A": 0, "B": 1}, "i1"))
        else:
            values = self.array(shape, dtype)
            packed = kind < 6 and values.size > 0 and values.ndim > 0 and values.dtype.kind in "iuf"
            settings = {"compression": self.one(("gzip", "lzf")), "shuffle": bool(kind % 2), "fletcher32": True}
            group.create_dataset(name, data=values, **(settings if packed else {}))

    def edit(self, file: h5py.File, outside: Path) -> str:
        """Change one part of the file; returns what was done."""
        paths: list[str] = []
        file.visit(paths.append)
        if not paths:
            return "empty"
        path = self.one(paths)
        item, parent, name = file[path], file[path].parent, path.rpartition("/")[2]
        group = item if isinstance(item, h5py.Group) else parent
        kind = self.one(("attribute", "attribute", "replace", "replace", "add", "delete", "link", "rename", "group"))
        if kind == "attribute":
            key = self.one(list(item.attrs) or ATTRIBUTES) if self.rng.random() < 0.3 else self.one(ATTRIBUTES)
            item.attrs[key] = self.attribute()
            return f"{path} attribute {key}"
        if kind == "add":
            new = self.one(NAMES)
            if new not in group:
                self.put_dataset(group, new, item if isinstance(item, h5py.Dataset) else None)
            return f"{path} + {new}"
        old = item if isinstance(item, h5py.Dataset) else None
        if kind == "rename":
            new = self.one(NAMES)
            if new not in parent:
                parent.move(name, new)
            return f"{path} -> {new}"
        if kind == "replace":
            spare = file.create_dataset("spare", data=np.zeros((old.shape or ())[:1] or 9)) if old else None
            del parent[name]
            self.put_dataset(parent, name, spare)
            if spare is not None:
                del file["spare"]
        else:
            del parent[name]
            links = (
                h5py.SoftLink("/"),
                h5py.SoftLink("/missing"),
                h5py.ExternalLink(str(outside), "secret"),
                file["/"],
            )
            if kind == "link":
                parent[name] = self.one(links)
            elif kind == "group":
                parent.create_group(name)
        return f"{path} {kind}"

    def edit_json(self, path: Path) -> str:
        """Replace, add or remove one value in a JSON file."""
        tree = json.loads(path.read_text())
        place, trail = tree, path.name
        while True:
            keys = list(place) if isinstance(place, dict) else list(range(len(place)))
            key = self.one(keys or [self.one(KEYS)]) if isinstance(place, dict) or keys else None
            if key is None:
                break
            trail += f"/{key}"
            inner = place.get(key) if isinstance(place, dict) else place[key]
            if isinstance(inner, (dict, list)) and inner and self.rng.random() < 0.7:
                place = inner
                continue
            if self.rng.random() < 0.2 and isinstance(place, dict):
                place.pop(key, None)
            else:
                place[key] = self.json()
            break
        path.write_text(json.dumps(tree))
        return trail


def read_everything(path: Path) -> None:
    """Read every demo as `check`, `convert` and training do; refuse what is accepted although it is wrong."""
    with open_demos(path) as demos:
        assert all(isinstance(note, str) for note in demos.notes)
        read = [demos.read(name) for name in demos.names]
        spec = action_spec_of(demos) if read else None
        for demo in read:
            times = demos.clock(demo.name)
            assert times is None or len(times) == len(demo)
            assert demo.instruction is None or isinstance(demo.instruction, str)
            assert demo.seed is None or isinstance(demo.seed, int)
            assert demo.actions.ndim == 2
            assert spec is not None
            assert spec.width == demo.actions.shape[1], f"action spec of {spec.width}, {demo.actions.shape[1]} columns"
            step_arrays = {"rewards": demo.rewards, "dones": demo.dones, "states": demo.states, "tokens": demo.tokens}
            for key, values in {"actions": demo.actions, **demo.obs, **step_arrays}.items():
                if values is not None:
                    assert len(values) == len(demo), key
                    assert values.dtype.kind in "biuf", key
                    assert values.dtype.isnative, key
                    assert np.isfinite(values).all(), key
                    assert not (values == SECRET).any(), f"{key} was read from another file"
        for names in demos.filter_keys.values():
            assert set(names) <= set(demos.names), "a filter key names a missing demo"


def craft(cases: range, folder: Path) -> tuple[Counter[str], list[str]]:
    """Make and read the files of these numbers; returns how many were accepted and refused, and a line for each failure."""
    outside = folder / "outside.hdf5"
    with h5py.File(outside, "w") as file:
        file["secret"] = np.full((9, 3), SECRET)
    originals = {kind: SAMPLES[kind](_made(folder / "originals" / kind)) for kind in kinds("demo_format")}
    outcome, failures = Counter[str](), []
    for case in cases:
        crafter = Crafter(np.random.default_rng(case))
        kind = list(originals)[case % len(originals)]
        work = _made(folder / f"case_{case}")
        path = work / originals[kind].name
        (shutil.copytree if originals[kind].is_dir() else shutil.copy)(originals[kind], path)
        done = []
        for _ in range(int(crafter.rng.integers(1, 4))):
            if kind == "lerobot":
                done.append(crafter.edit_json(crafter.one(sorted(path.glob("meta/*.json")))))
                continue
            inside = path if path.is_file() else crafter.one(sorted(path.rglob("*.hdf5")))
            with h5py.File(inside, "r+") as file:
                if len(file):
                    done.append(crafter.edit(file, outside))
        began = time.monotonic()
        try:
            if case % 10 == 9:
                assert main(["check", str(path)]) in (0, 1, 2)
            read_everything(path)
            outcome["accepted"] += 1
        except DemoFormatError as error:
            outcome["refused"] += 1
            if "\n" in str(error) or len(str(error)) > 1500:  # a name of 300 characters may occur in it several times
                failures.append(f"case {case}, {kind}, {done}: message {str(error)[:200]!r}")
        except Exception as error:  # the traceback that a user would see
            failures.append(f"case {case}, {kind}, {done}: {type(error).__name__}: {str(error)[:200]}")
        if (seconds := time.monotonic() - began) > 20:
            failures.append(f"case {case}, {kind}, {done}: took {seconds:.1f} s")
        shutil.rmtree(work)
    probe._examiner.close()  # the memory of a child counts when it has ended
    used = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)) / 2**20
    if used > 1.5:
        failures.append(f"peak memory {used:.2f} GiB")
    return outcome, failures


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder


def test_crafted_files_are_refused_in_one_line_or_whole(tmp_path):
    """Guards against: tracebacks, stalls, gigabytes and wrong demos from a stranger's file."""
    outcome, failures = craft(range(150), tmp_path)
    assert not failures, "\n".join(failures)
    assert outcome["accepted"] > 15
    assert outcome["refused"] > 30


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_four_thousand_crafted_files_are_refused_in_one_line_or_whole(tmp_path):
    """Guards against: the rarer combinations."""
    outcome, failures = craft(range(4000), tmp_path)
    print(dict(outcome))
    assert not failures, "\n".join(failures)
