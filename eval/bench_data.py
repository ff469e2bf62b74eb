"""Windows delivered per second: our store beside robomimic's loader, on the same file, in the same run, on one thread.

    python eval/bench_data.py --file lift_lowdim.hdf5 [--image-file lift_image.hdf5] [--large] [--json FILE]

The peer is re-stated in `robomimic_loader.py`; with `--peer-python` its own package is measured too, and the faster of
the two counts. Its environment:

    python -m venv peer && peer/bin/pip install robomimic==0.3.0     # brings its own torch and h5py
    python eval/bench_data.py --file lift_lowdim.hdf5 --peer-python peer/bin/python

`--large` also trains a few steps on a sparse set of 50 GB, made in a temporary folder, and notes the resident memory.
"""

import argparse
import json
import logging
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from bench_table import bar, machine
from robomimic_loader import BATCH, WINDOW, Measured, Repeated, peers, rate_of

from robopolicy.demos.formats import open_demos
from robopolicy.demos.frames import MemoryFrames
from robopolicy.demos.rows import DemoRows, Placement, load_rows, row_types
from robopolicy.demos.store import DemoStore
from robopolicy.training.loader import BatchLoader, Shuffled

MEASURED_S = 0.7
"""How long each loader is run; the best of `ROUNDS` such runs counts, ours and the peer's in turn."""
ROUNDS = 8
LARGE_FRAME, LARGE_DEMOS, LARGE_STEPS = (96, 96, 3), 500, 3660


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--file", type=Path, required=True, help="low-dimensional demo file in the robomimic layout")
    parser.add_argument("--image-file", type=Path, help="the same with a camera; default: images are not measured")
    parser.add_argument("--peer-python", help="a Python that has robomimic installed")
    parser.add_argument("--large", action="store_true", help="train a few steps on a sparse set of 50 GB")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("robopolicy").setLevel(logging.WARNING)

    rows: list[dict[str, Any]] = []
    bars: list[dict[str, Any]] = []
    low_dim(options.file, options.peer_python, rows, bars)
    if options.image_file:
        images(options.image_file, options.peer_python, rows, bars)
    if options.large:
        large(rows, bars)
    print_table(rows, bars)
    if options.json:
        result = {
            "machine": {**machine(), "h5py": h5py.__version__, "threads": torch.get_num_threads()},
            "command": " ".join(["python", "eval/bench_data.py", *map(shown, sys.argv[1:])]),
            "rows": rows,
            "bars": bars,
        }
        options.json.write_text(json.dumps(result, indent=1) + "\n")


def low_dim(path: Path, peer_python: str | None, rows: list[dict[str, Any]], bars: list[dict[str, Any]]) -> None:
    """Low-dimensional demos, in memory and from the disk."""
    with open_demos(path) as reader:
        keys = [key for key, (shape, _) in row_types(reader, reader.names[0]).items() if len(shape) == 1]
    rates = alternate(
        {
            "ours, K = 1": ours(path, keys, 1, "device"),
            "ours, K = 10": ours(path, keys, 10, "device"),
            **peers(path, keys, peer_python),
        }
    )
    rows += [{"demos": "low-dimensional", "loader": name, **rate._asdict()} for name, rate in rates.items()]
    for chunk, goal in ((1, 20.0), (10, 10.0)):
        ratio = rates[f"ours, K = {chunk}"].windows_per_s / fastest(rates, "cache all")
        bars.append(bar(f"low-dimensional, K = {chunk}: times the peer's cache all", ratio, goal))
    # Low-dimensional rows are always held in memory, whatever the placement.
    uncached = rates["ours, K = 10"].windows_per_s / fastest(rates, "no cache")
    bars.append(bar("low-dimensional: times the peer without cache", uncached, 10.0))


def images(path: Path, peer_python: str | None, rows: list[dict[str, Any]], bars: list[dict[str, Any]]) -> None:
    """Demos with cameras, in memory beside a plain gather of the same bytes, and from the disk."""
    with open_demos(path) as reader:
        keys = list(row_types(reader, reader.names[0]))
        before = resident_bytes()
        held = load_rows([(reader, reader.names)], keys, placement="device")
    grown = resident_bytes() - before
    cameras = {key: wide.values for key, wide in held.large.items() if isinstance(wide, MemoryFrames)}
    frame_bytes = sum(values.nbytes for values in cameras.values())

    def plain() -> Iterator[list[torch.Tensor]]:
        """Nothing but `index_select` of as many frames."""
        for starts in torch.randperm(held.steps).split(BATCH):
            at = (starts[:, None] + torch.arange(WINDOW)).clamp(max=held.steps - 1).flatten()
            yield [values.index_select(0, at) for values in cameras.values()]

    rates = alternate(
        {
            "ours, memory": loader_of(held, 10),
            "plain index_select of the images": rate_of(Repeated(plain), lambda taken: len(taken[0]) // WINDOW),
            "ours, disk": ours(path, keys, 10, "disk"),
            **peers(path, keys, peer_python),
        }
    )
    rows += [{"demos": "images", "loader": name, **rate._asdict()} for name, rate in rates.items()]
    copies = sum(np.prod(values.shape[1:]) * WINDOW for values in cameras.values()) * held.steps
    rows.append(
        {"demos": "images", "loader": "ours, memory: bytes held per byte of frames", "ratio": grown / frame_bytes}
    )
    rows.append({"demos": "images", "loader": "peer, cache all: likewise", "ratio": float(copies) / frame_bytes})
    share = rates["ours, memory"].windows_per_s / rates["plain index_select of the images"].windows_per_s
    bars.append(bar("images from memory: share of a plain index_select", share, 0.8))
    bars.append(bar("images: memory per byte of frames", grown / frame_bytes, 1.2, better="lower"))
    bars.append(
        bar(
            "images from disk: times the peer without cache",
            rates["ours, disk"].windows_per_s / fastest(rates, "no cache"),
            10.0,
        )
    )


def fastest(rates: dict[str, Measured], cache: str) -> float:
    """The peer's rate with this cache: of its own package or of the re-stated loader, whichever was faster."""
    return max(rate.windows_per_s for name, rate in rates.items() if name.endswith(cache))


def ours(path: Path, keys: list[str], chunk: int, placement: Placement) -> Callable[[float], Measured]:
    """Our loader over all demos: observations, targets of K actions, masks."""
    reader = open_demos(path)
    rows = load_rows([(reader, reader.names)], keys, placement=placement, threads=os.cpu_count() or 1)
    return loader_of(rows, chunk)


def loader_of(rows: DemoRows, chunk: int) -> Callable[[float], Measured]:
    """Our loader over these rows."""
    loader = BatchLoader(DemoStore(rows, segment=WINDOW, chunk=chunk), Shuffled(rows, BATCH, seed=0))
    return rate_of(loader, lambda batch: len(batch.target))


def alternate(loaders: dict[str, Callable[[float], Measured]]) -> dict[str, Measured]:
    """The best of several rounds in turn of each, so that a busy moment hits all alike."""
    rounds = [{name: measure(MEASURED_S) for name, measure in loaders.items()} for _ in range(ROUNDS)]
    return {name: max(measured[name] for measured in rounds) for name in loaders}


LARGE = """
import dataclasses, json, resource, sys, time, torch
from pathlib import Path
from robopolicy.experiment import ExperimentConfig
from robopolicy.training.train import train
torch.set_num_threads(1)
config = ExperimentConfig().change({
    "data.files": [sys.argv[1]], "data.cameras": ["front"], "data.batch_size": 8, "data.valid_fraction": 0.01,
    "encoder.kind": "pixels", "encoder.width": 32, "encoder.hidden": 32,
    "memory.window": 4, "memory.hidden": 32, "memory.layers": 1, "action_head.chunk": 4,
    "training.max_steps": 30, "training.valid_every": 1000, "training.checkpoint_every": 1000, "training.select": "last",
})
began = time.perf_counter()
train(config, Path(sys.argv[2]))
peak = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
print("peak", json.dumps([peak * 1024, time.perf_counter() - began]))
"""


def large(rows: list[dict[str, Any]], bars: list[dict[str, Any]]) -> None:
    """Train on 50 GB of images that are holes on the disk, and note how much memory that took."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "large.hdf5"
        sparse_file(path)
        size = path.stat().st_size
        command = [sys.executable, "-c", LARGE, str(path), str(Path(folder) / "run")]
        output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = next(line for line in output.splitlines() if line.startswith("peak"))
    peak, wall_s = json.loads(found.removeprefix("peak"))
    rows.append({"demos": f"{size / 1e9:.1f} GB of images", "loader": "ours, 30 training steps", "wall_s": wall_s})
    bars.append(bar("set of 50 GB: resident memory while training [GB]", peak / 1e9, 2.0, better="lower"))


def sparse_file(path: Path) -> None:
    """A demo file whose images take room in the file, but none on the disk."""
    rng = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        for number in range(LARGE_DEMOS):
            group = file.create_group(f"data/demo_{number}")
            group["actions"], group["obs/x"] = rng.normal(size=(LARGE_STEPS, 2)), rng.normal(size=(LARGE_STEPS, 3))
            kept = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
            kept.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
            kept.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
            space = h5py.h5s.create_simple((LARGE_STEPS, *LARGE_FRAME))
            h5py.h5d.create(group["obs"].id, b"front", h5py.h5t.NATIVE_UINT8, space, dcpl=kept)


def print_table(rows: list[dict[str, Any]], bars: list[dict[str, Any]]) -> None:
    """The figures, then the bars."""
    for row in rows:
        figure = next(
            f"{row[key]:,.{digits}f} {unit}"
            for key, digits, unit in (("windows_per_s", 0, "windows/s"), ("ratio", 2, ""), ("wall_s", 1, "s"))
            if key in row
        )
        cpu = f"{row['cpu_us']:,.2f} us CPU each" if "cpu_us" in row else ""
        print(f"{row['demos']:<24}{row['loader']:<48}{figure:>20}{cpu:>24}")
    for goal in bars:
        sign = ">=" if goal["better"] == "higher" else "<="
        verdict = "passed" if goal["passed"] else "MISSED"
        print(f"{verdict}  {goal['name']}: {goal['value']:.3g} ({sign} {goal['goal']:g})")


def shown(argument: str) -> str:
    """An argument as the record shows it: of a path its name only."""
    return Path(argument).name if "/" in argument else argument


def resident_bytes() -> int:
    """Memory of this process now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


if __name__ == "__main__":
    main()
