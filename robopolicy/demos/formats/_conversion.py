"""Converts demos from any readable format to any writable one."""

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from robopolicy.demos.formats._detection import open_demos, writable_format
from robopolicy.demos.formats.base import ChangedReader, DemoReader, WritableFormat, requested_keys
from robopolicy.demos.images import scaled_image
from robopolicy.files import TEMPORARY, remove
from robopolicy.types import Demo


def convert(
    source: str | Path,
    target: str | Path,
    format: str | None = None,
    names: Sequence[str] | None = None,
    options: Mapping[str, Any] | None = None,
    white: Mapping[str, float] | None = None,
) -> list[str]:
    """Write the demos at `source` to `target`; returns notes on what was changed or left out, one line each.

    The file is written under a temporary name and renamed at the end, so an incomplete file never has the target's name.

    Args:
        source: file or folder in any known format.
        target: file or folder to write; must not exist.
        format: a kind of the component family `demo_format`; None: robomimic, the native format.
        names: demos to write, in this order; None: all.
        options: options of the format, such as `{"images": "png"}` for lerobot.
        white: image key -> value that becomes 255, for images that are not 8-bit, such as `{"front": 65535}`.

    Raises:
        FileExistsError: `target` exists.
        DemoFormatError: the source can't be read, or the target's format can't represent it.
        ConfigError: the format or an option is unknown, or the format is read-only.
    """
    writer = writable_format(format, options)
    with open_demos(source) as reader:
        given = _Brightened(reader, white) if white else reader
        chosen = tuple(reader.names) if names is None else tuple(names)
        return [*reader.notes, *write_new({Path(target): (given, chosen)}, writer)]


def write_new(targets: Mapping[Path, tuple[DemoReader, Sequence[str]]], writer: WritableFormat) -> list[str]:
    """Write one or more files; returns notes on what was changed or left out, one line each.

    No file gets its final name before all are complete.

    Args:
        targets: path to write -> (reader, names of its demos to write there).
        writer: the format to write.

    Raises:
        FileExistsError, DemoFormatError: as in `convert`.
    """
    unfinished: dict[Path, Path] = {}
    notes: list[str] = []
    try:
        for target, (reader, names) in targets.items():
            if target.exists():
                raise FileExistsError(f"{target} exists; choose another name, or remove it first")
            target.parent.mkdir(parents=True, exist_ok=True)
            unfinished[target] = target.with_name(f".{target.stem}-{secrets.token_hex(8)}{TEMPORARY}{target.suffix}")
            notes += writer.write(reader, unfinished[target], tuple(names))
        for target, temporary in unfinished.items():
            if target.exists():
                raise FileExistsError(f"{target} was made by another process in the meantime; nothing was written")
            temporary.rename(target)
    finally:
        for temporary in unfinished.values():
            remove(temporary)
    for target in targets:
        for path in sorted(target.parent.glob(f".*{TEMPORARY}*")):
            if path.name.lstrip(".").startswith(f"{target.stem}-"):  # two dots: a temporary file of a temporary name
                notes.append(f"{path} belongs to another run; remove it if that run was interrupted")
    return list(dict.fromkeys(notes))


class _Brightened(ChangedReader):
    """Scales the images of some keys to 8 bits."""

    def __init__(self, source: DemoReader, white: Mapping[str, float]) -> None:
        super().__init__(source)
        self._white = white

    def read(self, name: str, keys: Sequence[str] | None = None) -> Demo:
        """See `DemoReader`."""
        demo, where = self.source.read(name, keys), f"{self.path.name}, {name}"
        requested_keys(demo.obs, [*self._white], where)
        changed = {key: scaled_image(demo.obs[key], top, f"{where}: {key}") for key, top in self._white.items()}
        return replace(demo, obs={**demo.obs, **changed})
