"""The robomimic v1 layout, which is our native one: robomimic, MimicGen, RoboCasa, and robosuite's files with observations."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py

from robopolicy.components import NoOptions, register
from robopolicy.demos.formats.base import DemoReader, ReaderBase, action_spec_of
from robopolicy.demos.guarded import group_in
from robopolicy.demos.hdf5 import TOKENS_PADDED, DemoFile
from robopolicy.demos.images import image_form
from robopolicy.demos.packing import STEP_ARRAYS, file_facts
from robopolicy.demos.probe import open_hdf5
from robopolicy.demos.schema import is_number, json_object
from robopolicy.demos.writer import write_demo_file
from robopolicy.types import Demo, DemoFormatError

DESCRIPTIONS = ("env_args", "action_spec", "total", TOKENS_PADDED)
"""File attributes that the writer makes itself."""


@register("demo_format", "robomimic")
class RobomimicFormat:
    """HDF5 of robomimic, MimicGen, RoboCasa and robosuite; the native layout."""

    refines = ()

    def __init__(self, options: NoOptions) -> None:
        pass

    def matches(self, path: Path) -> bool:
        """An HDF5 file with a group `data`."""
        if path.is_dir():
            return False
        with open_hdf5(path) as file:
            return "data" in file

    def open(self, path: Path) -> "RobomimicReader":
        """A reader of the file.

        Raises:
            DemoFormatError: it is damaged, or robosuite's raw `demo.hdf5`, which holds no observations.
        """
        with open_hdf5(path) as file:
            _refuse_raw(file, path)
        return RobomimicReader(path)

    def write(self, source: DemoReader, target: Path, names: Sequence[str]) -> list[str]:
        """Write a native file, which holds every field of a Demo."""
        plain = {key: value for key, value in source.attributes.items() if isinstance(value, (str, int, float))}
        attributes = {key: value for key, value in plain.items() if key not in DESCRIPTIONS}
        env_args = source.attributes.get("env_args") or {}
        spec = source.action_spec
        if spec is None and source.action_facts != robosuite_action_facts(env_args):
            spec = action_spec_of(source)
        masks = {key: [name for name in members if name in set(names)] for key, members in source.filter_keys.items()}
        write_demo_file(target, file_facts(env_args, spec, attributes), map(source.read, names), masks)
        left_out = sorted(set(source.attributes) - set(plain) - set(DESCRIPTIONS))
        return (
            [f"attributes of the whole set that are neither text nor number are left out: {', '.join(left_out)}"]
            if left_out
            else []
        )


class RobomimicReader(ReaderBase):
    """A native file, which `robopolicy.demos.hdf5.DemoFile` reads; `tokens` as there."""

    format_name = "robomimic"

    def __init__(self, path: Path, *, tokens: bool = True) -> None:
        super().__init__(path)
        with open_hdf5(path) as file:
            self._file = DemoFile(path, tokens=tokens)
            self.names = tuple(self._file.names)
            first = group_in(group_in(file, "data", path.name), self.names[0], path.name)
            trees = [key for key in ("states",) if first.get(key, getclass=True) is h5py.Group]
            unread = sorted({*trees, *(set(first) - {"actions", "obs", *STEP_ARRAYS})})
        if unread:
            self.notes = (f"of each demo, {', '.join(unread)} is not read",)
        for key, data in self._file.datasets(self.names[0]).items():
            if key.startswith("obs/") and (form := image_form(data.shape[1:], data.dtype)) is not None:
                self.notes += (f"{key}: {form}; taken as images, uint8 (height, width, 3)",)
        self.filter_keys = self._file.filter_keys
        self.attributes = self._file.attributes
        self.action_spec = self._file.action_spec
        self.action_facts = robosuite_action_facts(self.attributes.get("env_args") or {})

    def read(self, name: str, keys: Sequence[str] | None = None) -> Demo:
        """One demo; without an instruction of its own it gets that of `ep_meta`, where RoboCasa keeps it."""
        demo = self._file.read(name, keys)
        if demo.instruction is None and (language := _language(demo.attributes.get("ep_meta"))):
            return replace(demo, instruction=language)
        return demo

    def datasets(self, name: str) -> Mapping[str, h5py.Dataset] | None:
        """The datasets that a demo is read from unchanged, by path such as `obs/front`, and `tokens`."""
        return self._file.datasets(name)

    def close(self) -> None:
        """Close the HDF5 file."""
        self._file.close()


def _refuse_raw(file: h5py.File, path: Path) -> None:
    demos = group_in(file, "data", path.name)
    first = group_in(demos, next(map(str, demos)), path.name) if len(demos) else demos
    if "states" in first and "obs" not in first:
        raise DemoFormatError(
            f"{path.name}: robosuite's raw layout, states and actions without observations, can't be trained on. "
            "Render it first with robosuite's own simulator (robomimic: dataset_states_to_obs.py)"
        )


def robosuite_action_facts(env_args: Mapping[str, Any]) -> dict[str, Any]:
    """Kind, space and rate of the actions, as declared by the environment's controller (robosuite 1.4 and 1.5)."""
    settings = env_args.get("env_kwargs") or {}
    facts: dict[str, Any] = {}
    rate_hz = settings.get("control_freq")
    if rate_hz is not None and is_number(rate_hz) and 0 < rate_hz <= 1e6:
        facts["rate_hz"] = float(rate_hz)
    controller = settings.get("controller_configs") or {}
    controller = controller[0] if isinstance(controller, list) and controller else controller
    if not isinstance(controller, Mapping):
        return facts
    parts = controller.get("body_parts")
    controller = parts.get("right", controller) if isinstance(parts, Mapping) else controller
    if not isinstance(controller, Mapping):
        return facts
    kind = str(controller.get("type", ""))
    spaces = {"OSC": "ee", "IK": "ee", "JOINT_POSITION": "joint_position", "JOINT_VELOCITY": "joint_velocity"}
    space = next((space for prefix, space in spaces.items() if kind.startswith(prefix)), None)
    if space is None:
        return facts
    delta = controller.get("input_type", "delta" if controller.get("control_delta", True) else "absolute") == "delta"
    return {**facts, "space": space, "kind": "delta" if delta and space != "joint_velocity" else "absolute"}


def _language(ep_meta: Any) -> str | None:
    try:
        found = json_object(ep_meta, "ep_meta").get("lang")
    except DemoFormatError:
        return None
    return found if isinstance(found, str) and found else None
