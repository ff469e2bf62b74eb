"""LIBERO files (github.com/Lifelong-Robot-Learning/LIBERO): robomimic's layout, with images stored upside down.

One file per task. The attribute `problem_info` holds the instruction. Images are stored as OpenGL renders them, bottom
row first, so the reader flips them vertically (not a rotation by 180 degrees, which would also mirror left and right).
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from robopolicy.components import register
from robopolicy.demos.formats.base import DemoFormat, is_image
from robopolicy.demos.hdf5 import DemoFile
from robopolicy.demos.probe import open_hdf5
from robopolicy.demos.schema import json_object
from robopolicy.types import Demo, DemoFormatError

RATE_HZ = 20.0
"""LIBERO's control rate [Hz], used if `env_args` gives none."""


class LiberoReader(DemoFile):
    """Reads the demos of one LIBERO file."""

    format_name = "libero"

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._instruction = _instruction(self.attributes.get("problem_info"))
        self._upright = str(self.attributes.get("macros_image_convention", "opengl")).lower() == "opencv"
        # robosuite calls upright images "opencv". This reader returns upright images, so converted files hold upright ones.
        self.attributes = {**self.attributes, "macros_image_convention": "opencv"}
        self.action_facts = {"rate_hz": RATE_HZ, "kind": "delta", "space": "ee", **self.action_facts}
        self.notes = (
            () if self._instruction else ("problem_info has no language_instruction; the demos have no instruction",)
        )
        if not self._upright:
            self.notes += ("images are upside down in LIBERO's files; flipped vertically",)

    def read(self, name: str, keys: Sequence[str] | None = None) -> Demo:
        """One demo, its images upright."""
        demo = super().read(name, keys)
        obs = {
            key: values[:, ::-1].copy() if is_image(values) and not self._upright else values
            for key, values in demo.obs.items()
        }
        return replace(demo, obs=obs, instruction=demo.instruction or self._instruction)

    def datasets(self, name: str) -> None:
        """None: no direct access to the file's datasets, because `read` changes their values."""


@register("demo_format", "libero")
class LiberoFormat(DemoFormat):
    """LIBERO's HDF5 files, one per task; read only."""

    refines = ("robomimic",)
    reader = LiberoReader

    def matches(self, path: Path) -> bool:
        """The robomimic layout with `problem_info` or `bddl_file_name` among its attributes."""
        if path.is_dir():
            return False
        with open_hdf5(path) as file:
            return "data" in file and bool({"problem_info", "bddl_file_name"} & set(file["data"].attrs))


def _instruction(problem_info: Any) -> str | None:
    """`language_instruction` in the JSON text `problem_info` (a string or a list of parts to join), without outer quotes."""
    try:
        found = json_object(problem_info, "problem_info").get("language_instruction", "")
    except DemoFormatError:
        return None
    text = "".join(map(str, found)) if isinstance(found, list) else str(found)
    return text.strip().strip('"').strip() or None
