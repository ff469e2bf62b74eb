"""Which files a policy was trained on, and which ones an edited demo file was made of."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from robopolicy import __version__
from robopolicy.demos.schema import json_object
from robopolicy.types import DemoFormatError

FINGERPRINT_BYTES = 2**20
"""A file's fingerprint is that of its size, its first and its last MiB: the same in a second for a terabyte."""


def fingerprint(path: Path) -> dict[str, Any]:
    """Size [bytes] and a hash of a file, or of a folder's file names and sizes."""
    digest = hashlib.sha256()
    if path.is_dir():
        sizes = {str(item.relative_to(path)): item.stat().st_size for item in sorted(path.rglob("*")) if item.is_file()}
        digest.update(repr(sizes).encode())
        return {"bytes": sum(sizes.values()), "sha256_of_names": digest.hexdigest()}
    size = path.stat().st_size
    with path.open("rb") as file:
        digest.update(file.read(FINGERPRINT_BYTES))
        file.seek(max(0, size - FINGERPRINT_BYTES))
        digest.update(file.read())
    return {"bytes": size, "sha256_of_ends": digest.hexdigest()}


class WatchedFiles:
    """Demo files, or folders of them, that must stay as they are while they are trained on."""

    def __init__(self, paths: Iterable[Path]) -> None:
        self._known = {path: (_times(path), fingerprint(path)) for path in paths}

    def require_unchanged(self) -> None:
        """Compare size, time and fingerprint of each with those at the start; one that is gone by now harms nobody.

        Raises:
            DemoFormatError: one was written to, or replaced: the run would be of two data sets, and its record of neither.
        """
        for path, (times, content) in self._known.items():
            if not path.exists() or (now := _times(path)) == times:
                continue
            if [facts[:3] for facts in now] != [facts[:3] for facts in times] or fingerprint(path) != content:
                raise DemoFormatError(
                    f"{path.name}: the file was written to since training began; start again when it is complete"
                )


def _times(path: Path) -> list[tuple[Any, ...]]:
    """Name, size, and the times of the last change of content and of status, of a file or of those in a folder."""
    files = sorted(item for item in path.rglob("*") if item.is_file()) if path.is_dir() else [path]
    found = []
    for file in files:
        status = file.stat()
        found.append(
            (str(file.relative_to(path)), status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)
        )
    return found


EDITS = "edits"
"""Attribute of a demo file that `edit` wrote: JSON {"history": [...]}, the newest edit last."""
GREATEST_HISTORY = 2**15
"""Largest number of characters; beyond it the oldest edits are dropped. HDF5 holds attributes of up to 64 KiB."""
NAMED_SOURCES = 20
"""Source files named in one edit."""


def edit_history(sources: Sequence[tuple[Path, Mapping[str, Any]]], operations: Mapping[str, Any]) -> str:
    """The attribute `edits` of a file made of `sources` (path, and attributes of the set) by these operations.

    Raises:
        DemoFormatError: a source's own history is not valid JSON.
    """
    history: list[Any] = []
    for path, attributes in sources:
        if EDITS in attributes:
            before = json_object(attributes[EDITS], f"{path.name}: {EDITS}").get("history")
            history += [edit for edit in before if edit not in history] if isinstance(before, list) else []
    files = [{"name": path.name, **fingerprint(path)} for path, _ in sources]
    named = files[:NAMED_SOURCES] + ([{"and": len(files) - NAMED_SOURCES}] if len(files) > NAMED_SOURCES else [])
    history.append({"version": __version__, "sources": named, **operations})
    while len(text := json.dumps({"history": history})) > GREATEST_HISTORY and len(history) > 1:
        history.pop(0)
    return (
        text
        if len(text) <= GREATEST_HISTORY
        else json.dumps({"history": [{"sources": named, "edit": "too long to keep"}]})
    )
