"""The demo format `npz_episodes`: a folder with one NumPy archive for each episode.

An archive `<anything>.npz` holds `actions` (T, width), an array `obs/<key>` (T, ...) for each observation, and may hold
`instruction`.
"""

from collections.abc import Sequence
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from robopolicy.components import register
from robopolicy.demos.formats.base import (
    DemoReader,
    Omissions,
    WritableFormat,
    requested_keys,
    require_demo,
)
from robopolicy.types import Demo, DemoFormatError

PREFIX = "obs/"


@register("demo_format", "npz_episodes")
class NpzEpisodes(WritableFormat):
    """A folder of `.npz` files, one an episode, in the order of their names."""

    def matches(self, path: Path) -> bool:
        """A folder with `.npz` files in it."""
        return path.is_dir() and any(path.glob("*.npz"))

    def open(self, path: Path) -> "NpzReader":
        """A reader of the folder; an archive is opened when its demo is read."""
        return NpzReader(path)

    def write(self, source: DemoReader, target: Path, names: Sequence[str]) -> list[str]:
        """One archive for each demo."""
        omissions = Omissions("a folder of npz files", source, len(names))
        target.mkdir()
        for index, name in enumerate(names):
            demo = source.read(name)
            fields = ("executed_actions", "rewards", "dones", "states", "tokens", "seed")
            omissions.add(demo, fields, demo.attributes)
            arrays = {"actions": demo.actions, **{PREFIX + key: values for key, values in demo.obs.items()}}
            if demo.instruction is not None:
                arrays["instruction"] = np.array(demo.instruction)
            np.savez_compressed(target / f"episode_{index:06d}.npz", **arrays)
        notes = omissions.lines()
        if source.action_spec is not None:
            notes.append("a folder of npz files has no place for the action spec: left out, and inferred when read")
        if source.filter_keys:
            notes.append(f"a folder of npz files has no place for the filter keys {', '.join(source.filter_keys)}")
        return notes


class NpzReader(DemoReader):
    """Reads the archives of a folder."""

    format_name = "npz_episodes"

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._files = {f"demo_{index}": file for index, file in enumerate(sorted(path.glob("*.npz")))}
        self.names = tuple(self._files)

    def read(self, name: str, keys: Sequence[str] | None = None) -> Demo:
        """One episode; `keys` limits which observations are read."""
        require_demo(self, name)
        file = self._files[name]
        try:
            with np.load(file, allow_pickle=False) as archive:
                found = [key.removeprefix(PREFIX) for key in archive.files if key.startswith(PREFIX)]
                obs = {key: archive[PREFIX + key] for key in requested_keys(found, keys, file.name)}
                actions = archive["actions"]
                instruction = str(archive["instruction"]) if "instruction" in archive.files else None
        except DemoFormatError:
            raise
        except (KeyError, ValueError, OSError, EOFError, BadZipFile) as error:
            raise DemoFormatError(f"{file.name}: not an episode with actions and obs/<key> ({error})") from error
        if wrong := [key for key, values in obs.items() if values.shape[:1] != actions.shape[:1]]:
            raise DemoFormatError(f"{file.name}: {wrong[0]} and actions differ in length; expected one row per step")
        return Demo(name=name, obs=obs, actions=actions, instruction=instruction)
