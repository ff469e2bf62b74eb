"""Writes an HDF5 file with groups `data/demo_<i>` in parts, so that a crash loses no finished group.

HDF5 updates its index in place, in several writes: a process that is killed between two of them leaves a file that can't be
opened. Here no existing file is changed. Each part is a file of its own in the folder `<file>.parts`. At the end, all parts
are copied into a new file, which is renamed to the target, and the folder is removed. If the process is killed, at most the
unfinished part is lost, and a writer that resumes continues with the other parts. The folder is locked while the writer is
open.
"""

import fcntl
import os
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import h5py

from robopolicy.demos.checksums import seal_of
from robopolicy.demos.guarded import attributes_of, damage_named, group_in, open_checked, parts_folder
from robopolicy.demos.packing import CHECKSUMS, by_number, data_group, demo_number
from robopolicy.demos.probe import open_hdf5
from robopolicy.demos.whole_hdf5 import write_hdf5
from robopolicy.files import TEMPORARY, remove_unfinished_of, require_regular
from robopolicy.types import DemoFormatError

Writer = TypeVar("Writer", bound="PartWriter")


class FileInUseError(OSError):
    """Another process is writing the file."""


class PartWriter:
    """Writes a file of groups `data/demo_<i>`; as a context manager, it calls `close` at the end of the block.

    After an exception in the block, the parts remain for a writer with `resume`. Every part has the layout of the whole file.
    A complete file is never changed: resuming it writes a new file, which replaces it.

    Args:
        path: the file; its folder is created if missing.
        facts: attributes of `data`; a resumed file keeps its own.
        resume: continue an existing file, or the parts of an unfinished one.

    Raises:
        FileExistsError: the file or its parts exist and `resume` is False.
        FileInUseError: another process is writing the file.
        OSError: the path of the folder of parts is taken by something else, such as a link.
        DemoFormatError: the existing file or a part can't be read, or both hold a demo of the same name.
    """

    def __init__(self, path: str | Path, facts: Mapping[str, Any], *, resume: bool) -> None:
        self.path = Path(path)
        require_regular(self.path)
        if self.path.exists() and not resume:
            raise FileExistsError(f"{self.path} exists; resume to add to it, or choose another name")
        self._facts = dict(facts)
        self._groups: dict[str, tuple[Path, Mapping[str, Any]]] = {}
        """Name of a group -> the file that holds it, and the group's attributes."""
        self._next = 0
        self._folder = parts_folder(self.path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = _locked_folder(self._folder)
        try:
            remove_unfinished_of(self.path)
            self._parts = _left_behind(self._folder)
            if self._parts and not resume:
                raise FileExistsError(
                    f"{self._folder} holds {len(self._parts)} parts of an unfinished {self.path.name}; resume it, or remove "
                    "the folder"
                )
            merged = self._register_file(self.path, ()) if self.path.exists() else []
            for part in list(self._parts):
                # Empty if the file has all groups of the part: a merge was killed just before it removed the parts.
                if not self._register_file(part, merged):
                    self._remove(part)
        except BaseException:
            self._release()
            raise

    def __enter__(self: Writer) -> Writer:
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        if kind is None:
            self.close()
        else:
            self._release()

    @property
    def names(self) -> list[str]:
        """Names of the demos written so far, sorted by number."""
        return by_number(self._groups, self.path.name)

    def close(self) -> None:
        """Merge the parts into the file, atomically, and remove them; without demos, nothing is written.

        Raises:
            OSError: the file can't be written, such as on a full disk; the parts remain.
        """
        try:
            if self._groups and self._changed:
                write_hdf5(self.path, self._fill)
                for part in list(self._parts):
                    self._remove(part)
        finally:
            self._release()

    @property
    def _changed(self) -> bool:
        return bool(self._parts)

    def _add(self, groups: Mapping[str, tuple[Callable[[h5py.Group], None], Mapping[str, Any]]]) -> None:
        """Write a part with these groups: name -> (function that fills it, its attributes); it is on disk on return."""

        def fill(file: h5py.File) -> None:
            data = data_group(file, self._facts)
            for name, (write, _) in groups.items():
                write(data.create_group(name))
            self._seal(file)

        part = self._folder / f"{next(iter(groups))}.hdf5"
        write_hdf5(part, fill)
        self._parts.append(part)
        for name, (_, attributes) in groups.items():
            self._register(name, part, attributes)

    def _keeps(self, name: str, attributes: Mapping[str, Any]) -> bool:
        """Whether a resumed writer keeps this existing group; a subclass may override it."""
        return True

    def _register_file(self, path: Path, merged: Sequence[Any]) -> list[Any]:
        """Register the groups of an existing file, except those whose checksums are in `merged`; returns their checksums."""
        found = []
        with open_hdf5(path) as file:
            data = group_in(file, "data", path.name)
            if not self._groups:
                self._facts = attributes_of(data, path.name)
            for name in by_number(data, path.name):
                attributes = attributes_of(group_in(data, name, path.name), f"{path.name}, {name}")
                if attributes.get(CHECKSUMS, name) in merged or not self._keeps(name, attributes):
                    continue
                if name in self._groups:
                    raise DemoFormatError(f"{path} holds {name} and so does {self._groups[name][0]}; move one away")
                self._register(name, path, attributes)
                found.append(attributes.get(CHECKSUMS))
        return found

    def _register(self, name: str, path: Path, attributes: Mapping[str, Any]) -> None:
        self._groups[name] = path, attributes
        self._next = max(self._next, demo_number(name, self.path.name) + 1)

    def _fill(self, target: h5py.File) -> Iterator[None]:
        """Copy all groups into the new file, in the order of their numbers."""
        data = data_group(target, self._facts)
        for name, new_name in self._order().items():
            path, _ = self._groups[name]
            # Not examined again: this writer wrote the file, or examined it when registering its groups.
            with open_checked(path) as file, damage_named(f"{path.name}, {name}"):
                file.copy(file[f"data/{name}"], data, new_name)
            yield
        self._add_rest(target)
        self._seal(target)

    def _add_rest(self, target: h5py.File) -> None:
        """Write the contents of the file other than its groups; a subclass overrides it if there are any."""

    def _seal(self, file: h5py.File) -> None:
        """Write the checksum of the file as a whole (`seal_of`), if `facts` has the attribute for it."""
        if CHECKSUMS in self._facts:
            file["data"].attrs[CHECKSUMS] = seal_of(file, self.path.name)

    def _order(self) -> dict[str, str]:
        """Name of each group -> its name in the complete file, in the order of that file."""
        return {name: name for name in self.names}

    def _remove(self, part: Path) -> None:
        part.unlink()
        self._parts.remove(part)

    def _release(self) -> None:
        """Unlock the folder and remove it if it is empty; otherwise its parts remain for a writer that resumes."""
        with suppress(OSError):
            self._folder.rmdir()
        os.close(self._lock)


def file_or_first_part(path: str | Path) -> Path | None:
    """The file whose attributes a resumed writer keeps: that at `path`, otherwise its first part; None if neither exists."""
    if Path(path).exists():
        return Path(path)
    return min((part for part in parts_folder(path).glob("*.hdf5") if TEMPORARY not in part.name), default=None)


def _left_behind(folder: Path) -> list[Path]:
    """The parts in a folder, sorted; temporary files of a killed process are removed.

    Raises:
        OSError: the folder holds anything else.
    """
    found = []
    for path in sorted(folder.iterdir()):
        part = TEMPORARY in path.name or path.suffix == ".hdf5"
        if not part or not stat.S_ISREG(path.lstat().st_mode):
            raise OSError(
                f"{path} is not a part (a regular .hdf5 file), so {folder} is not a folder of parts; move it away"
            )
        if TEMPORARY in path.name:
            path.unlink()
        else:
            found.append(path)
    return found


def _locked_folder(folder: Path) -> int:
    """Create the folder if missing, lock it, and return its file descriptor; a link is refused."""
    while True:
        with suppress(FileExistsError):
            folder.mkdir()
        try:
            fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except FileNotFoundError:  # another writer has finished and removed the folder in the meantime
            continue
        except OSError:
            raise OSError(f"{folder} is in the way and not a folder of parts; move it away") from None
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            raise FileInUseError(f"another process is writing {folder.with_suffix('')}; wait until it ends") from None
        except OSError:
            pass  # a file system without locks: only the exclusive mkdir protects the folder
        # Otherwise another writer removed the folder before it was locked here.
        if folder.exists() and os.path.samestat(os.fstat(fd), os.stat(folder)):
            return fd
        os.close(fd)
