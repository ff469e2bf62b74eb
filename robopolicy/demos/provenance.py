"""Which files a policy was trained on, and which ones an edited demo file was made of."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from robopolicy import __version__
from robopolicy.demos.schema import json_object

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


EDITS = "edits"
"""Attribute of a demo file that `edit` wrote: JSON {"history": [...]}, the newest edit last."""
GREATEST_HISTORY = 2**15
"""Characters kept of it; the oldest edits go first. HDF5 holds attributes of up to 64 KiB."""
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
