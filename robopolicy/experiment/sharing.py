"""Run folders and exported ones to and from a hub: Hugging Face's (`hf://`), or any storage that fsspec supports.

Only the files that a run needs are copied, in both directions: no code, no pickle, no log. What is pushed holds no path of
this machine and nothing that identifies its user; what is pulled is examined before it gets its final name.
"""

import fcntl
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import yaml
from safetensors import safe_open

from robopolicy.control import runtime
from robopolicy.experiment.hubs import SHARED, Content, HubError, open_hub
from robopolicy.experiment.privacy import identifying, scrubbed
from robopolicy.experiment.run_folder import CONFIG, DESCRIPTION, needs_backbone, read_description, read_policy
from robopolicy.files import TEMPORARY, read_json, remove, sync

MARKS = (DESCRIPTION, runtime.MANIFEST)
"""The file by which a run folder or an export is recognized; sent last, so that an incomplete push is not taken for one."""
BINARY = (".safetensors", ".onnx", ".model")
MAX_FILES = 1000
"""Largest number of files that is pulled."""
MAX_TEXT_BYTES = 64 * 2**20
"""Largest text file that is pulled [bytes]."""
LIMIT_GB = 20.0
"""Default limit on the size of all files together [GB]."""
COMPARED = ("template", "processor", "instruction")
"""Keys whose values are not changed: those of a backbone's identity are compared later, and those of episodes hold text."""


class SharingError(ValueError):
    """A folder that can't be pushed or pulled; the message is one line."""


@dataclass(frozen=True)
class Shared:
    """The result of a push or a pull."""

    place: str
    """Its URL or folder."""
    files: Mapping[str, int]
    """Name -> size [bytes]."""
    left_out: Sequence[str] = ()
    """Names of files and folders that were not copied."""
    changed: Sequence[str] = ()
    """Files from which paths of this machine were removed."""


def push(folder: str | Path, url: str, public: bool = False) -> Shared:
    """Copy a run folder or an exported one to a hub.

    Args:
        folder: the run folder or exported folder; it is not changed.
        url: `hf://owner/name`, where a push is one commit and earlier ones stay in the history; or a new folder of any
            storage that fsspec supports, such as `s3://bucket/runs/lift`.
        public: on Hugging Face, whether everyone may see a repository that this push makes.

    Raises:
        SharingError: the folder is neither of them, or holds something that identifies this machine's user.
        HubError: the hub can't be reached, refuses, or has something there already.
        ImportError: the package for this hub is missing.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise SharingError(f"{folder}: no such folder; give a run folder or an exported one")
    hub = open_hub(url)
    there = {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*")) if path.is_file()}
    files = {name: path for name, path in there.items() if SHARED.fullmatch(name) and not path.is_symlink()}
    _require_marks(files, there, str(folder))
    _examine(folder, files)
    sent: dict[str, Content] = {}
    for name, path in files.items():
        sent[name] = path if path.suffix in BINARY else _public_text(name, path)
        if found := identifying(_searched(sent[name]), url):
            raise SharingError(f"{path} holds {found}; remove it, and push again")
    hub.write(dict(sorted(sent.items(), key=lambda item: PurePosixPath(item[0]).name in MARKS)), public)
    changed = [
        name for name, content in sent.items() if isinstance(content, bytes) and content != files[name].read_bytes()
    ]
    sizes = {name: len(c) if isinstance(c, bytes) else c.stat().st_size for name, c in sent.items()}
    return Shared(url, sizes, _tops(there, files), changed)


def pull(url: str, folder: str | Path, limit_gb: float = LIMIT_GB) -> Shared:
    """Copy what `push` sent into a new folder, which appears whole, after its examination, or not at all.

    The policy is loaded as `load_policy` does; where it needs a backbone that the folder only names, nothing is loaded.
    Nothing that the folder names is imported.

    Args:
        url: as for `push`; `hf://owner/name@revision` takes a branch, a tag or a commit.
        folder: must not exist.
        limit_gb: largest size of all files together [GB].

    Raises:
        SharingError: the folder exists; or what is at the URL is neither a run nor an export, or larger than the limit.
        HubError: the hub can't be reached, refuses, or has nothing there.
        CheckpointError, ConfigError, ExportError: the policy can't be read.
        ImportError: the package for this hub is missing.
    """
    folder = Path(folder)
    if os.path.lexists(folder):
        raise SharingError(f"{folder} exists; nothing is overwritten, so give another folder")
    hub = open_hub(url)
    there = hub.sizes()
    files = {name: size for name, size in there.items() if SHARED.fullmatch(name)}
    _require_marks(files, there, url)
    total, texts = sum(files.values()), [size for name, size in files.items() if Path(name).suffix not in BINARY]
    if total > limit_gb * 1e9 or len(files) > MAX_FILES or max(texts) > MAX_TEXT_BYTES:
        raise SharingError(
            f"{url}: {len(files)} files, {total / 1e9:.3g} GB, the largest text {max(texts) / 1e6:.3g} MB; at most "
            f"{MAX_FILES} files, {limit_gb:g} GB (--limit-gb) and {MAX_TEXT_BYTES / 1e6:.3g} MB are allowed"
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _unfinished(folder) as partial:
        for name, size in files.items():
            place = partial / name
            place.parent.mkdir(parents=True, exist_ok=True)
            hub.read(name, place)
            if place.stat().st_size != size:
                raise HubError(f"{url}: {place.stat().st_size} of {size} bytes of {name} arrived; try again")
            sync(place)
        try:
            _examine(partial, files)
        except ValueError as error:
            raise type(error)(str(error).replace(str(partial), url)) from error
        partial.rename(folder)
    return Shared(str(folder), files, _tops(there, files))


def _require_marks(files: Mapping[str, Any], there: Mapping[str, Any], where: str) -> None:
    if not any(PurePosixPath(name).name in MARKS for name in files):
        shown = ", ".join(sorted({name.partition("/")[0] for name in there})[:8]) or "nothing"
        raise SharingError(
            f"{where}: neither a run folder ({DESCRIPTION}) nor an exported one ({runtime.MANIFEST}), or its push did not "
            f"finish; it has {shown}"
        )


def _tops(there: Mapping[str, Any], files: Mapping[str, Any]) -> list[str]:
    """What is not copied: single files, or a top folder if nothing in it is copied."""
    kept = {name.partition("/")[0] for name in files}
    return sorted({name if (top := name.partition("/")[0]) in kept else top for name in there if name not in files})


# -- pushed files ----------------------------------------------------------------------------------------------------------


def _public_text(name: str, path: Path) -> bytes:
    """A text file without paths of this machine; values that affect the policy's output are unchanged."""
    text, last = path.read_text(encoding="utf-8"), PurePosixPath(name).name
    if last == CONFIG:
        values: dict[str, Any] = yaml.safe_load(text)
        shown = {**values, "data": {**values["data"], **scrubbed(_files_of(values["data"]))}}
        for section in ("encoder", "text"):
            shown[section] = {**values[section], **scrubbed({k: v for k, v in values[section].items() if k == "model"})}
        return text.encode() if shown == values else yaml.safe_dump(shown, sort_keys=False).encode()
    if last == "README.md":
        return scrubbed(text).encode()
    if PurePosixPath(name).parent.name == "backbone":
        return text.encode()
    found: dict[str, Any] = json.loads(text)
    if last == DESCRIPTION:
        shown = {**found, "provenance": scrubbed(found["provenance"], COMPARED)}
    elif last == runtime.MANIFEST:
        shown = {**found, "spec": {**found["spec"], "provenance": scrubbed(found["spec"]["provenance"], COMPARED)}}
    else:
        shown = scrubbed(found, COMPARED)
    return text.encode() if shown == found else json.dumps(shown, indent=1).encode()


def _files_of(data: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a config's `data` that name files."""
    groups = {name: {**group, **_files_of(group)} for name, group in (data.get("groups") or {}).items()}
    names = [Path(file).name if "://" not in file else file for file in data.get("files") or ()]
    return ({"files": names} if names else {}) | ({"groups": groups} if groups else {})


def _searched(content: Content) -> str:
    """The text to search in a file: all of it; of a safetensors file its metadata; of a graph its printable parts."""
    if isinstance(content, bytes):
        return content.decode()
    if content.suffix == ".safetensors":
        with safe_open(content, "pt") as tensors:
            return json.dumps([tensors.metadata(), [*tensors.keys()]])
    return "\n".join(found.decode() for found in re.findall(rb"[\x20-\x7e]{12,}", content.read_bytes()))


# -- pulled files ----------------------------------------------------------------------------------------------------------


@contextmanager
def _unfinished(folder: Path) -> Iterator[Path]:
    """A temporary folder beside the final one, locked by this process and emptied before and after use."""
    partial = folder.with_name(f".{folder.name}{TEMPORARY}")
    partial.mkdir(exist_ok=True)
    lock = os.open(partial, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SharingError(f"{folder}: another process is pulling into it") from None
        try:
            for left in partial.iterdir():
                remove(left)
            yield partial
        finally:
            remove(partial)
    finally:
        os.close(lock)


def _examine(folder: Path, files: Mapping[str, Any]) -> None:
    """Read every policy among these files with the checks for untrusted files."""
    for name in files:
        if PurePosixPath(name).name == runtime.MANIFEST:
            runtime.load(folder)
        elif PurePosixPath(name).name == DESCRIPTION:
            run = (folder / name).parent
            _, config = read_description(run)
            if not needs_backbone(config):
                read_policy(run)
        elif name.endswith(".json"):
            read_json(folder / name, SharingError)
