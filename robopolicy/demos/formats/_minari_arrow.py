"""Reads Minari data sets stored as Arrow or Parquet: a folder `<number>` per episode, which holds `part-0.arrow`.

The tables have T + 1 rows; in the last one, action, reward, termination and truncation are padding. Arrays of several
dimensions are stored flattened; `observation_space` in `metadata.json` has their shapes. Needs pyarrow (extra `formats`).
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from robopolicy.demos.formats._minari_writer import MISSION
from robopolicy.demos.formats._video import decode_image
from robopolicy.demos.formats.base import DemoReader, requested_keys, require_demo
from robopolicy.demos.guarded import damage_named
from robopolicy.demos.images import as_image
from robopolicy.demos.schema import json_file
from robopolicy.types import Demo, DemoFormatError

STORED = ("arrow", "parquet")
"""Values of `data_format` of such data sets."""
MAX_BYTES = 2**33
"""Largest total size of an episode's files [bytes]."""


def arrow_folder(folder: Path) -> Path | None:
    """The folder with the episodes, if this is such a data set."""
    for place in (folder / "data", folder):
        stored = any(file.suffix.lstrip(".") in STORED for file in (place / "0").glob("*"))
        if stored and (place / "metadata.json").is_file():
            return place
    return None


class ArrowReader(DemoReader):
    """Reads one such data set, episode by episode; the last observation, on which no action was taken, is left out."""

    format_name = "minari"

    def __init__(self, path: Path, folder: Path) -> None:
        super().__init__(path)
        self._folder = folder
        self.attributes = json_file(folder / "metadata.json")
        if self.attributes.get("data_format") not in STORED:
            raise DemoFormatError(
                f"{path.name}: data_format is {str(self.attributes.get('data_format'))[:40]!r}; expected arrow or parquet"
            )
        self._shapes = dict(_shapes(self.attributes.get("observation_space"), path.name))
        numbers = sorted(int(item.name) for item in folder.iterdir() if item.name.isdecimal() and item.is_dir())
        self.names = tuple(f"demo_{number}" for number in numbers)
        self.notes = ("the last observation of each episode, on which no action was taken, is left out",)

    def read(self, name: str, keys: Sequence[str] | None = None) -> Demo:
        """One episode, with all observation keys or only `keys`; nested keys are joined by `_`."""
        require_demo(self, name)
        where = f"{self.path.name}, {name}"
        with damage_named(where):
            return self._read(name, keys, where)

    def _read(self, name: str, keys: Sequence[str] | None, where: str) -> Demo:
        from pyarrow import dataset

        folder = self._folder / name.removeprefix("demo_")
        files = sorted(item for item in folder.iterdir() if item.suffix.lstrip(".") in STORED)
        size = sum(file.stat().st_size for file in files)
        if not files or any(file.is_symlink() for file in files) or size > MAX_BYTES:
            raise DemoFormatError(
                f"{where}: found {len(files)} files, {size} bytes in total; expected regular .arrow or .parquet files (no "
                f"links) of at most {MAX_BYTES} bytes"
            )
        table = dataset.dataset(files, format=files[0].suffix.lstrip(".")).to_table().combine_chunks()
        found = dict(_columns(table.column("observations").chunk(0), ""))
        texts = {key: found.pop(key) for key in list(found) if str(found[key].type) in ("string", "large_string")}
        obs = {}
        for key in requested_keys(found, keys, where):
            rows = _rows(found[key], self._shapes.get(key), f"{where}: {key}")
            obs[key] = as_image(rows[:-1])
        ends = [np.asarray(table.column(key).to_numpy()[:-1], bool) for key in ("terminations", "truncations")]
        metadata = folder / "metadata.json"
        seed = json_file(metadata).get("seed") if metadata.is_file() else None
        return Demo(
            name=name,
            obs=obs,
            actions=_rows(table.column("actions").chunk(0), None, f"{where}: actions")[:-1],
            instruction=str(texts[MISSION][0].as_py() or "") or None if MISSION in texts else None,
            rewards=table.column("rewards").to_numpy()[:-1],
            dones=np.logical_or(*ends),
            seed=seed if isinstance(seed, int) else None,
        )


def _columns(values: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    """(key, array) for each field of a struct, nested keys joined by `_`; a plain array has the key `observation`."""
    if not str(values.type).startswith("struct"):
        yield prefix.rstrip("_") or "observation", values
        return
    for place, field in enumerate(values.type):
        yield from _columns(values.field(place), f"{prefix}{field.name}_")


def _rows(values: Any, shape: Sequence[int] | None, where: str) -> np.ndarray:
    """(rows, *shape) numbers; binary values are the JPEG images that Minari writes."""
    kind = str(values.type)
    if kind == "binary":
        return np.stack([decode_image(value.as_py(), where) for value in values])
    rows = values.flatten().to_numpy(zero_copy_only=False) if "list" in kind else values.to_numpy(zero_copy_only=False)
    if rows.dtype.kind not in "biuf" or values.null_count:
        raise DemoFormatError(f"{where} has type {kind[:60]}; expected numbers")
    if rows.dtype.kind == "f" and not np.isfinite(rows).all():
        raise DemoFormatError(f"{where} holds values that are not finite")
    if shape is None:
        return rows.reshape(len(values), -1)
    if len(rows) != len(values) * int(np.prod(shape)):
        raise DemoFormatError(
            f"{where}: {len(rows)} numbers in {len(values)} rows do not fit the shape {tuple(shape)} in observation_space"
        )
    return rows.reshape(len(values), *shape)


def _shapes(text: Any, where: str) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Key -> shape, of a serialized space; its bounds, which may be infinite, are not used."""

    def below(space: Any, prefix: str, depth: int) -> Iterator[tuple[str, tuple[int, ...]]]:
        if not isinstance(space, Mapping) or depth > 8:
            raise ValueError("each space must be a JSON object, nested at most 8 deep")
        if space.get("type") == "Dict":
            for key, inner in dict(space.get("subspaces") or {}).items():
                yield from below(inner, f"{prefix}{key}_", depth + 1)
        elif space.get("type") == "Box":
            yield prefix.rstrip("_") or "observation", tuple(int(size) for size in space["shape"])

    try:
        yield from below(json.loads(text), "", 0)
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise DemoFormatError(f"{where}: observation_space is not a space as Minari writes it ({error})") from None
