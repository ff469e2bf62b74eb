"""Examines an untrusted HDF5 file in a child process before it is opened, and refuses damaged and malicious files.

The HDF5 library can crash or loop forever on a damaged file. A malicious file can make it read other files (external
storage, external links, virtual datasets), or declare terabytes of data in a few kilobytes. A helper process, started
once, forks a child for each file. The child visits every group, attribute and chunk index, and reads up to `READ_BYTES` of
the data. If the child dies or stalls, the file is refused, and the calling process is not affected. The result is cached
until the file changes.
"""

import atexit
import faulthandler
import json
import math
import os
import resource
import signal
import subprocess
import sys
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import h5py
import numpy as np
from h5py import h5o  # type: ignore[attr-defined]

from robopolicy.demos.guarded import BROKEN, attributes_of, open_checked, require_file
from robopolicy.types import DemoFormatError, one_line

SILENCE_S = 20.0
"""Time limit for examining one object (group or dataset) of the file [s]."""
READ_BYTES = 64 * 2**20
"""Total size of the datasets that are read in full [bytes]; of one that exceeds the rest, the first and last row are read."""
MEMORY_BYTES = 4 * 2**30
"""Limit on the child's address space [bytes]."""
SMALL_BYTES, MAX_RATIO = 256 * 2**20, 100
"""A file may declare at most SMALL_BYTES + MAX_RATIO * (file size) of data [bytes], which limits its readers' memory."""
MAX_DEPTH = 8
"""Maximum nesting depth of groups; a file with deeper ones is refused."""
CHUNK_BYTES = 2**20
"""Larger compressed chunks [bytes] are decompressed as a test. Smaller ones decompress to at most about 1 GiB, since zlib's
ratio is at most 1032 : 1."""
DEFLATE, SHUFFLE, FLETCHER = 1, 2, 3
"""HDF5's identifiers of the filters gzip, shuffle and checksum."""


class UnsafeFileError(DemoFormatError):
    """The HDF5 file is damaged, refers to other files, or declares too much data."""


def open_hdf5(path: Path | str) -> h5py.File:
    """Examine the file (`examine`), then open it for reading."""
    examine(path)
    return open_checked(path)


def examine(path: Path | str) -> None:
    """Examine the file in a child process, and refuse it if it is unsafe; the result is cached until the file changes.

    Raises:
        UnsafeFileError: the file is not HDF5, is damaged, refers to other files or declares too much data, or the child died
            or stalled.
        DemoFormatError: the file does not exist.
    """
    path = Path(path)
    require_file(path)
    state = path.stat()
    key = (str(path.resolve()), state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns)
    if key not in _verdicts:
        _verdicts[key] = _examiner.ask(path, SILENCE_S)
    if _verdicts[key] is not None:
        raise UnsafeFileError(_verdicts[key])


class _Examiner:
    """Starts the helper process on first use, and asks it about files; a process forked from this one starts its own helper."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        self._owner = 0

    def ask(self, path: Path, silence_s: float) -> str | None:
        """The reason for refusing the file, or None; if the helper process has died, it is restarted once."""
        with self._lock:
            for _ in range(2):
                process = self._running()
                assert process.stdin is not None
                assert process.stdout is not None
                with suppress(BrokenPipeError):
                    print(json.dumps([str(path.resolve()), silence_s]), file=process.stdin, flush=True)
                    if reply := process.stdout.readline():
                        return json.loads(reply)
                self.close()
        raise UnsafeFileError(f"{path.name}: could not be examined; the helper process ended twice")

    def close(self) -> None:
        """Stop the helper process, if this process started it."""
        process, self._process = self._process, None
        if process is not None and self._owner == os.getpid():
            with suppress(BrokenPipeError):
                process.communicate()

    def _running(self) -> subprocess.Popen[str]:
        """The helper process; a new one is started if there is none, or if it belongs to the parent of this process."""
        if self._process is None or self._owner != os.getpid():
            self._process = subprocess.Popen(
                [sys.executable, "-c", "from robopolicy.demos.probe import serve; serve()"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            )
            self._owner = os.getpid()
        return self._process


_verdicts: dict[tuple[str | int, ...], str | None] = {}
_examiner = _Examiner()
atexit.register(_examiner.close)


def serve() -> None:
    """Run the helper process: for each JSON line `[path, silence_s]` on stdin, write one (reason, or null) to stdout."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole process group; the parent closes the helper
    for line in sys.stdin:
        print(json.dumps(_in_child(*json.loads(line))), flush=True)


def _in_child(path: str, silence_s: float) -> str | None:
    """Examine the file in a forked child; returns the reason for refusing it, or None.

    A timer, restarted for each object, kills the child if it stalls.
    """
    receiver, sender = os.pipe()
    child = os.fork()
    if child == 0:
        faulthandler.disable()
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
        # Default action, not a Python handler: the kernel kills the process even while it loops in the HDF5 library.
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, silence_s)
        verdict = fault(path, lambda: signal.setitimer(signal.ITIMER_REAL, silence_s))
        os.write(sender, json.dumps(verdict).encode())
        os._exit(0)
    os.close(sender)
    with open(receiver, "rb") as pipe:
        reply = pipe.read()
    _, status = os.waitpid(child, 0)
    if reply:
        return json.loads(reply)
    number, name = os.WTERMSIG(status), Path(path).name
    if number == signal.SIGALRM:
        return f"{name}: no progress in reading it for {silence_s:g} s; damaged, or made to stall its reader"
    return f"{name}: the HDF5 library crashed on it (signal {number}); damaged, copy it again"


def fault(path: str, alive: Callable[[], object]) -> str | None:
    """The reason for refusing the file, or None. Call this in a child process, since the file may crash the HDF5 library.

    `alive` is called before each object is examined, to show progress.
    """
    try:
        held = os.stat(path).st_size
        with open_checked(path) as file:
            declared, unread = 0, READ_BYTES
            seen: set[int] = set()
            for name, item in _objects(file):
                alive()
                attributes_of(item, name)
                if isinstance(item, h5py.Dataset):
                    declared += _declared_bytes(name, item)
                    if declared > SMALL_BYTES + MAX_RATIO * held:
                        text = f"{name} declares {item.nbytes} bytes, {declared} with those before"
                        raise UnsafeFileError(f"{text}; the file holds {held}; refused")
                    # A dataset with several names is read once, but counts under each name: readers would read it each time.
                    if (address := h5o.get_info(item.id).addr) not in seen:
                        seen.add(address)
                        unread = _read_dataset(name, item, unread)
    except UnsafeFileError as error:
        return f"{Path(path).name}: {error}"
    except DemoFormatError as error:
        return str(error) if str(error).startswith(Path(path).name) else f"{Path(path).name}: {error}"
    except Exception as error:  # h5py raises many types for damaged data
        return f"{Path(path).name}: damaged ({one_line(error)[:300]})"
    return None


def _objects(file: h5py.File) -> Iterator[tuple[str, h5py.Group | h5py.Dataset]]:
    """(name, object) for every name of every object; a group with several names is refused, since links may form a cycle."""
    waiting: list[tuple[str, h5py.Group]] = [("", file)]
    while waiting:
        prefix, group = waiting.pop()
        yield prefix or "/", group
        for key in map(str, group):
            name = f"{prefix}/{key}" if prefix else key
            if not isinstance(group.get(key, getlink=True), h5py.HardLink):
                raise UnsafeFileError(f"{name} is a link to elsewhere; refused, since it may read any file here")
            if name.count("/") > MAX_DEPTH:
                raise UnsafeFileError(f"groups nested more than {MAX_DEPTH} deep at {name}; refused")
            item = group[key]
            if isinstance(item, h5py.Dataset):
                yield name, item
            elif isinstance(item, h5py.Group):
                if h5o.get_info(item.id).rc > 1:
                    raise UnsafeFileError(f"{name} has another name too; refused, since readers would read it twice")
                waiting.append((name, item))


def _declared_bytes(name: str, dataset: h5py.Dataset) -> int:
    """Memory needed to read the dataset [bytes].

    Raises:
        UnsafeFileError: the dataset is stored in another file, is compressed by an unknown combination of filters, or has a
            chunk that decompresses to more than its declared size.
    """
    if dataset.external or dataset.is_virtual:
        raise UnsafeFileError(f"{name} is stored in another file; refused, since it may read any file here")
    if not dataset.chunks:
        return dataset.nbytes
    chunk_bytes = math.prod(dataset.chunks) * dataset.dtype.itemsize
    settings = dataset.id.get_create_plist()
    filters = [settings.get_filter(place)[0] for place in range(settings.get_nfilters())]
    if DEFLATE in filters:
        if filters not in ([DEFLATE], [SHUFFLE, DEFLATE], [DEFLATE, FLETCHER], [SHUFFLE, DEFLATE, FLETCHER]):
            raise UnsafeFileError(f"{name} is compressed by an unknown combination of HDF5 filters {filters}; refused")
        _require_chunks(name, dataset, chunk_bytes)
    return max(dataset.nbytes, chunk_bytes)


def _require_chunks(name: str, dataset: h5py.Dataset, chunk_bytes: int) -> None:
    """Refuse a gzip chunk that decompresses to more than `chunk_bytes`; HDF5 would allocate memory for all of it."""
    large: list[tuple[int, ...]] = []

    def note(chunk: h5py.h5d.StoreInfo) -> None:
        if chunk.size > CHUNK_BYTES:
            large.append(chunk.chunk_offset)

    with suppress(*BROKEN):
        dataset.id.chunk_iter(note)
    for offset in large:
        _, packed = dataset.id.read_direct_chunk(offset)
        with suppress(zlib.error):  # a damaged chunk is reported later, by the reader of its demo
            if len(zlib.decompressobj().decompress(packed, chunk_bytes + 1)) > chunk_bytes:
                raise UnsafeFileError(f"{name}: a chunk unpacks to more than its {chunk_bytes} bytes; refused")


def _read_dataset(name: str, dataset: h5py.Dataset, budget: int) -> int:
    """Read the dataset, or only its first and last row if it exceeds the budget; returns the remaining budget [bytes].

    A file is not refused for data that can't be decompressed: the data's reader reports it, and other demos remain readable.
    """
    with suppress(*(kind for kind in BROKEN if kind is not MemoryError)):
        if dataset.ndim == 0 or dataset.nbytes <= budget:
            np.asarray(dataset[()])
            return budget - dataset.nbytes
        for row in (0, -1):
            np.asarray(dataset[row])
    return budget
