"""Which format a file or folder is, by its content."""

from pathlib import Path

from robopolicy.demos.formats.act import ActFormat
from robopolicy.demos.formats.base import DemoFormat, DemoReader, WritableFormat
from robopolicy.demos.formats.lerobot import LeRobotFormat
from robopolicy.demos.formats.lerobot_writer import LeRobotWriter
from robopolicy.demos.formats.libero import LiberoFormat
from robopolicy.demos.formats.minari import MinariFormat
from robopolicy.demos.formats.robomimic import RobomimicFormat, RobosuiteRawFormat
from robopolicy.demos.guarded import damage_named
from robopolicy.demos.probe import open_hdf5
from robopolicy.demos.remote import local_path
from robopolicy.types import DemoFormatError

FORMATS: tuple[DemoFormat, ...] = (
    LeRobotFormat(),
    MinariFormat(),
    ActFormat(),
    LiberoFormat(),
    RobosuiteRawFormat(),
    RobomimicFormat(),
)
"""Read, and asked in this order; the native layout last, since others build on it."""
WRITERS: tuple[WritableFormat, ...] = (
    RobomimicFormat(),
    LeRobotWriter(),
    LeRobotWriter(name="lerobot-png", pictures="image"),
    LeRobotWriter(name="lerobot-v2.1", version="v2.1"),
    LeRobotWriter(name="lerobot-v2.1-png", version="v2.1", pictures="image"),
    ActFormat(),
)
"""Written; the first is what `convert` writes where nothing else is asked for."""


def open_demos(path: str | Path) -> DemoReader:
    """A reader of the demos at `path`, a file or a folder of any known format, or the URL of one.

    A file of unknown origin is examined in a child process first (`robopolicy.demos.probe`).

    Raises:
        DemoFormatError: nothing is there, it is damaged or unsafe, of no known format, or of one that can't be used.
    """
    path = local_path(path)
    if not path.exists():
        raise DemoFormatError(f"{path}: no such file or folder")
    for candidate in FORMATS:
        with damage_named(path.name):
            if candidate.recognises(path):
                return candidate.open(path)
    known = ", ".join(candidate.name for candidate in FORMATS)
    raise DemoFormatError(f"{path.name}: no demo format known here ({_content(path)}); known are {known}")


def writable_format(name: str | None = None) -> WritableFormat:
    """The format of that name that demos can be written in; without one, the native one.

    Raises:
        DemoFormatError: there is none; those that there are are listed.
    """
    found = next((known for known in WRITERS if name in (None, known.name)), None)
    if found is None:
        raise DemoFormatError(f"can't write the format {name!r}; convert writes: {', '.join(w.name for w in WRITERS)}")
    return found


def _content(path: Path) -> str:
    if path.is_dir():
        inside = sorted(item.name for item in path.iterdir())
    else:
        with open_hdf5(path) as file:
            inside = sorted(file)
    more = ", ..." if len(inside) > 6 else ""
    return f"it holds {', '.join(inside[:6]) or 'nothing'}{more}"
