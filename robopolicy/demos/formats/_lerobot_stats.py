"""The statistics that LeRobot keeps of each episode and of the whole set: min, max, mean, std and count of each column."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

SAMPLED_FRAMES = 100
"""Number of an episode's frames from which the statistics of its images are computed."""


def episode_stats(values: Mapping[str, np.ndarray], cameras: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The statistics of each feature in one episode; for images, of each channel, scaled to [0, 1], shaped (3, 1, 1)."""
    found = {}
    for name, column in values.items():
        if name.startswith("observation.images."):
            sample = column[:: max(1, len(column) // SAMPLED_FRAMES)]
            rows = sample.reshape(-1, 3) / 255.0
            found[name] = _stats(rows, count=len(sample), shape=(3, 1, 1))
        else:
            found[name] = _stats(column.astype(np.float64), count=len(column), shape=column.shape[1:])
    return found


def merge_stats(episodes: Sequence[Mapping[str, Mapping[str, Any]]]) -> dict[str, dict[str, Any]]:
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
