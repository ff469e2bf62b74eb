"""Demos of any format, written in another."""

import glob
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from robopolicy.demos.formats._detection import open_demos, writable_format
from robopolicy.demos.formats.base import ChangedReader, DemoReader, WritableFormat, wanted_keys
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
    """Write the demos at `source` to `target`; returns a line for each thing that was changed or left out.

    The target appears under its name only when it is complete.

    Args:
        source: a file or folder of any known format.
        target: must not exist.
        format: kind of the family `demo_format`; None: robomimic, the native file.
        names: only these demos, in this order.
        options: of the format, such as `{"images": "png"}` for lerobot.
        white: image key -> value of full brightness, for images that are not 8-bit, such as `{"front": 65535}`.

    Raises:
        FileExistsError: `target` exists.
        DemoFormatError: the source can't be read, or the target's format can't hold it.
        ConfigError: the format or an option is unknown, or the format can only be read.
    """
    writer = writable_format(format, options)
    with open_demos(source) as reader:
        given = _Brightened(reader, white) if white else reader
        chosen = tuple(reader.names) if names is None else tuple(names)
        return [*reader.notes, *write_new({Path(target): (given, chosen)}, writer)]


def write_new(targets: Mapping[Path, tuple[DemoReader, Sequence[str]]], writer: WritableFormat) -> list[str]:
    """Write to each target the named demos of its reader; returns a line for each thing that was changed or left out.

    No target appears under its name before all are complete.

    Raises:
        FileExistsError, DemoFormatError: as `convert`.
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
        for path in sorted(target.parent.glob(f".{glob.escape(target.stem)}-*{TEMPORARY}*")):
            notes.append(f"{path} belongs to another run; remove it if that run was interrupted")
    return list(dict.fromkeys(notes))


class _Brightened(ChangedReader):
    """A reader whose images of some keys are scaled to 8 bits."""

    def __init__(self, source: DemoReader, white: Mapping[str, float]) -> None:
        super().__init__(source)
        self._white = white

    def read(self, name: str, keys: Sequence[str] | None = None) -> Demo:
        """See `DemoReader`."""
        demo, where = self.source.read(name, keys), f"{self.path.name}, {name}"
        wanted_keys(demo.obs, [*self._white], where)
        changed = {key: scaled_image(demo.obs[key], top, f"{where}: {key}") for key, top in self._white.items()}
        return replace(demo, obs={**demo.obs, **changed})
