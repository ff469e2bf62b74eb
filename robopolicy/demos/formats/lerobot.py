"""LeRobot data sets, v2.1 and v3.0 (github.com/huggingface/lerobot): parquet tables, and images as video or PNG.

v2.1 keeps one parquet and one mp4 per episode, v3.0 many episodes in each. `meta/info.json` describes the columns. Our own
writer adds `meta/robopolicy.json`, which LeRobot ignores, for what its tables can't hold (`SIDECAR`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from robopolicy.components import register
from robopolicy.demos.formats._lerobot_tables import Episodes, column_values, open_episodes
from robopolicy.demos.formats._video import decode_image, read_video
from robopolicy.demos.formats.base import DemoReader, WritableFormat, requested_keys, require_demo
from robopolicy.demos.guarded import damage_named
from robopolicy.demos.schema import action_spec_from, json_file, lerobot_info
from robopolicy.types import Demo, DemoFormatError

SIDECAR = "meta/robopolicy.json"
"""Keys: names, obs_columns (key -> start, stop, dtype, shape within observation.state), dtypes, action_spec, filter_keys,
env_args, seeds, edits."""
STATE = "observation.state"
STEP_COLUMNS = {
    "executed_actions": "executed_action",
    "states": "simulator_state",
    "rewards": "next.reward",
    "dones": "next.done",
}
"""Table column of each optional field of a Demo."""
BOOKKEEPING = ("timestamp", "frame_index", "episode_index", "index", "task_index", "action")


@dataclass(frozen=True)
class LeRobotOptions:
    """Options for writing data sets."""

    version: Literal["v3.0", "v2.1"] = "v3.0"
    """Layout of files and tables."""
    images: Literal["video", "png"] = "video"
    """`video`: H.264, which is lossy; `png`: lossless, inside the tables."""


class LeRobotReader(DemoReader):
    """Reads one LeRobot data set, episode by episode."""

    format_name = "lerobot"

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        with damage_named(f"{path.name}/meta"):
            self._describe(lerobot_info(path / "meta" / "info.json"))

    def _describe(self, info: dict[str, Any]) -> None:
        """Set the properties from the metadata."""
        path = self.path
        self._rate_hz = float(info["fps"])
        self._features: dict[str, Any] = info["features"]
        if "action" not in self._features:
            raise DemoFormatError(f"{path.name}: no feature action; it has: {', '.join(self._features)}")
        self._episodes: Episodes = open_episodes(path, info)
        sidecar = path / SIDECAR
        self._own: dict[str, Any] = json_file(sidecar) if sidecar.is_file() else {}
        names = self._own.get("names")
        self._index = {names[index] if names else f"demo_{index}": index for index in self._episodes.lengths}
        self.names = tuple(self._index)
        self._keys = _observation_keys(self._features, self._own.get("obs_columns", {}))
        self.filter_keys = self._own.get("filter_keys") or _splits(info.get("splits") or {}, self._index)
        facts = {key: info.get(key) for key in ("codebase_version", "fps", "robot_type")}
        facts |= {key: self._own.get(key) for key in ("env_args", "edits")}
        self.attributes = {key: value for key, value in facts.items() if value is not None}
        spec = self._own.get("action_spec")
        self.action_spec = action_spec_from(spec, f"{path.name}: action_spec") if spec else None
        self.action_facts = {"rate_hz": self._rate_hz, **_named_columns(self._features["action"])}
        used = {*BOOKKEEPING, *STEP_COLUMNS.values(), *self._keys.values()}
        left_out = sorted(set(self._features) - used)
        self.notes = (*self._episodes.notes, *([f"columns left out: {', '.join(left_out)}"] if left_out else []))

    def columns(self, key: str) -> tuple[str, slice]:
        """LeRobot's feature that holds an observation key, and the slice of it: all, unless our writer merged several keys."""
        part = self._own.get("obs_columns", {}).get(key)
        return self._keys[key], slice(None) if part is None else slice(part["start"], part["stop"])

    def read(self, name: str, keys: Sequence[str] | None = None) -> Demo:
        """One episode; `keys` limits which observations are read, so that no other video is decoded."""
        require_demo(self, name)
        index, where = self._index[name], f"{self.path.name}, {name}"
        with damage_named(where):
            requested = requested_keys(self._keys, keys, where)
            features = {self._keys[key] for key in requested}
            stored = {feature for feature in features if self._features[feature]["dtype"] != "video"}
            optional = {field: column for field, column in STEP_COLUMNS.items() if column in self._features}
            table = self._episodes.table(index, {"action", "task_index", *stored, *optional.values()})
            arrays: dict[str, Any] = {}
            for field, column in optional.items():
                values = self._typed(field, column_values(table, column, where))
                arrays[field] = values[:, 0] if field in ("rewards", "dones") else values
            return Demo(
                name=name,
                obs={key: self._values(key, index, table, where) for key in requested},
                actions=self._typed("actions", column_values(table, "action", where)),
                instruction=self._episodes.instruction(table),
                seed=self._own.get("seeds", {}).get(name),
                **arrays,
            )

    def clock(self, name: str) -> np.ndarray | None:
        """(T,) `timestamp` of each step [s]."""
        if "timestamp" not in self._features:
            return None
        table = self._episodes.table(self._index[name], {"timestamp"})
        return column_values(table, "timestamp", self.path.name)[:, 0]

    def _values(self, key: str, index: int, table: Any, where: str) -> np.ndarray:
        feature = self._keys[key]
        kind = self._features[feature]["dtype"]
        if kind == "video":
            path, start_s = self._episodes.video(index, feature)
            return read_video(path, start_s, self._episodes.lengths[index], self._rate_hz)
        if kind == "image":
            images = table.column(feature).to_pylist()
            return np.stack([decode_image(image["bytes"], f"{where}: {key}") for image in images])
        values = column_values(table, feature, where)
        part = self._own.get("obs_columns", {}).get(key)
        if part is None:
            return values
        return values[:, part["start"] : part["stop"]].astype(part["dtype"]).reshape(len(values), *part["shape"])

    def _typed(self, field: str, values: np.ndarray) -> np.ndarray:
        return values.astype(self._own.get("dtypes", {}).get(field, values.dtype), copy=False)


@register("demo_format", "lerobot", LeRobotOptions)
class LeRobotFormat(WritableFormat):
    """LeRobot data sets v3.0 and v2.1: parquet tables, and video or PNG."""

    reader = LeRobotReader

    def matches(self, path: Path) -> bool:
        """A folder with `meta/info.json`."""
        return (path / "meta" / "info.json").is_file()

    def write(self, source: DemoReader, target: Path, names: Sequence[str]) -> list[str]:
        """Write these demos as episodes 0, 1, ..."""
        from robopolicy.demos.formats._lerobot_writer import write_lerobot

        return write_lerobot(source, target, names, self.options)


def _observation_keys(features: Mapping[str, Any], obs_columns: Mapping[str, Any]) -> dict[str, str]:
    """Our key -> LeRobot's feature: `observation.images.top` is `top`, unless two would share a name."""
    observed = [
        name
        for name, feature in features.items()
        if name.startswith("observation.") and feature["dtype"] not in ("string", "language")
    ]
    keys = {name: name.removeprefix("observation.").removeprefix("images.") for name in observed}
    taken = list(keys.values())
    keys = {name: key if taken.count(key) == 1 else name.removeprefix("observation.") for name, key in keys.items()}
    found = {key: name for name, key in keys.items() if not (obs_columns and name == STATE)}
    return found | dict.fromkeys(obs_columns, STATE)


def _named_columns(feature: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of ActionSpec that follow from the names of the action's columns."""
    names = feature.get("names")
    while isinstance(names, Mapping):
        names = next(iter(names.values()), None)
    if not isinstance(names, list) or len(names) != feature["shape"][0]:
        return {}
    facts: dict[str, Any] = {
        "continuous_gripper": [i for i, name in enumerate(names) if "gripper" in str(name).lower()]
    }
    if all(str(name).endswith(".pos") for name in names):
        facts |= {"kind": "absolute", "space": "joint_position"}
    return facts


def _splits(splits: Mapping[str, str], index: Mapping[str, int]) -> dict[str, list[str]]:
    """`{"train": "0:90", "val": "90:100"}` as filter keys; a single split is not a filter key."""
    if len(splits) < 2:
        return {}
    found = {}
    for key, text in splits.items():
        first, last = (int(number) for number in str(text).split(":"))
        found["valid" if key in ("val", "validation") else key] = [
            name for name, i in index.items() if first <= i < last
        ]
    return found
