"""Opens an HDF5 file of unknown origin in a child process first; a file that kills, stalls or misleads it is refused.

The HDF5 library can crash or loop on a damaged file, and a hostile one can read other files (external storage, external
links, virtual datasets) or declare terabytes in kilobytes. A helper process, started once, forks a child for each file;
the child walks every group, attribute and chunk index and reads the data. If it dies or stalls, the file is refused and
the caller is unharmed. The verdict is remembered until the file changes.
"""

import atexit
import contextlib
import faulthandler
import json
import math
import os
import resource
import select
import signal
import subprocess
import sys
import threading
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import h5py
import numpy as np
from h5py import h5o  # type: ignore[attr-defined]

from robopolicy.demos.guarded import BROKEN, attributes_of, open_checked, require_file
from robopolicy.types import DemoFormatError

SILENCE_S = 20.0
"""Time limit of the examination for one object of the file [s]."""
READ_BYTES = 64 * 2**20
"""Data read in full during the examination [bytes]; beyond it, the first and the last row of each dataset."""
MEMORY_BYTES = 4 * 2**30
"""Address space of the examining child [bytes]."""
SMALL_BYTES, GREATEST_RATIO = 256 * 2**20, 100
"""What a file may declare in all [bytes], and for each byte that it holds: the budget for the memory of its readers."""
GREATEST_DEPTH = 8
"""Groups nested deeper than this are refused."""
CHUNK_BYTES = 2**20
"""Packed chunks beyond this are unpacked during the examination; smaller ones can't grow beyond 1 GiB (zlib: 1032 : 1)."""
DEFLATE, SHUFFLE, FLETCHER = 1, 2, 3
"""Numbers of HDF5's filters."""


class UnsafeFileError(DemoFormatError):
    """An HDF5 file that is damaged, or that points outside itself."""


def open_hdf5(path: Path | str) -> h5py.File:
    """The file, open for reading, after it passed `examine`."""
    examine(path)
    return open_checked(path)


def examine(path: Path | str) -> None:
    """Walk the whole file in a child process.

    Raises:
        UnsafeFileError: it isn't there, isn't HDF5, is damaged, points outside itself, or the child died or stalled on it.
    """
    path = Path(path)
    require_file(path)
    status = path.stat()
    key = (str(path.resolve()), status.st_mtime_ns, status.st_size)
    if key not in _verdicts:
        _verdicts[key] = _examiner.ask(path, SILENCE_S)
    if _verdicts[key] is not None:
        raise UnsafeFileError(_verdicts[key])


class _Examiner:
    """The helper process, started on first use; a process that was forked from this one starts its own."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        self._owner = 0

    def ask(self, path: Path, silence_s: float) -> str | None:
        """Why the file is refused, or None; a helper that was killed meanwhile is replaced once."""
        request = json.dumps([str(path.resolve()), silence_s]) + "\n"
        with self._lock:
            reply = self._exchange(request) or self._exchange(request)
        if not reply:
            raise UnsafeFileError(f"{path.name}: could not be examined; the helper process ended twice")
        return json.loads(reply)

    def close(self) -> None:
        """End the helper, if this process started one."""
        process, self._process = self._process, None
        if process is not None and self._owner == os.getpid():
            with contextlib.suppress(BrokenPipeError):
                process.communicate()

    def _exchange(self, request: str) -> str:
        """The helper's reply; empty if it has ended."""
        process = self._running()
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(request)
            process.stdin.flush()
            reply = process.stdout.readline()
        except BrokenPipeError:
            reply = ""
        if not reply:
            self.close()
        return reply

    def _running(self) -> subprocess.Popen[str]:
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


_verdicts: dict[tuple[str, int, int], str | None] = {}
_examiner = _Examiner()
atexit.register(_examiner.close)


def serve() -> None:
    """The helper's loop: a JSON line `[path, seconds]` from stdin, one (why it is refused, or null) to stdout."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for line in sys.stdin:
        path, silence_s = json.loads(line)
        print(json.dumps(_in_child(path, silence_s)), flush=True)


def _in_child(path: str, silence_s: float) -> str | None:
    """The child's verdict; it writes a dot for each object, then why the file is refused, or null, as JSON."""
    receiver, sender = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(receiver)
        faulthandler.disable()
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
        os.write(sender, json.dumps(fault(path, lambda: os.write(sender, b"."))).encode())
        os._exit(0)
    os.close(sender)
    reply, silent = b"", False
    try:
        while not silent:
            silent = not select.select([receiver], [], [], silence_s)[0]
            heard = b"" if silent else os.read(receiver, 65536)
            if not heard:
                break
            reply = (reply + heard).lstrip(b".")
    finally:
        os.close(receiver)
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
    if silent:
        return f"{Path(path).name}: no progress in reading it for {silence_s:g} s; damaged, or made to stall its reader"
    if not reply:
        return (
            f"{Path(path).name}: the HDF5 library crashed on it (signal {os.WTERMSIG(status)}); damaged, copy it again"
        )
    return json.loads(reply)


def fault(path: str, alive: Callable[[], object]) -> str | None:
    """Why the file is refused, or None; run it in a child process: the file may crash it. `alive` is called per object."""
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
                    if declared > SMALL_BYTES + GREATEST_RATIO * held:
                        text = f"{name} declares {item.nbytes} bytes, {declared} with those before"
                        raise UnsafeFileError(f"{text}; the file holds {held}; refused")
                    if (address := h5o.get_info(item.id).addr) not in seen:
                        seen.add(address)
                        unread = _read_dataset(name, item, unread)
    except UnsafeFileError as error:
        return f"{Path(path).name}: {error}"
    except DemoFormatError as error:
        return str(error) if str(error).startswith(Path(path).name) else f"{Path(path).name}: {error}"
    except Exception as error:  # whatever h5py makes of damaged bytes
        return f"{Path(path).name}: damaged ({' '.join(str(error).split())[:300]})"
    return None


def _objects(file: h5py.File) -> Iterator[tuple[str, h5py.Group | h5py.Dataset]]:
    """Every object by each of its names; a group with several names is refused, since links may form a ring."""
    waiting: list[tuple[str, h5py.Group]] = [("", file)]
    while waiting:
        prefix, group = waiting.pop()
        yield prefix or "/", group
        for key in map(str, group):
            name = f"{prefix}/{key}" if prefix else key
            if not isinstance(group.get(key, getlink=True), h5py.HardLink):
                raise UnsafeFileError(f"{name} is a link to elsewhere; refused, since it may read any file here")
            if name.count("/") > GREATEST_DEPTH:
                raise UnsafeFileError(f"groups nested more than {GREATEST_DEPTH} deep at {name}; refused")
            item = group[key]
            if isinstance(item, h5py.Dataset):
                yield name, item
            elif isinstance(item, h5py.Group):
                if h5o.get_info(item.id).rc > 1:
                    raise UnsafeFileError(f"{name} has another name too; refused, since readers would read it twice")
                waiting.append((name, item))


def _declared_bytes(name: str, dataset: h5py.Dataset) -> int:
    """Memory that reading the dataset takes at least; refused where it is stored elsewhere, or unpacks to more."""
    if dataset.external or dataset.is_virtual:
        raise UnsafeFileError(f"{name} is stored in another file; refused, since it may read any file here")
    if not dataset.chunks:
        return dataset.nbytes
    chunk_bytes = math.prod(dataset.chunks) * dataset.dtype.itemsize
    settings = dataset.id.get_create_plist()
    filters = [settings.get_filter(place)[0] for place in range(settings.get_nfilters())]
    if DEFLATE in filters:
        if filters not in ([DEFLATE], [SHUFFLE, DEFLATE], [DEFLATE, FLETCHER], [SHUFFLE, DEFLATE, FLETCHER]):
            raise UnsafeFileError(f"{name} is packed in several ways at once (HDF5 filters {filters}); refused")
        _require_chunks(name, dataset, chunk_bytes)
    return max(dataset.nbytes, chunk_bytes)


def _require_chunks(name: str, dataset: h5py.Dataset, chunk_bytes: int) -> None:
    """Refuse a gzip chunk that unpacks to more than it may; HDF5 would fill the memory with it."""
    large: list[tuple[int, ...]] = []

    def note(chunk: h5py.h5d.StoreInfo) -> None:
        if chunk.size > CHUNK_BYTES:
            large.append(chunk.chunk_offset)

    with contextlib.suppress(*BROKEN):
        dataset.id.chunk_iter(note)
    for offset in large:
        _, packed = dataset.id.read_direct_chunk(offset)
        with contextlib.suppress(zlib.error):  # its reader names it
            if len(zlib.decompressobj().decompress(packed, chunk_bytes + 1)) > chunk_bytes:
                raise UnsafeFileError(f"{name}: a chunk unpacks to more than its {chunk_bytes} bytes; refused")


def _read_dataset(name: str, dataset: h5py.Dataset, budget: int) -> int:
    """Read it, or its first and last row where the budget is spent; returns the remaining budget [bytes].

    Data that can't be unpacked is left for its reader to name, so that the other demos can be read.
    """
    with contextlib.suppress(*(kind for kind in BROKEN if kind is not MemoryError)):
        if dataset.ndim == 0 or dataset.nbytes <= budget:
            np.asarray(dataset[()])
            return budget - dataset.nbytes
        for row in (0, -1):
            np.asarray(dataset[row])
    return budget
