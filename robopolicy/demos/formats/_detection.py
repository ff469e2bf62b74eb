"""Detects the demo format of a file or folder from its content, among built-in and plug-in formats."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from robopolicy.components import ConfigError, build, component, kinds, options_from
from robopolicy.demos.formats.base import DemoFormat, DemoReader, WritableFormat
from robopolicy.demos.guarded import damage_named
from robopolicy.demos.probe import open_hdf5
from robopolicy.demos.remote import local_path
from robopolicy.types import DemoFormatError

FAMILY = "demo_format"
NATIVE = "robomimic"
"""The format that `DemoWriter` writes, and `convert` by default."""


def open_demos(path: str | Path) -> DemoReader:
    """A reader of the demos at `path`: a file or folder of any known format, or the URL of one.

    HDF5 files are first opened in a child process, because a damaged one can crash the process (`robopolicy.demos.probe`).

    Raises:
        DemoFormatError: the path doesn't exist, is damaged or unsafe, or matches no known format or two unrelated formats.
        ConfigError: a plug-in's format can't be imported.
    """
    path = local_path(path)
    if not path.exists():
        raise DemoFormatError(f"{path}: no such file or folder")
    with damage_named(path.name):
        matching = {kind: found for kind in kinds(FAMILY) if (found := demo_format(kind)).matches(path)}
        # A format may extend another one (LIBERO's extends robomimic's), so both match; keep the more specific one.
        refined = {base for found in matching.values() for base in found.refines}
        matching = {kind: found for kind, found in matching.items() if kind not in refined}
        if len(matching) == 1:
            return next(iter(matching.values())).open(path)
    if matching:
        raise DemoFormatError(
            f"{path.name}: matches the formats {' and '.join(matching)}; expected one (a format that extends another "
            "names it in `refines`)"
        )
    raise DemoFormatError(f"{path.name}: unknown demo format ({_content(path)}); known are {', '.join(kinds(FAMILY))}")


def demo_format(kind: str, options: Mapping[str, Any] | None = None) -> DemoFormat:
    """The format called `kind`, built with these options.

    Raises:
        ConfigError: the kind or an option is unknown, or its plug-in can't be imported.
    """
    return build(options_from(FAMILY, kind, options or {}, "--options "))


def writable_format(kind: str | None = None, options: Mapping[str, Any] | None = None) -> WritableFormat:
    """The format called `kind` (default: the native one), for writing demos.

    Raises:
        ConfigError: as `demo_format`; or the format is read-only (the message lists the writable ones).
    """
    found = demo_format(kind or NATIVE, options)
    if isinstance(found, WritableFormat):
        return found
    writable = [known for known in kinds(FAMILY) if hasattr(component(FAMILY, known).make, "write")]
    raise ConfigError(f"the format {kind!r} can only be read; convert writes: {', '.join(writable)}")


def _content(path: Path) -> str:
    """The first entries of a folder or an HDF5 file, for the error message."""
    if path.is_dir():
        inside = sorted(item.name for item in path.iterdir())
    else:
        with open_hdf5(path) as file:
            inside = sorted(file)
    more = ", ..." if len(inside) > 6 else ""
    return f"it holds {', '.join(inside[:6]) or 'nothing'}{more}"
