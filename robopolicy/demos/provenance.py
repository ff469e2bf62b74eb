"""Records of the files that a policy was trained on, and of those that an edited demo file was made from."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import h5py

from robopolicy import __version__
from robopolicy.demos.formats import open_demos
from robopolicy.demos.schema import json_object
from robopolicy.files import hash_ends
from robopolicy.types import DemoFormatError


def fingerprint(path: Path) -> dict[str, Any]:
    """Size [bytes] and SHA-256, of a file's first and last MiB (fast at any size) or of the names and sizes in a folder."""
    digest = hashlib.sha256()
    if path.is_dir():
        sizes = {str(item.relative_to(path)): item.stat().st_size for item in sorted(path.rglob("*")) if item.is_file()}
        digest.update(repr(sizes).encode())
        return {"bytes": sum(sizes.values()), "sha256_of_names": digest.hexdigest()}
    size = hash_ends(path, digest)
    return {"bytes": size, "sha256_of_ends": digest.hexdigest()}


class WatchedFiles:
    """Demo files or folders that must not change during training."""

    def __init__(self, paths: Iterable[Path]) -> None:
        self._known = {path: (_times(path), fingerprint(path)) for path in paths}

    def require_unchanged(self) -> None:
        """Compare the size and times of each file with those at the start; removed files are accepted.

        If only the inode or the time of the last status change differs, as after `cp -p` or a change of permissions, the
        fingerprint is compared, and every demo of an HDF5 file is compared with its checksums.

        Raises:
            DemoFormatError: a file was written to or replaced, so that the run would mix two versions of the data.
        """
        for path, (times, content) in self._known.items():
            if not path.exists() or (now := _times(path)) == times:
                continue
            same = [facts[:3] for facts in now] == [facts[:3] for facts in times] and fingerprint(path) == content
            if not same or not _is_sound(path):
                raise DemoFormatError(
                    f"{path.name}: the file was written to since training began; start again when it is complete"
                )
            self._known[path] = now, content


def _is_sound(path: Path) -> bool:
    """Whether every demo of an HDF5 file can be read and matches its checksums; always True for a folder or any other file."""
    if not path.is_file() or not h5py.is_hdf5(path):
        return True
    with suppress(DemoFormatError), open_demos(path) as demos:
        return all(demos.read(name) for name in demos.names)
    return False


def _times(path: Path) -> list[tuple[Any, ...]]:
    """(name, size, modification time, status change time, inode) of the file, or of each file in the folder."""
    files = sorted(item for item in path.rglob("*") if item.is_file()) if path.is_dir() else [path]
    states = [(str(file.relative_to(path)), file.stat()) for file in files]
    return [(name, state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_ino) for name, state in states]


EDITS = "edits"
"""Attribute of a demo file that `robopolicy edit` wrote: JSON {"history": [...]}, the newest edit last."""
MAX_HISTORY = 2**15
"""Maximum length of the attribute [characters]; the oldest edits are dropped to fit. HDF5 limits attributes to 64 KiB."""
NAMED_SOURCES = 20
"""Maximum number of source files that are named in one edit."""


def edit_history(sources: Sequence[tuple[Path, Mapping[str, Any]]], operations: Mapping[str, Any]) -> str:
    """The attribute `edits` of a file made from `sources` by these operations.

    Args:
        sources: (path, attributes of the set) of each source.
        operations: the options of the edit.

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
    while len(text := json.dumps({"history": history})) > MAX_HISTORY and len(history) > 1:
        history.pop(0)
    if len(text) > MAX_HISTORY:
        return json.dumps({"history": [{"sources": named, "edit": "too long to keep"}]})
    return text
