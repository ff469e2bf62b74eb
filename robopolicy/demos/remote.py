"""Demo files at a URL (`s3://`, `https://`, or any other that fsspec reads): copied to a local cache, then read like any file.

Training reads at random positions, and a child process examines an untrusted file before it is opened: both need a local
file. Each version of a remote file or folder is copied once; other processes that need it wait for the copy.
"""

import fcntl
import hashlib
import logging
import os
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from robopolicy.files import remove
from robopolicy.types import DemoFormatError, one_line

LOG = logging.getLogger(__name__)

CACHE = "ROBOPOLICY_CACHE"
"""Environment variable with the folder of the cache; default: `robopolicy` in the user's cache folder."""


def local_path(path: str | Path) -> Path:
    """The path itself, or, for a URL, the path of a local copy of the file or folder there, made if needed.

    Raises:
        DemoFormatError: nothing is found at the URL, it can't be reached, or the copy is incomplete.
        ImportError: fsspec, or the package that it needs for this kind of URL, is not installed.
    """
    if isinstance(path, Path) or "://" not in path:
        return Path(path)
    url = path
    filesystem, root = filesystem_of(url)
    files = listed(filesystem, root, url)
    facts = sorted((name, sorted(map(str, info.items()))) for name, info in files.items())
    version = hashlib.sha256(repr((url, facts)).encode()).hexdigest()[:16]
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "robopolicy"
    target = Path(os.environ.get(CACHE) or default) / version / (PurePosixPath(root).name or "demos")
    target.parent.mkdir(parents=True, exist_ok=True)
    with (target.parent / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # other processes that need the same copy wait here
        if target.exists():
            LOG.info("%s: copied before to %s", url, target)
        else:
            _copy(filesystem, root, files, target, url)
    return target


def _copy(filesystem: Any, root: str, files: Mapping[str, Mapping[str, Any]], target: Path, url: str) -> None:
    """Copy to a temporary path and rename, so that a killed process leaves no incomplete copy under the final name."""
    partial = target.with_name(f".{target.name}.partial")
    remove(partial)
    try:
        for name, info in files.items():
            inside = PurePosixPath(name).relative_to(root)
            if ".." in inside.parts:
                raise DemoFormatError(f"{url}: holds {inside}, which would be written outside its folder; refused")
            place = partial / inside
            place.parent.mkdir(parents=True, exist_ok=True)
            try:
                filesystem.get_file(name, str(place))
            except OSError as error:
                raise DemoFormatError(
                    f"{url}: {inside} can't be copied: {one_line(error) or type(error).__name__}"
                ) from error
            if info.get("size") not in (None, place.stat().st_size):
                raise DemoFormatError(f"{url}: {place.stat().st_size} of {info['size']} bytes arrived; try again")
        partial.rename(target)
    finally:
        remove(partial)
    size = sum(file.stat().st_size for file in (target.rglob("*") if target.is_dir() else [target]) if file.is_file())
    LOG.info("%s: copied to %s, %.3g MB", url, target, size / 1e6)


def filesystem_of(url: str) -> tuple[Any, str]:
    """The fsspec file system for a URL, and the path in that file system.

    Raises:
        DemoFormatError: fsspec does not support this kind of URL.
        ImportError: fsspec, or the package that it needs for this kind of URL, is not installed.
    """
    try:
        import fsspec
    except ImportError as error:
        raise ImportError(f"{url} is read through the package fsspec; pip install 'robopolicy[formats]'") from error
    try:
        filesystem, root = fsspec.url_to_fs(url)
    except ValueError as error:
        raise DemoFormatError(f"{url}: {one_line(error)}") from error
    return filesystem, root.rstrip("/")


def listed(filesystem: Any, root: str, url: str) -> dict[str, dict[str, Any]]:
    """Path -> what the storage reports (size, time, hash), for the file at `root` or for each file below that folder.

    Raises:
        DemoFormatError: no file is found, or the storage can't be reached.
    """
    try:
        info = filesystem.info(root)
        files = filesystem.find(root, detail=True) if info["type"] == "directory" else {root: info}
    except (FileNotFoundError, NotADirectoryError):
        files = {}
    except OSError as error:
        raise DemoFormatError(f"{url}: can't be reached ({one_line(error)})") from error
    if not files:
        raise DemoFormatError(f"{url}: no such file or folder, or it can't be reached")
    return files
