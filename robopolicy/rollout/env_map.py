"""How a third-party environment's names, units and signals meet a policy's: a YAML file with one entry per question.

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
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, get_args

import numpy as np
import yaml

from robopolicy.control.serving.mapping import Fit, Flip, KeySource, Layout, place_picture
from robopolicy.rollout.env_runner import FLAT, RENDER
from robopolicy.types import ArraySpec

ALLOWED: dict[str, tuple[str, ...]] = {
    "make": ("id", "factory", "kwargs"),
    "success": ("info", "at_least", "reward", "return", "terminated", "method", "when", "hold_steps", "stop"),
    "seeding": ("reset", "method", "generators", "numpy"),
    "start_states": ("file", "key", "method"),
    "settle": ("steps", "action"),
    "instruction": ("info", "method", "attribute", "observation"),
    "action": ("columns", "scale", "offset", "sign", "clip"),
    "observation key": ("from", "columns", "layout", "flip", "fit"),
}
SIGNALS = ("info", "reward", "return", "terminated", "method")


class EnvMapError(ValueError):
    """An environment map can't be read, or does not fit the policy and the environment; one line."""


@dataclass(frozen=True)
class ObsSource:
    """Where the environment has what the policy knows under one key."""

    paths: tuple[str, ...]
    """One array, or several that are joined end to end; `a/b` in nested dicts, `render` for the environment's `render()`."""
    columns: tuple[int, int] | None = None
    """First and last + 1 of the numbers to take."""
    image: KeySource = field(default_factory=lambda: KeySource(names=()))
    """Layout, flip and fit of an image."""

    def read(self, arrays: Mapping[str, np.ndarray], wanted: ArraySpec) -> np.ndarray:
        """The policy's array of shape `wanted.shape`: float32, or an image of uint8."""
        if wanted.is_image:
            image = arrays[self.paths[0]]
            image = image.transpose(1, 2, 0) if self.image.layout == "chw" else image
            return place_picture(image, wanted.shape[0], wanted.shape[1], self.image)
        parts = [np.asarray(arrays[path], np.float32).ravel() for path in self.paths]
        row = np.concatenate(parts) if len(parts) > 1 else parts[0]
        row = row if self.columns is None else row[slice(*self.columns)]
        return row.reshape(wanted.shape)


@dataclass(frozen=True)
class ActionMap:
    """From a policy's action rows, in the demos' units and columns, to the environment's actions."""

    columns: tuple[int, ...] | None = None
    """Columns of the row to take, in the environment's order; None: all."""
    scale: float | Sequence[float] = 1.0
    """Factor of the taken columns."""
    offset: float | Sequence[float] = 0.0
    """Added after scaling."""
    sign: tuple[int, ...] = ()
    """Columns of the environment's action that are replaced by their sign, -1 or 1: a gripper that opens or closes."""
    clip: str | tuple[float, float] | None = None
    """[low, high], or `space`: the environment's own bounds. None: not clipped. What is clipped is counted."""

    def __call__(self, rows: np.ndarray, bounds: tuple[np.ndarray, np.ndarray] | None) -> tuple[np.ndarray, np.ndarray]:
        """Actions (N, width) of the environment for rows (N, row width), and whether each was clipped (N,)."""
        actions = np.asarray(rows, np.float64)
        actions = actions if self.columns is None else actions[:, list(self.columns)]
        actions = actions * self.scale + self.offset
        if self.sign:
            places = list(self.sign)
            actions[:, places] = np.where(actions[:, places] > 0, 1.0, -1.0)
        if self.clip is None:
            return actions, np.zeros(len(actions), dtype=bool)
        low, high = bounds if isinstance(self.clip, str) and bounds is not None else self.clip
        clipped = np.clip(actions, low, high)
        return clipped, np.any(np.abs(clipped - actions) > 1e-9, axis=-1)


@dataclass(frozen=True)
class EnvMap:
    """What a map file says; each field may be left out."""

    make: Mapping[str, Any] = field(default_factory=dict)
    """`id` or `factory` with `kwargs`, if not simply the name after the colon of --env."""
    observation: Mapping[str, ObsSource] = field(default_factory=dict)
    """By the policy's keys."""
    action: ActionMap = field(default_factory=ActionMap)
    """How action rows become the environment's actions."""
    success: Mapping[str, Any] = field(default_factory=dict)
    """One signal: `info: KEY` (with `at_least`), `reward: LEAST`, `return: LEAST`, `terminated: true` or `method: NAME`;
    `when: any` step (default; ends the episode unless `stop: false`) or the `end`; `hold_steps` in a row. Default: the
    info key `is_success` or `success`."""
    max_episode_steps: int | None = None
    """Control steps after which an episode has failed; default: the environment's own limit."""
    control_dt: float | None = None
    """Time of one control step [s]; default: the environment's own."""
    instruction: str | Mapping[str, str] | None = None
    """A text, or where the environment says it: `info`, `method`, `attribute` or `observation`."""
    reset_on_instruction: bool = False
    """Whether the policy's memory is cleared when the instruction changes within an episode."""
    instructions_in_a_row: int = 0
    """Instructions of an episode, whose figure `solved` counts those solved; 0 for single tasks."""
    seeding: Mapping[str, Any] = field(default_factory=dict)
    """`reset: true` (default: `reset(seed=...)`), `method: NAME` called with the seed, `generators: [PATH, ...]` attributes
    that get a NumPy generator, `numpy: true` for NumPy's global one."""
    attributes: Mapping[str, Any] = field(default_factory=dict)
    """Attributes of the unwrapped environment that are set before each reset."""
    start_states: Mapping[str, str] = field(default_factory=dict)
    """`file` (.npy, .npz with `key`) of stored states, and the `method` that sets one after the reset; seed s takes row s."""
    settle: Mapping[str, Any] = field(default_factory=dict)
    """`steps` with a fixed `action` after each reset, before the policy acts."""
    step_timeout_s: float = 60.0
    """An environment that gives no reply to a step or a reset within this time counts as hung [s]."""
    figures: Mapping[str, str] = field(default_factory=dict)
    """Name -> info key, reported as the mean over the episodes' last steps."""
    folder: str | None = None
    """Where the map lies; factories may be in a Python file there."""

    @classmethod
    def read(cls, source: "str | Path | Mapping[str, Any] | EnvMap | None") -> "EnvMap":
        """A map from a YAML file, a dictionary or a map; None is the empty map.

        Raises:
            EnvMapError: the file can't be read, or holds an unknown key or a wrong value.
        """
        if source is None or isinstance(source, EnvMap):
            return source or cls()
        if isinstance(source, Mapping):
            return _parsed(source, "map", None)
        path = Path(source)
        try:
            values = yaml.safe_load(path.read_text()) or {}
        except OSError as error:
            raise EnvMapError(f"--env-map {path}: {error.strerror or error}") from None
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise EnvMapError(f"--env-map {path}: not YAML ({' '.join(str(error).split())})") from None
        return _parsed(values, f"--env-map {path}", path.parent.resolve())

    def runner_spec(self, env: str, render: bool = False) -> dict[str, Any]:
        """What the environment's own process needs to know, as plain JSON-ready values."""
        render = render or any(RENDER in source.paths for source in self.observation.values())
        names = ("make", "success", "max_episode_steps", "instruction", "seeding", "attributes", "settle", "figures")
        spec: dict[str, Any] = {name: getattr(self, name) for name in names} | {"env": env, "render": render}
        starts = dict(self.start_states)
        if starts and self.folder is not None:
            starts["file"] = str(Path(self.folder, starts["file"]))
        return spec | {"start_states": starts, "python_path": [*([self.folder] if self.folder else []), os.getcwd()]}

    def sources(self, wanted: Mapping[str, ArraySpec], has: Mapping[str, Sequence[Any]]) -> dict[str, ObsSource]:
        """Where each of the policy's keys is in an environment whose observation `has` path -> [shape, dtype].

        Raises:
            EnvMapError: a key is missing or does not fit; with its shape, and what the map could say.
        """
        return {key: self._source(key, spec, wanted, has) for key, spec in wanted.items()}

    def _source(
        self, key: str, wanted: ArraySpec, every: Mapping[str, ArraySpec], has: Mapping[str, Sequence[Any]]
    ) -> ObsSource:
        shown = ", ".join(f"{path} {tuple(shape)} {dtype}" for path, (shape, dtype) in has.items())
        source = self.observation.get(key)
        if source is None:
            alone = [one for one, spec in every.items() if not spec.is_image] == [key]
            path = FLAT if key not in has and FLAT in has and alone and len(has) == 1 else key
            source = ObsSource((path,))
        missing = [path for path in source.paths if path not in has]
        kind = "camera" if wanted.is_image else "key"
        if missing:
            raise EnvMapError(
                f"the policy's {kind} '{key}' {wanted.shape} is not in the environment's observation as '{missing[0]}'; "
                f"the map could say observation: {{{key}: {{from: NAME}}}}. It has: {shown}"
            )
        shapes = [tuple(has[path][0]) for path in source.paths]
        if wanted.is_image:
            _check_image(key, wanted, source, has[source.paths[0]])
            return source
        width = sum(int(np.prod(shape)) for shape in shapes)
        taken = width if source.columns is None else min(source.columns[1], width) - source.columns[0]
        if taken != wanted.width:
            given = " + ".join(f"{path} {shape}" for path, shape in zip(source.paths, shapes, strict=True))
            raise EnvMapError(
                f"the policy's key '{key}' has shape {wanted.shape}, the environment gives {given}: {taken} numbers; the map "
                f"could say observation: {{{key}: {{from: [NAME, ...], columns: [first, last + 1]}}}}. It has: {shown}"
            )
        return source

    def check_action(self, row_width: int, env_shape: Sequence[int] | None, space: str) -> None:
        """Refuse action rows that don't fit the environment.

        Raises:
            EnvMapError: with both widths, and what the map could say.
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


def _check_image(key: str, wanted: ArraySpec, source: ObsSource, has: Sequence[Any]) -> None:
    shape, dtype = tuple(has[0]), has[1]
    shape = (*shape[1:], shape[0]) if source.image.layout == "chw" and len(shape) == 3 else shape
    if len(source.paths) != 1 or dtype != "uint8" or len(shape) != 3 or shape[2] != wanted.shape[2]:
        raise EnvMapError(
            f"the policy's camera '{key}' takes uint8 images such as {wanted.shape}; {' + '.join(source.paths)} is "
            f"{dtype} {tuple(has[0])}; the map could say observation: {{{key}: {{from: IMAGE, layout: chw}}}}"
        )


def _parsed(values: Any, where: str, folder: Path | None) -> EnvMap:
    known = [each.name for each in fields(EnvMap) if each.name != "folder"]
    _known(values, known, where)
    given: dict[str, Any] = {}
    for name, value in values.items():
        place = f"{where}: {name}"
        if name == "observation":
            given[name] = {key: _obs_source(entry, f"{place}: {key}") for key, entry in _mapping(value, place).items()}
        elif name == "action":
            given[name] = _action(_known(value, ALLOWED[name], place), place)
        elif name in ALLOWED and not (name == "instruction" and isinstance(value, str)):
            given[name] = dict(_known(value, ALLOWED[name], place))
        else:
            given[name] = value
    _check_values(given, where)
    return EnvMap(**given, folder=str(folder) if folder else None)


def _check_values(given: Mapping[str, Any], where: str) -> None:
    success = given.get("success", {})
    signals = [name for name in SIGNALS if name in success]
    if success and len(signals) != 1:
        raise EnvMapError(
            f"{where}: success names {' and '.join(signals) or 'no signal'}; give one of {', '.join(SIGNALS)}"
        )
    if success.get("when", "any") not in ("any", "end"):
        raise EnvMapError(f"{where}: success: when is {success['when']!r}; expected any or end")
    for name in ("max_episode_steps", "instructions_in_a_row"):
        value = given.get(name, 1)
        if value is not None and (not isinstance(value, int) or value < 1):
            raise EnvMapError(f"{where}: {name} is {value!r}; expected an integer >= 1")
    for name in ("control_dt", "step_timeout_s"):
        seconds = given.get(name, 1.0)
        if seconds is not None and not (isinstance(seconds, (int, float)) and seconds > 0):
            raise EnvMapError(f"{where}: {name} is {seconds!r}; expected seconds > 0")
    starts, settle = given.get("start_states"), given.get("settle")
    if starts and not {"file", "method"} <= starts.keys():
        raise EnvMapError(f"{where}: start_states needs file and method")
    if settle and not {"steps", "action"} <= settle.keys():
        raise EnvMapError(f"{where}: settle needs steps and action")


def _known(values: Any, allowed: Sequence[str], where: str) -> Mapping[str, Any]:
    for key in _mapping(values, where):
        if key not in allowed:
            raise EnvMapError(f"{where}: unknown key {key!r}; expected any of {', '.join(allowed)}")
    return values


def _mapping(values: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(values, Mapping):
        raise EnvMapError(f"{where}: expected keys and values, got {values!r}")
    return values


def _obs_source(entry: Any, where: str) -> ObsSource:
    entry = {"from": entry} if isinstance(entry, (str, list)) else entry
    if "from" not in _known(entry, ALLOWED["observation key"], where):
        raise EnvMapError(f"{where}: expected `from: NAME`")
    names = [entry["from"]] if isinstance(entry["from"], str) else entry["from"]
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise EnvMapError(f"{where}: from is {entry['from']!r}; expected a name or a list of names")
    columns = entry.get("columns")
    if columns is not None:
        if not _integers(columns) or len(columns) != 2 or not 0 <= columns[0] < columns[1]:
            raise EnvMapError(f"{where}: columns is {columns!r}; expected [first, last + 1]")
        columns = (columns[0], columns[1])
    for option, allowed in (("layout", get_args(Layout)), ("flip", get_args(Flip)), ("fit", get_args(Fit))):
        if entry.get(option, allowed[0]) not in allowed:
            raise EnvMapError(f"{where}: {option} is {entry[option]!r}; expected one of {', '.join(allowed)}")
    image = {option: entry[option] for option in ("layout", "flip", "fit") if option in entry}
    return ObsSource(tuple(names), columns, KeySource(names=(names[0],), **image))


def _action(values: Mapping[str, Any], where: str) -> ActionMap:
    given: dict[str, Any] = dict(values)
    for name in ("columns", "sign"):
        if given.get(name) is not None:
            if not _integers(given[name]) or min(given[name], default=0) < 0:
                raise EnvMapError(f"{where}: {name} is {given[name]!r}; expected a list of columns")
            given[name] = tuple(given[name])
    for name in ("scale", "offset"):
        if not _numbers(given.get(name, 1.0)):
            raise EnvMapError(f"{where}: {name} is {given[name]!r}; expected a number, or one per column")
    clip = given.get("clip")
    if clip is not None and clip != "space":
        if not isinstance(clip, list) or len(clip) != 2 or not _numbers(clip) or not clip[0] < clip[1]:
            raise EnvMapError(f"{where}: clip is {clip!r}; expected `space` or [low, high]")
        given["clip"] = (float(clip[0]), float(clip[1]))
    return ActionMap(**given)


def _integers(values: Any) -> bool:
    return isinstance(values, list) and all(isinstance(value, int) for value in values)


def _numbers(value: Any) -> bool:
    values = value if isinstance(value, list) else [value]
    return bool(values) and all(isinstance(each, (int, float)) and not isinstance(each, bool) for each in values)


def task_name(env: str) -> str:
    """The name of an environment in results and file names: `metaworld:push-v3` -> `metaworld-push-v3`."""
    return re.sub(r"[^\w.+-]+", "-", env).strip("-")
