"""Writes LeRobot's tables, videos and metadata: v2.1 with a file per episode, v3.0 with many episodes per file."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from robopolicy.demos.formats._video import VideoWriter

CHUNK_SIZE = 1000
"""Files (v3.0) or episodes (v2.1) of one `chunk-<i>` folder."""
DATA_FILE_BYTES = 100 * 2**20
VIDEO_FILE_BYTES = 200 * 2**20
"""Size above which v3.0 begins the next file; LeRobot's own limits."""
BOOKKEEPING = {
    "timestamp": "float32",
    "frame_index": "int64",
    "episode_index": "int64",
    "index": "int64",
    "task_index": "int64",
}

TASK_INDEX = {
    "index_columns": ["task"],
    "column_indexes": [],
    "columns": [
        {"name": name, "field_name": name, "pandas_type": kind, "numpy_type": stored, "metadata": None}
        for name, kind, stored in (("task_index", "int64", "int64"), ("task", "unicode", "object"))
    ],
    "pandas_version": "2.0.0",
}
"""Metadata for pandas, which LeRobot reads the tasks with: the text of a task is the table's index."""


class _Layout:
    """Common to both versions: features, rows of the table, `info.json`."""

    version: str

    def __init__(self, root: Path, features: Mapping[str, Any], rate_hz: float, robot_type: str | None) -> None:
        self.root, self.rate_hz, self.robot_type = root, rate_hz, robot_type
        bookkeeping = {key: {"dtype": dtype, "shape": [1], "names": None} for key, dtype in BOOKKEEPING.items()}
        self.features = {**features, **bookkeeping}
        self.videos = [key for key, feature in features.items() if feature["dtype"] == "video"]
        self.episodes: list[dict[str, Any]] = []
        self.tasks: dict[str, int] = {}
        """Text of each task -> its index."""
        self.frames = 0
        """Frames of all episodes so far."""
        (root / "meta").mkdir(parents=True)

    def table(self, task: str, columns: Mapping[str, Any], timestamps: np.ndarray) -> Any:
        """The rows of the next episode as a pyarrow table."""
        import pyarrow as pa

        steps = len(timestamps)
        first, self.frames = self.frames, self.frames + steps
        rows = {
            **{key: column for key, column in columns.items() if key not in self.videos},
            "timestamp": timestamps,
            "frame_index": np.arange(steps),
            "episode_index": np.full(steps, len(self.episodes)),
            "index": np.arange(first, self.frames),
            "task_index": np.full(steps, self.tasks.setdefault(task, len(self.tasks))),
        }
        return pa.table({key: self._column(key, column) for key, column in rows.items()})

    def _column(self, key: str, column: Any) -> Any:
        import pyarrow as pa

        if self.features[key]["dtype"] == "image":
            kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
            return pa.array([{"bytes": data, "path": f"frame_{i:06d}.png"} for i, data in enumerate(column)], type=kind)
        if column.ndim == 1 or column.shape[1] == 1:
            return pa.array(column.reshape(len(column)))
        return pa.FixedSizeListArray.from_arrays(pa.array(column.reshape(-1)), column.shape[1])

    def open_video(self, path: Path, key: str) -> VideoWriter:
        """A video file for one camera."""
        height, width, _ = self.features[key]["shape"]
        path.parent.mkdir(parents=True, exist_ok=True)
        return VideoWriter(path, height, width, self.rate_hz)

    def write_info(self, **more: Any) -> None:
        """`meta/info.json`."""
        info = {
            "codebase_version": self.version,
            "robot_type": self.robot_type,
            "total_episodes": len(self.episodes),
            "total_frames": self.frames,
            "total_tasks": len(self.tasks),
            "chunks_size": CHUNK_SIZE,
            "fps": int(self.rate_hz) if self.rate_hz == int(self.rate_hz) else self.rate_hz,
            "splits": {"train": f"0:{len(self.episodes)}"},
            **more,
            "features": self.features,
        }
        (self.root / "meta" / "info.json").write_text(json.dumps(info, indent=4))


class LayoutV2(_Layout):
    """One parquet file and one video per camera for each episode; metadata as lines of JSON."""

    version = "v2.1"
    DATA = "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet"
    VIDEO = "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4"

    def write_episode(self, task: str, columns: Mapping[str, Any], timestamps: np.ndarray, stats: Any) -> None:
        """Write one episode's files."""
        import pyarrow.parquet as pq

        index = len(self.episodes)
        where = {"episode_chunk": index // CHUNK_SIZE, "episode_index": index}
        path = self.root / self.DATA.format(**where)
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(self.table(task, columns, timestamps), path)
        for key in self.videos:
            with self.open_video(self.root / self.VIDEO.format(video_key=key, **where), key) as video:
                video.write(columns[key])
        self.episodes.append({"episode_index": index, "tasks": [task], "length": len(timestamps), "stats": stats})

    def close(self, stats: Mapping[str, Any]) -> None:
        """Write the metadata; v2.1 stores the statistics of each episode, which LeRobot merges when it reads the data set."""
        meta = self.root / "meta"
        _write_lines(meta / "tasks.jsonl", [{"task_index": i, "task": task} for task, i in self.tasks.items()])
        _write_lines(
            meta / "episodes.jsonl",
            [{key: episode[key] for key in ("episode_index", "tasks", "length")} for episode in self.episodes],
        )
        _write_lines(
            meta / "episodes_stats.jsonl",
            [{key: episode[key] for key in ("episode_index", "stats")} for episode in self.episodes],
        )
        self.write_info(
            total_videos=len(self.episodes) * len(self.videos),
            total_chunks=(len(self.episodes) - 1) // CHUNK_SIZE + 1,
            data_path=self.DATA,
            video_path=self.VIDEO if self.videos else None,
        )


class LayoutV3(_Layout):
    """Many episodes in each parquet file and each video; metadata as parquet."""

    version = "v3.0"
    DATA = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
    VIDEO = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"

    def __init__(self, root: Path, features: Mapping[str, Any], rate_hz: float, robot_type: str | None) -> None:
        super().__init__(root, features, rate_hz, robot_type)
        self._open: dict[str, _OpenFile] = {}

    def write_episode(self, task: str, columns: Mapping[str, Any], timestamps: np.ndarray, stats: Any) -> None:
        """Append one episode to the open files, or to new ones if those are full."""
        import pyarrow.parquet as pq

        table = self.table(task, columns, timestamps)
        data = self._current("data", self.DATA, DATA_FILE_BYTES, lambda path: pq.ParquetWriter(path, table.schema))
        data.writer.write_table(table)
        row: dict[str, Any] = {
            "episode_index": len(self.episodes),
            "tasks": [task],
            "length": len(timestamps),
            "data/chunk_index": data.number // CHUNK_SIZE,
            "data/file_index": data.number % CHUNK_SIZE,
            "dataset_from_index": self.frames - len(timestamps),
            "dataset_to_index": self.frames,
        }
        for key in self.videos:
            row |= self._append_video(key, columns[key])
        row |= {f"stats/{key}/{name}": value for key, found in stats.items() for name, value in found.items()}
        self.episodes.append({**row, "meta/episodes/chunk_index": 0, "meta/episodes/file_index": 0})

    def close(self, stats: Mapping[str, Any]) -> None:
        """Finish the open files and write the metadata."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        for open_file in self._open.values():
            open_file.writer.close()
        meta = self.root / "meta"
        path = meta / "episodes" / "chunk-000" / "file-000.parquet"
        path.parent.mkdir(parents=True)
        pq.write_table(pa.Table.from_pylist(self.episodes), path)
        table = pa.table({"task_index": list(self.tasks.values()), "task": list(self.tasks)})
        pq.write_table(table.replace_schema_metadata({"pandas": json.dumps(TASK_INDEX)}), meta / "tasks.parquet")
        (meta / "stats.json").write_text(json.dumps(stats, indent=1))
        self.write_info(
            data_files_size_in_mb=DATA_FILE_BYTES // 2**20,
            video_files_size_in_mb=VIDEO_FILE_BYTES // 2**20,
            data_path=self.DATA,
            video_path=self.VIDEO if self.videos else None,
        )

    def _append_video(self, key: str, frames: np.ndarray) -> dict[str, Any]:
        video = self._current(key, self.VIDEO, VIDEO_FILE_BYTES, lambda path: self.open_video(path, key), video_key=key)
        first = video.writer.frames
        video.writer.write(frames)
        return {
            f"videos/{key}/chunk_index": video.number // CHUNK_SIZE,
            f"videos/{key}/file_index": video.number % CHUNK_SIZE,
            f"videos/{key}/from_timestamp": first / self.rate_hz,
            f"videos/{key}/to_timestamp": (first + len(frames)) / self.rate_hz,
        }

    def _current(self, kind: str, template: str, limit: int, start: Callable[[Path], Any], **names: str) -> "_OpenFile":
        """The open file of this kind, or a new one if it is full."""
        current = self._open.get(kind)
        if current is not None and current.path.stat().st_size <= limit:
            return current
        number = 0
        if current is not None:
            current.writer.close()
            number = current.number + 1
        path = self.root / template.format(chunk_index=number // CHUNK_SIZE, file_index=number % CHUNK_SIZE, **names)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._open[kind] = _OpenFile(number, path, start(path))
        return self._open[kind]


@dataclass
class _OpenFile:
    number: int
    path: Path
    writer: Any


def _write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
