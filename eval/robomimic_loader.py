"""robomimic's data loader as what it does, and its own package in its own environment, for `bench_data.py`.

Its `SequenceDataset` gives a dictionary of arrays per window, padded with copies of the last row; torch's `DataLoader`
collates them sample by sample. Its caches: `all` (every window copied ahead), `low_dim` (low-dimensional rows in memory)
and none (HDF5 for every window).
"""

import subprocess
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
from torch.utils.data import DataLoader, Dataset

WINDOW, BATCH = 10, 100
CACHES = {"cache all": "all", "cache low_dim": "low_dim", "no cache": None}


class SequenceDataset(Dataset):
    """What robomimic's loader does for one window: slices of every key, padded with copies of the last row."""

    def __init__(self, path: str, keys: list[str], cache: str | None) -> None:
        self.file = h5py.File(path, "r", swmr=True)
        self.names = sorted(self.file["data"], key=lambda name: int(name[5:]))
        lengths = [int(self.file[f"data/{name}"].attrs["num_samples"]) for name in self.names]
        self.windows = [
            (name, start, length) for name, length in zip(self.names, lengths, strict=True) for start in range(length)
        ]
        self.obs_keys = [f"obs/{key}" for key in keys]
        cached = ["actions", "rewards", "dones", *self.obs_keys] if cache else []
        if cache == "low_dim":
            cached = [key for key in cached if self.file[f"data/{self.names[0]}/{key}"].ndim < 4]
        self.memory = {name: {key: self.file[f"data/{name}/{key}"][()] for key in cached} for name in self.names}
        self.items = [self.item(index) for index in range(len(self))] if cache == "all" else None

    def __len__(self) -> int:
        """Number of windows."""
        return len(self.windows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """One window, from the cache of windows where there is one."""
        return self.item(index) if self.items is None else self.items[index]

    def item(self, index: int) -> dict[str, Any]:
        """One window, put together."""
        name, start, length = self.windows[index]
        item = self.sequence(name, ["actions", "rewards", "dones"], start, length)
        obs = self.sequence(name, self.obs_keys, start, length)
        item["obs"] = {key.split("/")[1]: values for key, values in obs.items()}
        return item

    def sequence(self, name: str, keys: list[str], start: int, length: int) -> dict[str, np.ndarray]:
        """Rows start .. start + WINDOW - 1 of each key."""
        missing = max(0, start + WINDOW - length)
        rows = {}
        for key in keys:
            held = self.memory[name].get(key)
            source = self.file[f"data/{name}/{key}"] if held is None else held
            values = source[start : start + WINDOW]
            rows[key] = np.concatenate([values, np.repeat(values[-1:], missing, axis=0)])
        return rows


class Repeated:
    """`for batch in repeated` calls the function again, as a loader begins an epoch."""

    def __init__(self, epoch: Callable[[], Iterator[Any]]) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[Any]:
        return self.epoch()


class Measured(NamedTuple):
    """How fast a loader was."""

    windows_per_s: float
    cpu_us: float
    """Processor time of one window, all threads together [us]: what a busy machine doesn't change."""


def rate_of(loader: Iterable[Any], size: Callable[[Any], int]) -> Callable[[float], Measured]:
    """Measures a loader for this many seconds, beginning new epochs as needed."""

    def measure(seconds: float) -> Measured:
        count, began, cpu_s = 0, time.perf_counter(), time.process_time()
        while time.perf_counter() < began + seconds:
            for batch in loader:
                count += size(batch)
                if time.perf_counter() > began + seconds:
                    break
        return Measured(count / (time.perf_counter() - began), 1e6 * (time.process_time() - cpu_s) / count)

    return measure


def peers(path: Path, keys: list[str], python: str | None) -> dict[str, Callable[[float], Measured]]:
    """The re-stated loader with each of its caches, and the genuine one where a Python with robomimic is given."""
    loaders = {}
    for name, cache in CACHES.items():
        data = SequenceDataset(str(path), keys, cache)
        loader = DataLoader(data, batch_size=BATCH, shuffle=True, drop_last=True)
        loaders[f"peer, {name}"] = rate_of(loader, lambda batch: len(batch["actions"]))
        if python:
            loaders[f"robomimic itself, {name}"] = genuine(python, path, cache)
    return loaders


GENUINE = """
import sys, time, h5py, torch
import robomimic.utils.obs_utils as ObsUtils
from robomimic.utils.dataset import SequenceDataset
path, window, batch, cache = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
torch.set_num_threads(1)
with h5py.File(path, "r") as file:
    obs = next(iter(file["data"].values()))["obs"]
    shapes = {key: obs[key].ndim for key in obs}
modalities = {"low_dim": [k for k, n in shapes.items() if n == 2], "rgb": [k for k, n in shapes.items() if n == 4]}
ObsUtils.initialize_obs_modality_mapping_from_dict(modalities)
data = SequenceDataset(path, list(shapes), ("actions", "rewards", "dones"), seq_length=window, load_next_obs=False,
                       hdf5_cache_mode=None if cache == "None" else cache)
loader = torch.utils.data.DataLoader(data, batch_size=batch, shuffle=True, drop_last=True)
for line in sys.stdin:
    count, began, cpu = 0, time.perf_counter(), time.process_time()
    while time.perf_counter() < began + float(line):
        for item in loader:
            count += len(item["actions"])
            if time.perf_counter() > began + float(line):
                break
    print("rate", count / (time.perf_counter() - began), 1e6 * (time.process_time() - cpu) / count, flush=True)
"""


def genuine(python: str, path: Path, cache: str | None) -> Callable[[float], Measured]:
    """Robomimic's own package, in a process that measures when it is asked to."""
    command = [python, "-c", GENUINE, str(path), str(WINDOW), str(BATCH), str(cache)]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )

    def measure(seconds: float) -> Measured:
        print(seconds, file=process.stdin, flush=True)
        for line in process.stdout or ():
            if line.startswith("rate"):
                return Measured(*map(float, line.split()[1:]))
        raise RuntimeError(f"{python} could not measure robomimic's loader; is robomimic installed there?")

    return measure
