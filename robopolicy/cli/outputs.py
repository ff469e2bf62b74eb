"""Output files: checked before the work starts, and written atomically."""

import json
import tempfile
from pathlib import Path
from typing import Any

from robopolicy.components import ConfigError, require
from robopolicy.files import require_regular, write_file


def check_file(option: str, path: str | Path) -> None:
    """Check that a file can be written at this path; nothing is created.

    Raises:
        ConfigError: the path is a folder, a link or a device, or its folder can't be written to.
    """
    path = Path(path)
    try:
        require_regular(path)
    except OSError as error:
        raise ConfigError(f"{option} {error}") from None
    check_folder(option, path.parent)


def check_folder(option: str, folder: str | Path) -> None:
    """Check that this folder can be created and written to; nothing is left behind.

    Raises:
        ConfigError: a part of the path is a file, or the innermost existing folder can't be written to.
    """
    there = Path(folder).absolute()
    while not there.exists():
        there = there.parent
    require(there.is_dir(), f"{option} {folder}: {there} is a file, where a folder must be")
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        raise ConfigError(f"{option} {folder}: can't write into {there} ({error.strerror})") from error


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Write JSON atomically."""
    write_file(path, json.dumps(values, indent=2))
