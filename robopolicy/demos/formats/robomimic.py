"""The robomimic v1 layout, also this package's native one: robomimic, MimicGen, RoboCasa, and robosuite with observations."""

from collections.abc import Sequence
from pathlib import Path

from robopolicy.components import register
from robopolicy.demos.actions import robosuite_action_facts
from robopolicy.demos.formats.base import DemoReader, WritableFormat, action_spec_of, filter_keys_of
from robopolicy.demos.hdf5 import TOKENS_PADDED, DemoFile
from robopolicy.demos.packing import file_facts
from robopolicy.demos.probe import open_hdf5
from robopolicy.demos.writer import write_demo_file

DESCRIPTIONS = ("env_args", "action_spec", "total", TOKENS_PADDED)
"""File attributes that are not copied from the source: the writer computes them, or they hold only for the source."""


@register("demo_format", "robomimic")
class RobomimicFormat(WritableFormat):
    """HDF5 of robomimic, MimicGen, RoboCasa and robosuite; the native layout."""

    reader = DemoFile

    def matches(self, path: Path) -> bool:
        """Whether the path is an HDF5 file with a group `data`."""
        if path.is_dir():
            return False
        with open_hdf5(path) as file:
            return "data" in file

    def write(self, source: DemoReader, target: Path, names: Sequence[str]) -> list[str]:
        """Write a native file, which holds every field of a `Demo`."""
        plain = {key: value for key, value in source.attributes.items() if isinstance(value, (str, int, float))}
        attributes = {key: value for key, value in plain.items() if key not in DESCRIPTIONS}
        env_args = source.attributes.get("env_args") or {}
        spec = source.action_spec
        if spec is None and source.action_facts != robosuite_action_facts(env_args):
            spec = action_spec_of(source)
        masks = filter_keys_of(source, names)
        write_demo_file(target, file_facts(env_args, spec, attributes), map(source.read, names), masks)
        left_out = sorted(set(source.attributes) - set(plain) - set(DESCRIPTIONS))
        note = f"attributes of the whole set that are neither text nor number are left out: {', '.join(left_out)}"
        return [note] if left_out else []
