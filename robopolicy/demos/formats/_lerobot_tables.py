"""Finds the episodes of a LeRobot data set in the tables and video files of v2.1 and v3.0."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from robopolicy.demos.schema import filled, json_object, text_of
from robopolicy.types import DemoFormatError, one_line


class Episodes:
    """The episodes of one data set, by LeRobot's episode index; common to both versions."""

    lengths: Mapping[int, int]
    """Steps of each episode, in order."""
    notes: tuple[str, ...] = ()
    """Notes on the parts of the data set that can't be read."""

    def __init__(self, root: Path, info: Mapping[str, Any], tasks: Mapping[int, str]) -> None:
        self._root, self._info, self._tasks = root, info, tasks
        self._cached: tuple[Any, Any] = (None, None)

    def table(self, index: int, columns: Iterable[str]) -> Any:
        """The episode's rows of these columns, a pyarrow table; absent columns are left out."""
        raise NotImplementedError

    def video(self, index: int, key: str) -> tuple[Path, float]:
        """The file that holds the episode's images, and when they begin in it [s]."""
        raise NotImplementedError

    def instruction(self, table: Any) -> str | None:
        """The instruction of the first step of an episode's table."""
        if "task_index" not in table.column_names:
            return None
        return self._tasks.get(int(table.column("task_index")[0].as_py())) or None

    def _read(self, path: Path, columns: Iterable[str]) -> Any:
        """These columns of a parquet file; the last file read is cached, since in v3.0 it holds many episodes."""
        requested = sorted(columns)
        if self._cached[0] != (path, requested):
            self._cached = ((path, requested), read_parquet(path, requested))
        return self._cached[1]

    def _inside(self, template: str, **values: Any) -> Path:
        """The path from a template of `info.json`; refused if it leads out of the data set."""
        where = f"{self._root.name}/meta/info.json: {template}"
        if not isinstance(self._info.get(template), str):
            raise DemoFormatError(f"{where} is missing; expected text such as {{episode_index:06d}}.parquet")
        path = (self._root / filled(self._info[template], values, where)).resolve()
        if not path.is_relative_to(self._root.resolve()):
            raise DemoFormatError(f"{self._root.name}: {template} leads out of the data set; refused")
        return path


class _EpisodesV2(Episodes):
    def __init__(self, root: Path, info: Mapping[str, Any]) -> None:
        tasks = {int(row["task_index"]): str(row["task"]) for row in _json_lines(root / "meta" / "tasks.jsonl")}
        super().__init__(root, info, tasks)
        rows = _json_lines(root / "meta" / "episodes.jsonl")
        self.lengths = {int(row["episode_index"]): int(row["length"]) for row in rows}

    def table(self, index: int, columns: Iterable[str]) -> Any:
        return self._read(self._inside("data_path", **self._place(index)), columns)

    def video(self, index: int, key: str) -> tuple[Path, float]:
        return self._inside("video_path", video_key=key, **self._place(index)), 0.0

    def _place(self, index: int) -> dict[str, int]:
        return {"episode_chunk": index // int(self._info.get("chunks_size", 1000)), "episode_index": index}


class _EpisodesV3(Episodes):
    def __init__(self, root: Path, info: Mapping[str, Any]) -> None:
        super().__init__(root, info, _tasks_v3(root / "meta" / "tasks.parquet"))
        files = sorted((root / "meta" / "episodes").rglob("*.parquet"))
        if not files:
            raise DemoFormatError(
                f"{root.name}: no meta/episodes/*/*.parquet; a v3.0 data set lists its episodes there"
            )
        rows, cut = [], []
        for file in files:
            try:
                rows += read_parquet(file, except_prefix="stats/").to_pylist()
            except DemoFormatError as error:
                cut.append(f"{error}; the episodes it lists are left out")
        if not rows and cut:
            raise DemoFormatError(f"{root.name}/meta/episodes: {cut[0].partition('; the episodes')[0]}")
        self.notes = tuple(cut)
        self._rows = {int(row["episode_index"]): row for row in rows}
        self.lengths = {index: int(self._rows[index]["length"]) for index in sorted(self._rows)}

    def table(self, index: int, columns: Iterable[str]) -> Any:
        row = self._rows[index]
        path = self._inside("data_path", chunk_index=row["data/chunk_index"], file_index=row["data/file_index"])
        table = self._read(path, {*columns, "episode_index"})
        rows = np.flatnonzero(table.column("episode_index").to_numpy() == index)
        return table.slice(rows[0], len(rows)) if len(rows) else table.slice(0, 0)

    def video(self, index: int, key: str) -> tuple[Path, float]:
        row, prefix = self._rows[index], f"videos/{key}/"
        path = self._inside(
            "video_path", video_key=key, chunk_index=row[f"{prefix}chunk_index"], file_index=row[f"{prefix}file_index"]
        )
        return path, float(row[f"{prefix}from_timestamp"])


def open_episodes(root: Path, info: Mapping[str, Any]) -> Episodes:
    """The episodes, read by the layout version in `codebase_version`.

    Raises:
        DemoFormatError: the version is neither v2 nor v3.
    """
    version = str(info["codebase_version"])
    if version.startswith("v3."):
        return _EpisodesV3(root, info)
    if version.startswith("v2."):
        return _EpisodesV2(root, info)
    raise DemoFormatError(
        f"{root.name}: LeRobot codebase_version {version[:20]}; expected v2.1 or v3.0, convert it with lerobot"
    )


def read_parquet(path: Path, columns: Iterable[str] | None = None, except_prefix: str | None = None) -> Any:
    """A parquet file as a pyarrow table, with those of the named columns that it has.

    Raises:
        DemoFormatError: pyarrow isn't installed, or the file is missing or damaged.
    """
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise DemoFormatError(
            "LeRobot data sets need pyarrow; install it with: pip install 'robopolicy[formats]'"
        ) from error
    try:
        there = pq.read_schema(path).names
        requested = [name for name in there if columns is None or name in set(columns)]
        if except_prefix is not None:
            requested = [name for name in requested if not name.startswith(except_prefix)]
        return pq.read_table(path, columns=requested)
    except (OSError, pa.ArrowException) as error:
        if "footer" in str(error):
            reason = "cut off: no footer, which LeRobot writes when a recording is finalized; its rows can't be read"
            raise DemoFormatError(f"{path.name}: {reason}") from error
        raise DemoFormatError(f"{path.name}: can't be read as parquet ({one_line(error)})") from error


def column_values(table: Any, column: str, where: str) -> np.ndarray:
    """A numeric column as (T, ...); a column of single numbers is (T, 1).

    Raises:
        DemoFormatError: it is missing, ragged, has gaps, or a value is not finite.
    """
    if column not in table.column_names:
        raise DemoFormatError(f"{where}: no column {column}; it has: {', '.join(table.column_names)}")
    chunks = table.column(column).combine_chunks()
    if chunks.null_count:
        raise DemoFormatError(f"{where}: {column} has {chunks.null_count} missing values; every step needs one")
    rows = len(chunks)
    while hasattr(chunks, "flatten") and hasattr(chunks.type, "value_type"):
        chunks = chunks.flatten()
    values = chunks.to_numpy(zero_copy_only=False)
    if values.dtype.kind not in "biuf" or (rows and len(values) % rows):
        raise DemoFormatError(f"{where}: {column} has type {table.column(column).type}, or rows of unequal length")
    values = values.reshape(rows, -1)
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        step = int(np.argwhere(~np.isfinite(values))[0][0])
        raise DemoFormatError(f"{where}: {column}: {values[step]} at step {step}; every value must be finite")
    return values


def _tasks_v3(path: Path) -> dict[int, str]:
    """Task texts by index; the text's column is `task`, or an unnamed index of pandas."""
    table = read_parquet(path)
    text = next((name for name in table.column_names if name != "task_index"), None)
    if text is None or "task_index" not in table.column_names:
        raise DemoFormatError(f"{path.name}: columns {', '.join(table.column_names)}; expected task_index and a text")
    return {int(row["task_index"]): str(row[text]) for row in table.to_pylist()}


def _json_lines(path: Path) -> list[dict[str, Any]]:
    return [json_object(line, path.name) for line in text_of(path).splitlines() if line.strip()]
