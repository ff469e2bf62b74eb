"""Writes LeRobot data sets, v3.0 and v2.1, with images as H.264 video or, lossless, as PNG inside the tables.

Low-dimensional observations become one vector, `observation.state`, as LeRobot's policies expect it; `meta/robopolicy.json`
records which of its columns belong to which key, so that reading returns what was written, types included.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from robopolicy.demos.formats._lerobot_layout import LayoutV2, LayoutV3
from robopolicy.demos.formats._video import encode_png
from robopolicy.demos.formats.base import (
    DemoReader,
    Omissions,
    RowShapes,
    action_spec_of,
    filter_keys_of,
    is_image,
    row_difference,
    row_shapes,
)
from robopolicy.demos.formats.lerobot import SIDECAR, STATE, STEP_COLUMNS, LeRobotOptions
from robopolicy.types import Demo, DemoFormatError

DEFAULT_RATE_HZ = 20.0
"""Written as `fps`, which LeRobot requires, if the demos have no rate; the notes report it."""
LARGEST_ROW = 4096
"""Largest number of values per step of an observation that is written to `observation.state`."""
SAMPLED_FRAMES = 100
"""Number of an episode's frames from which the statistics of its images are computed."""


def write_lerobot(source: DemoReader, target: Path, names: Sequence[str], options: LeRobotOptions) -> list[str]:
    """Write these demos as episodes 0, 1, ...; returns a line for each thing that was changed or left out."""
    spec = action_spec_of(source)
    rate_hz = spec.rate_hz or DEFAULT_RATE_HZ
    first = source.read(names[0])
    columns = _Columns(first, options.images)
    make = LayoutV3 if options.version == "v3.0" else LayoutV2
    layout = make(target, columns.features, rate_hz, source.attributes.get("robot_type"))
    kept = ("edits", "env_args", "fps", "codebase_version", "robot_type")
    omissions = Omissions("LeRobot", source, len(names), kept)
    cameras = [image_feature(key) for key in columns.images]
    stats, seeds = [], {}
    for name in names:
        demo = source.read(name)
        values = columns.values(demo)
        stats.append(_episode_stats(values, cameras))
        clock = source.clock(name)
        times = np.arange(len(demo), dtype=np.float32) / np.float32(rate_hz) if clock is None else clock
        layout.write_episode(demo.instruction or "", _encoded(values, columns), times.astype(np.float32), stats[-1])
        if demo.seed is not None:
            seeds[name] = demo.seed
        omissions.add(demo, ("tokens",), demo.attributes, columns.left_out)
    layout.close(_merged_stats(stats))
    own = {
        "names": list(names),
        "obs_columns": columns.obs_columns,
        "dtypes": columns.dtypes,
        "action_spec": spec.to_dict(),
        "filter_keys": filter_keys_of(source, names),
        "env_args": source.attributes.get("env_args") or {},
        "seeds": seeds,
        "edits": source.attributes.get("edits"),
    }
    (target / SIDECAR).write_text(json.dumps(own, indent=1))
    notes = omissions.lines()
    if columns.images and options.images == "video":
        notes.append(
            f"{', '.join(columns.images)}: stored as H.264 video, which is lossy; "
            "the option images=png stores images without loss"
        )
    if spec.rate_hz is None:
        notes.append(f"the demos have no control rate, which LeRobot requires; fps is written as {DEFAULT_RATE_HZ:g}")
    return notes


class _Columns:
    """Maps the fields of a Demo to LeRobot's features; all demos must have the fields of the first one."""

    def __init__(self, first: Demo, images: str) -> None:
        self.images = [key for key, values in first.obs.items() if is_image(values)]
        held = [key for key in first.obs if key not in self.images and first.obs[key][0].size <= LARGEST_ROW]
        self.left_out = [key for key in first.obs if key not in (*self.images, *held)]
        self.optional = [field for field in STEP_COLUMNS if getattr(first, field) is not None]
        self._rows = self._kept_rows(first)
        self.obs_columns: dict[str, dict[str, Any]] = {}
        stop = 0
        for key in held:
            row = first.obs[key][0]
            start, stop = stop, stop + row.size
            self.obs_columns[key] = {"start": start, "stop": stop, "dtype": str(row.dtype), "shape": list(row.shape)}
        self.dtypes = {field: str(getattr(first, field).dtype) for field in ("actions", *self.optional)}
        kind = "video" if images == "video" else "image"
        self.features: dict[str, dict[str, Any]] = {
            image_feature(key): {
                "dtype": kind,
                "shape": list(first.obs[key].shape[1:]),
                "names": ["height", "width", "channels"],
            }
            for key in self.images
        }
        for column, values in self.values(first).items():
            if column not in self.features:
                names = self._names(column)
                self.features[column] = {"dtype": str(values.dtype), "shape": list(values.shape[1:]), "names": names}

    def values(self, demo: Demo) -> dict[str, np.ndarray]:
        """The demo's arrays by feature: images (T, height, width, 3), everything else (T, n)."""
        if difference := row_difference(self._rows, self._kept_rows(demo)):
            raise DemoFormatError(f"{demo.name}: {difference}; a LeRobot data set needs the same in all demos")
        columns = {image_feature(key): demo.obs[key] for key in self.images}
        if self.obs_columns:
            columns[STATE] = np.concatenate([demo.obs[key].reshape(len(demo), -1) for key in self.obs_columns], axis=1)
        columns["action"] = demo.actions
        for field in self.optional:
            values = getattr(demo, field).reshape(len(demo), -1)
            columns[STEP_COLUMNS[field]] = values.astype(bool) if field == "dones" else values
        return columns

    def _kept_rows(self, demo: Demo) -> RowShapes:
        return {key: row for key, row in row_shapes(demo, STEP_COLUMNS).items() if key not in self.left_out}

    def _names(self, column: str) -> list[str] | None:
        if column != STATE:
            return None
        return [f"{key}.{i}" for key, part in self.obs_columns.items() for i in range(part["stop"] - part["start"])]


def image_feature(key: str) -> str:
    """LeRobot's name for the images of a camera."""
    return f"observation.images.{key}"


def _encoded(values: Mapping[str, np.ndarray], columns: _Columns) -> dict[str, Any]:
    """The columns, with images that go into the table encoded as PNG."""
    return {
        name: [encode_png(frame) for frame in column] if columns.features[name]["dtype"] == "image" else column
        for name, column in values.items()
    }


def _episode_stats(values: Mapping[str, np.ndarray], cameras: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The statistics of each feature in one episode; for images, of each channel, scaled to [0, 1], shaped (3, 1, 1)."""
    found = {}
    for name, column in values.items():
        if name in cameras:
            sample = column[:: max(1, len(column) // SAMPLED_FRAMES)]
            found[name] = _stats(sample.reshape(-1, 3) / 255.0, count=len(sample), shape=(3, 1, 1))
        else:
            found[name] = _stats(column.astype(np.float64), count=len(column), shape=column.shape[1:])
    return found


def _merged_stats(episodes: Sequence[Mapping[str, Mapping[str, Any]]]) -> dict[str, dict[str, Any]]:
    """Statistics of all episodes together, each weighted by its count."""
    merged = {}
    for name in episodes[0]:
        parts = {key: np.array([episode[name][key] for episode in episodes]) for key in episodes[0][name]}
        weight = parts["count"].reshape(len(episodes), *[1] * (parts["mean"].ndim - 1)) / parts["count"].sum()
        mean = (weight * parts["mean"]).sum(0)
        variance = (weight * (parts["std"] ** 2 + (parts["mean"] - mean) ** 2)).sum(0)
        merged[name] = {
            "min": parts["min"].min(0).tolist(),
            "max": parts["max"].max(0).tolist(),
            "mean": mean.tolist(),
            "std": np.sqrt(variance).tolist(),
            "count": [int(parts["count"].sum())],
        }
    return merged


def _stats(rows: np.ndarray, count: int, shape: tuple[int, ...]) -> dict[str, Any]:
    return {
        "min": rows.min(0).reshape(shape).tolist(),
        "max": rows.max(0).reshape(shape).tolist(),
        "mean": rows.mean(0).reshape(shape).tolist(),
        "std": rows.std(0).reshape(shape).tolist(),
        "count": [count],
    }
