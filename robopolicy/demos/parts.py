"""The finished parts of an HDF5 file that is being written: each whole, in a file of its own, in the folder `<file>.parts`.

HDF5 updates its index in place, in several writes: a process killed between them leaves a file that does not open. Here no
file is ever changed: a part is built in memory and renamed into the folder; at the end all parts are copied into a new
file, which is renamed to the target, and the folder is removed. A kill loses at most the part under way, and a writer that
resumes takes up the parts. The folder is locked as long as its writer lives.
"""

import fcntl
import io
import os
import stat
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import h5py

from robopolicy.files import TEMPORARY, remove_unfinished_of, replacing, require_regular, write_file

ENDING = ".parts"


class FileInUseError(OSError):
    """Another process is writing the file."""


def parts_folder(target: str | Path) -> Path:
    """Folder of a file's parts until the file is complete."""
    return Path(f"{target}{ENDING}")


class Parts:
    """The parts of one target file, held by one writer.

    Args:
        target: the file to become; its folder is made.
        resume: take up the parts that an earlier writer left.

    Raises:
        FileExistsError: there are parts already, and `resume` is off.
        FileInUseError: another process writes the file.
        OSError: the path of the parts is taken by something else, such as a link.
    """

    def __init__(self, target: Path, *, resume: bool) -> None:
        require_regular(target)
        self.target, self.folder = target, parts_folder(target)
        target.parent.mkdir(parents=True, exist_ok=True)
        self._fd = _locked_folder(self.folder)
        try:
            remove_unfinished_of(target)
            self.names = sorted(path.stem for path in self._left_behind())
            """Names of the parts, without ending."""
            if self.names and not resume:
                raise FileExistsError(
                    f"{self.folder} holds {len(self.names)} parts of an unfinished {target.name}; resume it, or remove "
                    "the folder"
                )
        except BaseException:
            os.close(self._fd)
            raise

    def path(self, name: str) -> Path:
        """The file of a part."""
        return self.folder / f"{name}.hdf5"

    def add(self, name: str, fill: Callable[[h5py.File], None]) -> None:
        """Write a part; on disk when this returns. `fill` writes the content into an empty HDF5 file in memory.

        Raises:
            OSError: it can't be written, such as on a full disk; the other parts stay.
        """
        write_hdf5(self.path(name), fill)
        self.names.append(name)

    def remove(self, name: str) -> None:
        """Drop a part."""
        self.path(name).unlink()
        self.names.remove(name)

    def finish(self, fill: Callable[[h5py.File], Iterable[object]]) -> None:
        """Write the target, renamed into place when whole, and remove the parts; `fill` as in `stream_hdf5`.

        Raises:
            OSError: it can't be written, such as on a full disk; the parts stay.
        """
        stream_hdf5(self.target, fill)
        for name in list(self.names):
            self.remove(name)

    def release(self) -> None:
        """Release the folder; its contents stay for a writer that resumes. An empty folder is removed."""
        if not os.listdir(self.folder):
            self.folder.rmdir()
        os.close(self._fd)

    def _left_behind(self) -> list[Path]:
        """The parts in the folder; files cut short by a kill are removed."""
        found = []
        for path in self.folder.iterdir():
            if not stat.S_ISREG(path.lstat().st_mode):
                raise OSError(f"{path} is not a regular file; {self.folder} is not a folder of parts, move it away")
            if TEMPORARY in path.name:
                path.unlink()
            elif path.suffix == ".hdf5":
                found.append(path)
            else:
                raise OSError(f"{path} is not a part; {self.folder} is not a folder of parts, move it away")
        return found


def write_hdf5(path: Path, fill: Callable[[h5py.File], None]) -> None:
    """Write an HDF5 file that fits in memory, where `fill` makes it; whole or not at all.

    Raises:
        OSError: it can't be written, such as on a full disk.
    """
    content = io.BytesIO()
    with h5py.File(content, "w") as file:
        fill(file)
    write_file(path, content.getbuffer())


def stream_hdf5(path: Path, fill: Callable[[h5py.File], Iterable[object]]) -> None:
    """Write an HDF5 file of any size, whole or not at all.

    `fill` is called with the empty file and yields now and then, so that a full disk ends it early.

    Raises:
        OSError: the first error of a write, such as a full disk.
    """
    with replacing(path) as temporary, _PatientFile(temporary, "r+b") as raw:
        try:
            with h5py.File(raw, "w") as file:
                for _ in fill(file):
                    if raw.failure is not None:
                        break
        except Exception as error:
            raise raw.failure or error from error
        if raw.failure is not None:
            raise raw.failure


class _PatientFile(io.FileIO):
    """A file for h5py's file-object driver whose writes never raise inside HDF5.

    HDF5 can't pass on the error of a write that it does when it flushes or closes: it keeps the file open, and crashes
    when the process ends. After the first error, writes are kept in memory, where HDF5 reads them back, and the error
    is raised as soon as HDF5 is done.
    """

    failure: OSError | None = None

    def __init__(self, path: Path, mode: str) -> None:
        super().__init__(path, mode)
        self._kept: list[tuple[int, bytes]] = []

    def write(self, data: Any) -> int:
        view, start = memoryview(data), self.tell()
        try:
            if self.failure is None:
                done = 0
                while done < len(view):
                    done += super().write(view[done:]) or 0
                return len(view)
        except OSError as error:
            self.failure = error
        self._kept.append((start, bytes(view)))
        self.seek(start + len(view))
        return len(view)

    def readinto(self, buffer: Any) -> int:
        start, size = self.tell(), len(buffer)
        count = super().readinto(buffer) or 0
        buffer[count:] = bytes(size - count)
        for place, data in self._kept:
            low, high = max(start, place), min(start + size, place + len(data))
            if low < high:
                buffer[low - start : high - start] = data[low - place : high - place]
        self.seek(start + size)
        return size

    def truncate(self, size: int | None = None) -> int:
        try:
            return super().truncate(size)
        except OSError as error:
            self.failure = self.failure or error
            return size or 0


def _locked_folder(folder: Path) -> int:
    """A descriptor of the folder, made where missing and locked; never that of a link, or of a folder just removed."""
    while True:
        with suppress(FileExistsError):
            folder.mkdir()
        try:
            fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except FileNotFoundError:  # its writer has finished since
            continue
        except OSError:
            raise OSError(f"{folder} is in the way and not a folder of parts; move it away") from None
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            raise FileInUseError(f"another process is writing {folder.with_suffix('')}; wait until it ends") from None
        except OSError:
            pass  # a file system without locks: the exclusive mkdir alone has to do
        if folder.exists() and os.path.samestat(os.fstat(fd), os.stat(folder)):
            return fd
        os.close(fd)
