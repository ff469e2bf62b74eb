"""LIBERO files (github.com/Lifelong-Robot-Learning/LIBERO): the robomimic layout with pictures upside down.

One file per task; the instruction stands in the attribute `problem_info`, and the pictures as OpenGL gave them, first
row at the bottom. They are turned the right way up on the way in (flipped vertically, not turned by 180 degrees).
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from robopolicy.demos.formats.base import is_image
from robopolicy.demos.formats.robomimic import RobomimicReader
from robopolicy.demos.probe import open_hdf5
from robopolicy.demos.schema import json_object
from robopolicy.types import Demo, DemoFormatError

RATE_HZ = 20.0
"""LIBERO's control rate, where `env_args` doesn't say."""


class LiberoFormat:
    """LIBERO's files."""

    name = "libero"

    def recognises(self, path: Path) -> bool:
        """The robomimic layout with `problem_info` or `bddl_file_name` among its attributes."""
        if path.is_dir():
            return False
        with open_hdf5(path) as file:
            return "data" in file and bool({"problem_info", "bddl_file_name"} & set(file["data"].attrs))

    def open(self, path: Path) -> "LiberoReader":
        """A reader of the file."""
        return LiberoReader(path)


class LiberoReader(RobomimicReader):
    """A LIBERO file."""

    format_name = "libero"

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._instruction = _instruction(self.attributes.get("problem_info"))
        self._upright = str(self.attributes.get("macros_image_convention", "opengl")).lower() == "opencv"
        # robosuite's word for upright pictures, which is what this reader gives and what a copy of it will hold.
        self.attributes = {**self.attributes, "macros_image_convention": "opencv"}
        self.action_facts = {"rate_hz": RATE_HZ, "kind": "delta", "space": "ee", **self.action_facts}
        self.notes = () if self._instruction else ("problem_info names no language_instruction; the demos carry none",)
        if not self._upright:
            self.notes += ("pictures stand upside down in LIBERO's files; flipped vertically",)

    def read(self, name: str, keys: Sequence[str] | None = None) -> Demo:
        """One demo, its pictures the right way up."""
        demo = super().read(name, keys)
        obs = {
            key: values[:, ::-1].copy() if is_image(values) and not self._upright else values
            for key, values in demo.obs.items()
        }
        return replace(demo, obs=obs, instruction=demo.instruction or self._instruction)


def _instruction(problem_info: Any) -> str | None:
    """`language_instruction` of the JSON text: a string, or a list of its pieces; quotes around it go."""
    try:
        found = json_object(problem_info, "problem_info").get("language_instruction", "")
    except DemoFormatError:
        return None
    text = "".join(map(str, found)) if isinstance(found, list) else str(found)
    return text.strip().strip('"').strip() or None
