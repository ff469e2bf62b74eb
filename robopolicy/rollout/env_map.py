"""Environment maps: YAML files that map a third-party environment's names, units and signals to a policy's.

    make: {id: FetchPush-v4, kwargs: {...}}   # or {factory: NAME}; `{name}` is what follows the colon of --env
    observation:                              # policy key -> where the environment has it
      state: {from: [observation, desired_goal]}        # one or several arrays end to end; a/b in nested dicts
      gripper: {from: robot0_gripper_qpos, columns: [0, 1]}
      front: {from: images/front, flip: vertical}       # images: layout, flip, fit; resized to the policy's size
      top: {from: render}                               # the environment's own render()
    action: {columns: [0, 1, 2, 6], scale: 1.0, offset: 0.0, sign: [3], clip: [-1, 1]}
    success: {info: is_success, when: any}    # or reward, return, terminated, method
    max_episode_steps: 300
    instruction: lift the red cube            # or {info: KEY}, {method: NAME}, {attribute: NAME}, {observation: KEY}

A policy's key that the map does not name is read under its own name.
"""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from robopolicy.control.serving.mapping import KeySource, key_source
from robopolicy.options import ConfigError, options_of, read_yaml, refuse_unknown, require
from robopolicy.rollout.env_map_parts import SECTIONS, ActionMap, EnvMapError, check_section, demo_kwargs
from robopolicy.rollout.env_runner import FLAT, RENDER
from robopolicy.types import ArraySpec


@dataclass(frozen=True)
class EnvMap:
    """The contents of an environment map file; every field is optional."""

    make: Mapping[str, Any] = field(default_factory=dict)
    """`id` or `factory`, and `kwargs`; default: the name after the colon of --env."""
    observation: Mapping[str, KeySource] = field(default_factory=dict)
    """Key of the policy -> the source of its values: one array, or several that are concatenated; `a/b` in nested dicts,
    `render` for the environment's `render()`."""
    action: ActionMap = field(default_factory=ActionMap)
    """How action rows become the environment's actions."""
    success: Mapping[str, Any] = field(default_factory=dict)
    """Signal: `info: KEY` (>= `at_least`, default 0.5), `reward: MINIMUM`, `return: MINIMUM` (`threshold`: gymnasium's own),
    `terminated: true` or `method: NAME`; default: the info key `is_success` or `success`. It must hold for `hold_steps`
    consecutive steps (default 1): at any time (`when: any`, the default; the episode then ends, unless `stop: false`), or up
    to the episode's end (`when: end`)."""
    max_episode_steps: int | None = None
    """Control steps after which an episode has failed; default: the environment's own limit."""
    control_dt: float | None = None
    """Time of one control step [s]; default: the environment's own."""
    instruction: str | Mapping[str, str] | None = None
    """A text, or where the environment provides it: `info`, `method`, `attribute` or `observation`."""
    reset_on_instruction: bool = False
    """Whether the policy's memory is cleared when the instruction changes within an episode."""
    instructions_in_a_row: int = 0
    """Number of consecutive instructions in an episode; needs a figure `solved`, the number solved. 0 for single tasks."""
    seeding: Mapping[str, Any] = field(default_factory=dict)
    """`reset: true` (default: `reset(seed=...)`), `method: NAME` called with the seed, `generators: [PATH, ...]` attributes
    that get a NumPy generator, `numpy: true` for NumPy's global one."""
    attributes: Mapping[str, Any] = field(default_factory=dict)
    """Attributes of the unwrapped environment that are set before each reset."""
    start_states: Mapping[str, str] = field(default_factory=dict)
    """`file` of stored states (.npy, or .npz with `key`), and `method`, which sets one after a reset; seed s uses row s modulo
    their number."""
    settle: Mapping[str, Any] = field(default_factory=dict)
    """After each reset, the fixed `action` is executed for `steps` control steps, before the policy acts."""
    step_timeout_s: float = 60.0
    """Time limit for a step or a reset [s], beyond which the environment counts as hung."""
    figures: Mapping[str, str] = field(default_factory=dict)
    """Name -> info key; the values at the episodes' last steps are averaged over the episodes and reported."""
    folder: str | None = None
    """Folder of the map file; factories may be in a Python file there."""

    @classmethod
    def read(cls, source: "str | Path | Mapping[str, Any] | EnvMap | None") -> "EnvMap":
        """A map from a YAML file, a dictionary or a map; None is the empty map.

        Raises:
            EnvMapError: the file can't be read, or holds an unknown key or a wrong value.
        """
        if source is None or isinstance(source, EnvMap):
            return source or cls()
        if isinstance(source, Mapping):
            return cls._made(source, "map", None)
        try:
            values = read_yaml(source)
        except ConfigError as error:
            raise EnvMapError(f"--env-map {error}") from None
        return cls._made(values, f"--env-map {source}", str(Path(source).parent.resolve()))

    @classmethod
    def _made(cls, values: Mapping[str, Any], where: str, folder: str | None) -> "EnvMap":
        try:
            refuse_unknown(values, [each.name for each in fields(cls) if each.name != "folder"], "", "keys of a map")
            entries = values.get("observation") or {}
            require(isinstance(entries, Mapping), f"observation: expected keys of the policy, got {entries!r}")
            sources = {key: key_source(entry, f"observation: {key}: ") for key, entry in entries.items()}
            return options_of(cls, {**values, "observation": sources, "folder": folder}, "")
        except ConfigError as error:
            raise EnvMapError(f"{where}: {error}") from None

    def __post_init__(self) -> None:
        for name in SECTIONS:
            if isinstance(given := getattr(self, name), Mapping):
                check_section(name, given)
        for name in ("max_episode_steps", "control_dt", "step_timeout_s"):
            value = getattr(self, name)
            require(value is None or value > 0, f"{name} is {value}; expected more than 0")

    def with_kwargs(self, source: str) -> "EnvMap":
        """The map with further arguments for the environment's constructor.

        Args:
            source: a mapping as JSON or YAML text, or a robomimic demo file, whose `env_args` hold them.

        Raises:
            EnvMapError: it is neither.
        """
        path = Path(source)
        if path.suffix in (".hdf5", ".h5"):
            given = demo_kwargs(path)
        else:
            try:
                given = yaml.safe_load(source)
            except yaml.YAMLError:
                given = None
            if not isinstance(given, dict):
                raise EnvMapError(f"--env-kwargs {source}: expected {{name: value, ...}}, or a demo file with env_args")
        kwargs = {**(self.make.get("kwargs") or {}), **given}
        return replace(self, make={**self.make, "kwargs": kwargs})

    def runner_spec(self, env: str, render: bool = False) -> dict[str, Any]:
        """The settings that the environment's own process needs, as JSON-ready values."""
        render = render or any(RENDER in source.names for source in self.observation.values())
        names = ("make", "success", "max_episode_steps", "instruction", "seeding", "attributes", "settle", "figures")
        spec: dict[str, Any] = {name: getattr(self, name) for name in names} | {"env": env, "render": render}
        starts = dict(self.start_states)
        if starts and self.folder is not None:
            starts["file"] = str(Path(self.folder, starts["file"]))
        return spec | {"start_states": starts, "python_path": [*([self.folder] if self.folder else []), os.getcwd()]}

    def sources(self, expected: Mapping[str, ArraySpec], has: Mapping[str, Sequence[Any]]) -> dict[str, KeySource]:
        """The source of each of the policy's keys in an environment with the observation `has`: path -> [shape, dtype].

        Raises:
            EnvMapError: a key is missing or does not fit; the message suggests an entry for the map.
        """
        return {key: self._source(key, spec, expected, has) for key, spec in expected.items()}

    def _source(
        self, key: str, expected: ArraySpec, every: Mapping[str, ArraySpec], has: Mapping[str, Sequence[Any]]
    ) -> KeySource:
        shown = ", ".join(f"{path} {tuple(shape)} {dtype}" for path, (shape, dtype) in has.items())
        source = self.observation.get(key)
        if source is None:
            alone = [one for one, spec in every.items() if not spec.is_image] == [key]
            path = FLAT if key not in has and FLAT in has and alone and len(has) == 1 else key
            source = KeySource((path,))
        missing = [path for path in source.names if path not in has]
        kind = "camera" if expected.is_image else "key"
        if missing:
            raise EnvMapError(
                f"the policy's {kind} '{key}' {expected.shape} is not in the environment's observation as '{missing[0]}'; "
                f"the map could say observation: {{{key}: {{from: NAME}}}}. It has: {shown}"
            )
        shapes = [tuple(has[path][0]) for path in source.names]
        if expected.is_image:
            _check_image(key, expected, source, has[source.names[0]])
            return source
        width = sum(int(np.prod(shape)) for shape in shapes)
        taken = width if source.columns is None else min(source.columns[1], width) - source.columns[0]
        if taken != expected.width:
            given = " + ".join(f"{path} {shape}" for path, shape in zip(source.names, shapes, strict=True))
            raise EnvMapError(
                f"the policy's key '{key}' has shape {expected.shape}, the environment gives {given}: {taken} numbers; the map "
                f"could say observation: {{{key}: {{from: [NAME, ...], columns: [first, last + 1]}}}}. It has: {shown}"
            )
        return source

    def check_action(self, row_width: int, env_shape: Sequence[int] | None, space: str) -> None:
        """Refuse action rows that don't fit the environment.

        Raises:
            EnvMapError: the widths differ; the message suggests an entry for the map.
        """
        columns = self.action.columns
        if columns is not None and max(columns) >= row_width:
            raise EnvMapError(
                f"action: columns {list(columns)} of the map, but the policy's rows have {row_width} columns"
            )
        width = row_width if columns is None else len(columns)
        if env_shape is not None and width != int(np.prod(env_shape)):
            raise EnvMapError(
                f"the policy's action rows have {row_width} columns{'' if columns is None else f', {width} taken'}; the "
                f"environment takes {int(np.prod(env_shape))} ({space}); the map could say action: {{columns: [0, 1, ...]}}"
            )
        for name in ("scale", "offset"):
            given = getattr(self.action, name)
            if not isinstance(given, (int, float)) and len(given) != width:
                raise EnvMapError(f"action: {name} has {len(given)} numbers for {width} columns; give one, or {width}")
        if self.action.clip == "space" and env_shape is None:
            raise EnvMapError("action: clip: space, but the environment states no bounds; give clip: [low, high]")


def _check_image(key: str, expected: ArraySpec, source: KeySource, has: Sequence[Any]) -> None:
    shape, dtype = tuple(has[0]), has[1]
    shape = (*shape[1:], shape[0]) if source.layout == "chw" and len(shape) == 3 else shape
    if len(source.names) != 1 or dtype != "uint8" or len(shape) != 3 or shape[2] != expected.shape[2]:
        raise EnvMapError(
            f"the policy's camera '{key}' takes uint8 images such as {expected.shape}; {' + '.join(source.names)} is "
            f"{dtype} {tuple(has[0])}; the map could say observation: {{{key}: {{from: IMAGE, layout: chw}}}}"
        )


def task_name(env: str) -> str:
    """The name of an environment in results and file names: `metaworld:push-v3` -> `metaworld-push-v3`."""
    return re.sub(r"[^\w.+-]+", "-", env).strip("-")
