"""A file whose changes take effect all at once, so that a kill at any instant leaves the last committed state.

HDF5 updates its index in place, in several writes: a process killed between them leaves a file that doesn't open.
`JournaledFile` stands between h5py and the disk (h5py's file-object driver). Bytes beyond the committed end go straight
to the file, where no reader looks yet; changes to committed bytes are held back until `commit`, which writes them to a
journal beside the file first (write-ahead logging) and then into the file. `recover` completes a commit that was cut
short once its journal was complete, and drops one whose journal was not.
"""

import fcntl
import os
import struct
import zlib
from contextlib import suppress
from pathlib import Path
from typing import Any

_RECORD = struct.Struct("<QQ")  # address, length
_CHECK = struct.Struct("<QI")  # number of bytes, their CRC-32


class FileInUseError(OSError):
    """Another process has the file open for writing."""


def journal_of(path: str | Path) -> Path:
    """Where the journal of a file lies while a commit is under way."""
    return Path(f"{path}.journal")


def recover(path: str | Path) -> None:
    """Complete a commit that was cut short, if there is one and no process is at it; the file is whole afterwards."""
    if not journal_of(path).exists() or not os.access(path, os.W_OK):
        return
    fd = os.open(path, os.O_RDWR)
    try:
        _lock(fd)
        _replay(fd, journal_of(path))
    except FileInUseError:
        return
    finally:
        os.close(fd)


class JournaledFile:
    """An existing file opened for reading and writing, changed only by `commit`.

    Meant for `h5py.File(journaled, "r+")`. A second writer is refused; readers may look on.

    After a failure nothing more is committed; the file opens with all that was committed before.

    Raises:
        FileInUseError: another process writes the file.
    """

    def __init__(self, path: str | Path) -> None:
        self._journal = journal_of(path)
        self._fd = os.open(path, os.O_RDWR)
        try:
            _lock(self._fd)
            _replay(self._fd, self._journal)
            with suppress(OSError):  # file systems without locks
                fcntl.flock(self._fd, fcntl.LOCK_SH)
        except BaseException:
            os.close(self._fd)
            raise
        self._committed = self._end = os.fstat(self._fd).st_size
        self._position = 0
        self._held: list[tuple[int, bytes]] = []
        self._failure: BaseException | None = None

    def commit(self) -> None:
        """Make everything written so far the file's state; on disk when this returns.

        Raises:
            OSError: something could not be written, now or before; the file stays as the last commit left it.
        """
        if self._failure is not None:
            raise self._failure
        try:
            os.fsync(self._fd)
            if self._held:
                body = b"".join(_RECORD.pack(address, len(data)) + data for address, data in self._held)
                _write_journal(self._journal, _CHECK.pack(len(body), zlib.crc32(body)) + body)
                _apply(self._fd, self._held)
                os.fsync(self._fd)
                self._journal.unlink()
        except BaseException as error:  # Ctrl-C too: a second commit must not overwrite a journal half applied
            self._failure = error
            raise
        self._held.clear()
        self._committed = max(self._end, self._committed)

    def close(self) -> None:
        """Let go of the file; what was not committed is dropped."""
        os.close(self._fd)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move to `offset` from the start, the present position or the end."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._end}[whence]
        self._position = base + offset
        return self._position

    def tell(self) -> int:
        """The present position."""
        return self._position

    def read(self, size: int) -> bytes:
        """The next `size` bytes as they are after all changes."""
        data = bytearray(size)
        return bytes(data[: self.readinto(memoryview(data))])

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer (h5py gives a view of its own kind) with the next bytes as they are after all changes."""
        start = self._position
        count = os.preadv(self._fd, [buffer], start)
        buffer[count:] = bytes(len(buffer) - count)
        for address, data in self._held:
            low, high = max(start, address), min(start + count, address + len(data))
            if low < high:
                buffer[low - start : high - start] = data[low - address : high - address]
        self._position += count
        return count

    def write(self, buffer: Any) -> int:
        """Write at the present position: straight into the file beyond its committed end, else held back.

        An error such as a full disk is raised by the next `commit`, since HDF5 can't pass it on.
        """
        data, start = bytes(buffer), self._position
        inside = max(0, min(len(data), self._committed - start))
        if inside:
            self._held.append((start, data[:inside]))
        if inside < len(data) and self._failure is None:
            try:
                _pwrite(self._fd, data[inside:], start + inside)
            except OSError as error:
                self._failure = error
        self._position += len(data)
        self._end = max(self._end, self._position)
        return len(data)

    def truncate(self, size: int) -> int:
        """Set the file's length; committed bytes stay on disk until they are overwritten."""
        if size > self._committed and self._failure is None:
            os.ftruncate(self._fd, size)
        self._end = size
        return size

    def flush(self) -> None:
        """Nothing: h5py's flush is no commit."""


def _lock(fd: int) -> None:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise FileInUseError("another process is writing this file") from None
    except OSError:  # a file system without locks
        return


def _replay(fd: int, journal: Path) -> None:
    try:
        content = journal.read_bytes()
    except FileNotFoundError:
        return
    body = content[_CHECK.size :]
    if len(content) >= _CHECK.size and _CHECK.unpack(content[: _CHECK.size]) == (len(body), zlib.crc32(body)):
        changes, place = [], 0
        while place < len(body):
            address, length = _RECORD.unpack_from(body, place)
            place += _RECORD.size
            changes.append((address, body[place : place + length]))
            place += length
        _apply(fd, changes)
        os.fsync(fd)
    journal.unlink()


def _write_journal(journal: Path, content: bytes) -> None:
    fd = os.open(journal, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    try:
        _pwrite(fd, content, 0)
        os.fsync(fd)
    finally:
        os.close(fd)


def _apply(fd: int, changes: list[tuple[int, bytes]]) -> None:
    for address, data in changes:
        _pwrite(fd, data, address)


def _pwrite(fd: int, data: bytes, address: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, address)
        view, address = view[written:], address + written
