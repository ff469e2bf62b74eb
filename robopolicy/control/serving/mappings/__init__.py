"""The key mapping family: from the observation names of one kind of client to the policy's. Each kind is a YAML file."""

from pathlib import Path

from robopolicy.components import NoOptions, register
from robopolicy.control.serving.mapping import KeyMapping, read_file


def register_file(path: Path) -> None:
    """Make a YAML file known under its name."""

    def make(options: NoOptions) -> KeyMapping:
        return read_file(path)

    make.__doc__ = f"Names of {path.stem} clients."
    register("key_mapping", path.stem)(make)
