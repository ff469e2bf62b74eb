"""Atomic writes: a file appears under its name complete or not at all, even if the process is killed while writing.

Every file that the package writes goes through here: it is created exclusively, under a random name in the
target's folder, synced, and renamed. A link at the temporary name is never followed; a link at the target is refused.
"""

import glob
import json
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

TEMPORARY = ".unfinished"
"""Ending of the temporary name; a file with this ending was left behind by a killed process."""


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A new empty file beside `path` for the block to write; it takes the name `path` when the block ends without error.

    The file's mode follows the umask. After an error nothing is left behind and what was at `path` is unchanged.

    Raises:
        OSError: the file can't be created, synced or renamed, or what is at `path` is not a regular file.
    """
    path = Path(path)
    require_regular(path)
    # The target's suffix comes last, since libraries such as PyAV choose the format by it.
    temporary = path.with_name(f".{path.stem[:100]}-{secrets.token_hex(8)}{TEMPORARY}{path.suffix}")
    os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666))
    try:
        yield temporary
        sync(temporary)
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        if error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error  # names the target, not the temporary file
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync(path.parent)


def write_file(path: str | Path, content: str | bytes | memoryview) -> None:
    """Write a whole file, text as UTF-8; its folder is created if missing.

    Raises:
        OSError: as `replacing`.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


def read_json(path: Path, refuse: type[Exception] = ValueError) -> dict[str, Any]:
    """The JSON object in a file; raises `refuse`, with one line that begins with the path, for anything else."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise refuse(
            f"{path}: cannot be read as JSON ({type(error).__name__}: {' '.join(str(error).split())[:200]})"
        ) from None
    if not isinstance(found, dict):
        raise refuse(f"{path}: expected a JSON object, got {type(found).__name__}")
    return found


def remove_unfinished(folder: Path) -> None:
    """Remove the temporary files that a killed process left in a folder that no other process writes into."""
    _remove_files(folder, f".*-*{TEMPORARY}*")


def remove_unfinished_of(path: Path) -> None:
    """Remove the temporary files of `path` that a killed process left beside it; no other process may be writing `path`."""
    stem, suffix = glob.escape(path.stem[:100]), glob.escape(path.suffix)
    _remove_files(path.parent, f".{stem}-{'[0-9a-f]' * 16}{TEMPORARY}{suffix}")


def _remove_files(folder: Path, pattern: str) -> None:
    for path in folder.glob(pattern):
        if stat.S_ISREG(path.lstat().st_mode):
            path.unlink()


def require_regular(path: str | Path) -> None:
    """Refuse a path that exists but is not a regular file: a link, a folder, a device, a pipe.

    Raises:
        OSError: one line that says what is at the path.
    """
    try:
        mode = os.lstat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return
    if stat.S_ISREG(mode):
        return
    what = "a symbolic link" if stat.S_ISLNK(mode) else "a folder" if stat.S_ISDIR(mode) else "not a regular file"
    raise OSError(f"{path} is {what}; name a regular file, or one that does not exist yet")


def sync(path: Path) -> None:
    """Wait until a file, or a folder's entries, are on disk."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def remove(path: Path) -> None:
    """Remove a file or a whole folder; nothing happens if there is none."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def hash_ends(path: Path, digest: Any) -> int:
    """Update a hash of `hashlib` with the first and the last MiB of a file; returns the file's size [bytes]."""
    size = path.stat().st_size
    with path.open("rb") as file:
        digest.update(file.read(2**20))
        file.seek(max(0, size - 2**20))
        digest.update(file.read())
    return size
