"""Runs one third-party environment (create, reset by seed, step, detect success), in this process or as a program.

`robopolicy eval --env-python` runs this file in the interpreter of a simulator that needs other package versions. So it
imports only numpy and the environment's own packages (gymnasium only for gymnasium ids), nothing of robopolicy, and keeps to
the syntax of Python 3.9.

As a program, its argument is the file descriptor of an inherited pipe. A message is a JSON header and raw arrays; see `send`.
"""

import importlib
import inspect
import json
import os
import re
import sys
import traceback
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from multiprocessing.connection import Connection
from operator import attrgetter
from typing import Any, Optional

import numpy as np

FLAT = "observation"
"""Path of an observation that is a single array."""
RENDER = "render"
"""Path of the image that the environment's own `render()` returns."""
SAFE_DTYPE = re.compile(r"[<>=|]?(b1|[iu][1248]|f[248])")
MAX_HEADER_BYTES = 2**20
MAX_ARRAY_BYTES = 2**30

Arrays = dict[str, np.ndarray]


class EnvSetupError(ValueError):
    """The environment or its map can't be used as given; the message is one line."""


class Session:
    """One environment that runs episode after episode.

    Args:
        spec: plain values of an environment map; see `robopolicy.rollout.env_map.EnvMap.runner_spec`.
        env: an environment made by the caller; None: made as `spec` says.
    """

    def __init__(self, spec: Mapping[str, Any], env: Any = None) -> None:
        self.spec = spec
        self.env = make_environment(spec) if env is None else env
        self.reads: Optional[list[str]] = None
        own_limit = getattr(getattr(self.env, "spec", None), "max_episode_steps", None)
        limit = spec.get("max_episode_steps") or own_limit or getattr(self.env, "_max_episode_steps", None)
        if not limit:
            raise EnvSetupError(
                "the environment has no time limit; give --env-map FILE with a line max_episode_steps: N"
            )
        self.max_episode_steps = int(limit)
        self._success: dict[str, Any] = dict(spec.get("success") or {})
        if self._success.get("return") == "threshold":
            self._success["return"] = getattr(getattr(self.env, "spec", None), "reward_threshold", None)
            if self._success["return"] is None:
                raise EnvSetupError(
                    "success: {return: threshold}, but the environment states none; give success: {return: MINIMUM}"
                )
        self._starts = load_starts(spec.get("start_states"))

    def open(self, seed: int) -> tuple[dict[str, Any], Arrays]:
        """Begin the episode of `seed`; returns all observations and a description: shapes, action bounds, time limit."""
        frame, arrays = self.reset(seed)
        bounds = action_bounds(self.env)
        about = {
            "observation": {path: [list(array.shape), str(array.dtype)] for path, array in arrays.items()},
            "action": {
                "space": str(getattr(self.env, "action_space", "")),
                "shape": None if bounds is None else list(bounds[0].shape),
            },
            "max_episode_steps": self.max_episode_steps,
            "control_dt": control_dt(self.env),
        }
        limits = {} if bounds is None else {"action/low": bounds[0], "action/high": bounds[1]}
        return {**frame, **about}, {**arrays, **limits}

    def reset(self, seed: int) -> tuple[dict[str, Any], Arrays]:
        """Begin the episode of `seed`; its start depends on the seed alone."""
        self._steps, self._held, self._return, self.success = 0, 0, 0.0, False
        raw = getattr(self.env, "unwrapped", self.env)
        for name, value in (self.spec.get("attributes") or {}).items():
            set_path(raw, name, value)
        seeding: Mapping[str, Any] = self.spec.get("seeding") or {"reset": True}
        if seeding.get("numpy"):
            np.random.seed(seed % 2**32)
        if seeding.get("method"):
            getattr(raw, seeding["method"])(seed)
        for place in seeding.get("generators") or ():
            set_path(raw, place, np.random.default_rng(seed))
        result = self.env.reset(seed=seed) if seeding.get("reset") and takes_seed(self.env) else self.env.reset()
        obs, info = result if isinstance(result, tuple) and len(result) == 2 else (result, {})
        self._reset_info = info
        if self._starts is not None:
            given = getattr(raw, self.spec["start_states"]["method"])(self._starts[seed % len(self._starts)])
            obs = obs if given is None else given
        settle = self.spec.get("settle") or {}
        for _ in range(settle.get("steps", 0)):
            obs, _, _, _, info = self._advance(settle["action"])
        if self.spec.get("render"):
            place_bodies(raw)
        return self._frame(obs, info, 0.0, False, False)

    def step(self, action: np.ndarray) -> tuple[dict[str, Any], Arrays]:
        """One control step with an action (width,) in the environment's own units."""
        obs, reward, terminated, truncated, info = self._advance(action)
        self._steps += 1
        self._return += reward
        now = self._reached(reward, terminated, info)
        self._held = self._held + 1 if now else 0
        reached = self._held >= self._success.get("hold_steps", 1)
        at_end = self._success.get("when", "any") == "end"
        self.success = reached if at_end else self.success or reached
        truncated = truncated or self._steps >= self.max_episode_steps
        if self.success and not at_end and self._success.get("stop", True):
            terminated = True
        return self._frame(obs, info, reward, terminated, truncated)

    def answer(self, request: Mapping[str, Any], action: Optional[np.ndarray]) -> tuple[dict[str, Any], Arrays]:
        """Carry out a step, `open` or `reset`; later replies contain the observations in `reads` of the last open or reset."""
        if action is not None:
            return self.step(action)
        opens = request["do"] == "open"
        self.reads = None if opens else request["reads"]
        reply = self.open(request["seed"]) if opens else self.reset(request["seed"])
        self.reads = request.get("reads")
        return reply

    def close(self) -> None:
        """Release the environment."""
        if hasattr(self.env, "close"):
            self.env.close()

    def _advance(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        result = self.env.step(fitting_action(self.env, action))
        if len(result) == 5:
            obs, reward, terminated, truncated, info = result
        else:  # Gym before 0.26: one flag for termination and truncation
            obs, reward, done, info = result
            truncated = bool(done) and bool(info.get("TimeLimit.truncated", False))
            terminated = bool(done) and not truncated
        return obs, float(reward), bool(terminated), bool(truncated), info

    def _reached(self, reward: float, terminated: bool, info: Mapping[str, Any]) -> bool:
        """Whether the map's success signal holds after this step."""
        signal = self._success
        if "reward" in signal:
            return reward >= signal["reward"]
        if "return" in signal:
            return self._return >= signal["return"]
        if "terminated" in signal:
            return terminated == signal["terminated"]
        if "method" in signal:
            return bool(getattr(getattr(self.env, "unwrapped", self.env), signal["method"])())
        names = [signal["info"]] if "info" in signal else ["is_success", "success"]
        found = [value for value in (at_path(info, name) for name in names) if value is not None]
        if not found:
            raise EnvSetupError(
                f"info has no {' or '.join(names)} (it has: {', '.join(map(str, info)) or 'nothing'}); the map could say "
                f"success: {{info: KEY}}, {{reward: MINIMUM}}, {{return: MINIMUM}}, {{terminated: true}} or {{method: NAME}}"
            )
        return bool(np.all(np.asarray(found[0]) >= signal.get("at_least", 0.5)))

    def _frame(
        self, obs: Any, info: Mapping[str, Any], reward: float, terminated: bool, truncated: bool
    ) -> tuple[dict[str, Any], Arrays]:
        seen = dict(flatten(obs))
        frame = {
            "instruction": self._instruction(seen, info),
            "success": self.success,
            "terminated": terminated,
            "truncated": truncated,
            "reward": reward,
            "figures": self._figures(info),
        }
        if self.spec.get("render"):
            seen[RENDER] = np.asarray(self.env.render())
        requested = seen if self.reads is None else {path: seen[path] for path in self.reads}
        return frame, {path: value for path, value in requested.items() if value.dtype.kind in "biuf"}

    def _instruction(self, seen: Mapping[str, np.ndarray], info: Mapping[str, Any]) -> Optional[str]:
        source = self.spec.get("instruction")
        if source is None or isinstance(source, str):
            return source
        raw = getattr(self.env, "unwrapped", self.env)
        if "method" in source:
            value = getattr(raw, source["method"])()
        elif "attribute" in source:
            value = attrgetter(source["attribute"])(raw)
        elif "info" in source:
            value = at_path(info, source["info"])
            if value is None:  # many environments give it once, at the beginning of the episode
                value = at_path(self._reset_info, source["info"])
        else:
            value = seen.get(source["observation"])
        if value is None:
            raise EnvSetupError(f"instruction {source} of the map is missing; info has {', '.join(map(str, info))}")
        value = value.item() if isinstance(value, np.ndarray) else value
        return value.decode() if isinstance(value, bytes) else str(value)

    def _figures(self, info: Mapping[str, Any]) -> dict[str, float]:
        figures = {"return": self._return}
        for name, path in (self.spec.get("figures") or {}).items():
            value = at_path(info, path)
            figures[name] = float("nan") if value is None else float(np.asarray(value).mean())
        return figures


def place_bodies(env: Any) -> None:
    """Update the poses of the bodies and sites of a MuJoCo environment from its state.

    Meta-World moves its goal after the last forward pass of a reset: the first image would show the previous episode's goal.
    """
    mujoco: Any = sys.modules.get("mujoco")  # already imported if the environment uses it
    if mujoco is not None and isinstance(getattr(env, "model", None), mujoco.MjModel):
        mujoco.mj_kinematics(env.model, env.data)


# -- making an environment -----------------------------------------------------------------------------------------------


def make_environment(spec: Mapping[str, Any]) -> Any:
    """The environment that `spec` names: a gymnasium id or a factory of a module.

    Raises:
        EnvSetupError: the module, the id or the factory is missing, or refuses its arguments.
    """
    sys.path.extend(folder for folder in spec.get("python_path") or () if folder not in sys.path)
    module_name, _, name = spec["env"].rpartition(":")
    make = substitute(spec.get("make") or {}, name)
    kwargs = dict(make.get("kwargs") or {})
    try:
        module = importlib.import_module(module_name) if module_name else None
    except ImportError as error:
        raise EnvSetupError(f"{sys.executable}: {error} (needed for --env {spec['env']}); install it there") from None
    if "factory" in make:
        return call_factory(module, make["factory"], kwargs, spec["env"])
    identifier = make.get("id", name)
    try:
        import gymnasium
    except ImportError:
        if module is None or not hasattr(module, identifier):
            raise EnvSetupError(f"{sys.executable} has no gymnasium, which --env {spec['env']} needs") from None
        return call_factory(module, identifier, kwargs, spec["env"])
    if identifier not in gymnasium.registry and module is not None and hasattr(module, identifier):
        return call_factory(module, identifier, kwargs, spec["env"])
    if spec.get("max_episode_steps"):
        kwargs.setdefault("max_episode_steps", spec["max_episode_steps"])
    if spec.get("render"):
        kwargs.setdefault("render_mode", "rgb_array")
    try:
        return gymnasium.make(identifier, disable_env_checker=True, **kwargs)
    except gymnasium.error.Error as error:
        names = [*gymnasium.registry, *(vars(module) if module else ())]
        near = ", ".join(get_close_matches(identifier, names, n=3, cutoff=0.5))
        raise EnvSetupError(f"--env {spec['env']}: {one_line(error)}{f'; near: {near}' if near else ''}") from None
    except (ImportError, TypeError, KeyError) as error:
        raise EnvSetupError(f"--env {spec['env']}: {type(error).__name__}: {one_line(error)}") from None


def call_factory(module: Any, path: str, kwargs: Mapping[str, Any], env: str) -> Any:
    """The environment made by `module.path(**kwargs)`; `path` may contain a lookup, such as `TABLE[key]`."""
    name, _, key = path.partition("[")
    try:
        factory = attrgetter(name)(module)
        if key:
            factory = factory[key.rstrip("]")]
    except (AttributeError, KeyError) as error:
        known = sorted(each for each in vars(module) if not each.startswith("_"))[:30]
        if key and isinstance(error, KeyError):
            known = sorted(map(str, attrgetter(name)(module)))
        raise EnvSetupError(f"--env {env}: no {path} in {module.__name__}; it has: {', '.join(known)}") from None
    try:
        return factory(**kwargs)
    except TypeError as error:
        raise EnvSetupError(
            f"--env {env}: {one_line(error)}; the map's make: {{kwargs: ...}} are given to it"
        ) from None


def substitute(values: Any, name: str) -> Any:
    """The values with `{name}` replaced in every string."""
    if isinstance(values, str):
        return values.replace("{name}", name)
    if isinstance(values, dict):
        return {key: substitute(value, name) for key, value in values.items()}
    return [substitute(value, name) for value in values] if isinstance(values, list) else values


def control_dt(env: Any) -> Optional[float]:
    """Time of one control step [s]; None if the environment does not declare it."""
    raw = getattr(env, "unwrapped", env)
    for name, invert in (("dt", False), ("control_dt", False), ("control_freq", True), ("control_frequency", True)):
        value = getattr(raw, name, None)
        if isinstance(value, (int, float)) and value > 0:
            return 1.0 / value if invert else float(value)
    return None


def action_bounds(env: Any) -> Optional[tuple[np.ndarray, np.ndarray]]:
    """Lower and upper bounds of an action, each (width,); None if the environment does not declare them.

    Raises:
        EnvSetupError: actions are not one array of real numbers.
    """
    space, spec = getattr(env, "action_space", None), getattr(env, "action_spec", None)
    if space is not None:
        if not hasattr(space, "low"):
            raise EnvSetupError(f"the action space is {space}; expected a Box: a policy gives rows of real numbers")
        spec = (space.low, space.high)
    if not isinstance(spec, tuple) or len(spec) != 2:
        return None
    return np.asarray(spec[0], np.float64).ravel(), np.asarray(spec[1], np.float64).ravel()


def fitting_action(env: Any, action: Any) -> np.ndarray:
    """The action, converted to the shape and type of the environment's action space."""
    space: Any = getattr(env, "action_space", None)
    if not hasattr(space, "low"):
        return np.asarray(action, np.float64)
    return np.asarray(action, space.dtype).reshape(space.shape)


def takes_seed(env: Any) -> bool:
    """Whether `env.reset` has a parameter `seed`."""
    parameters = inspect.signature(env.reset).parameters.values()
    return any(each.name == "seed" or each.kind == each.VAR_KEYWORD for each in parameters)


def load_starts(options: Optional[Mapping[str, Any]]) -> Optional[np.ndarray]:
    """Stored start states, one per row; the episode of seed s starts from row s modulo their number."""
    if not options:
        return None
    try:
        stored = np.load(options["file"], allow_pickle=False)
        return np.asarray(stored[options["key"]] if "key" in options else stored)
    except (OSError, ValueError, KeyError) as error:
        raise EnvSetupError(
            f"start_states {options['file']}: {one_line(error)}; expected an array in .npy or .npz"
        ) from None


# -- nested values -------------------------------------------------------------------------------------------------------


def flatten(obs: Any, prefix: str = "") -> Iterator[tuple[str, np.ndarray]]:
    """(path, array) for each array: `agent/qpos` in nested dicts, `0`, `1` in tuples, `observation` for a single array."""
    if hasattr(obs, "items"):
        for key, value in obs.items():
            yield from flatten(value, f"{prefix}{key}/")
    elif isinstance(obs, (tuple, list)) and obs and not np.isscalar(obs[0]):
        for place, value in enumerate(obs):
            yield from flatten(value, f"{prefix}{place}/")
    else:
        yield prefix.rstrip("/") or FLAT, np.asarray(obs)


def at_path(values: Any, path: str) -> Any:
    """The value at `a/b` in nested dicts; None if missing."""
    for key in path.split("/"):
        if not hasattr(values, "get"):
            return None
        values = values.get(key)
    return values


def set_path(owner: Any, path: str, value: Any) -> None:
    """Set the attribute at `a.b`; `*` stands for every entry of a list, and a number for one entry."""
    *names, last = path.split(".")
    owners = [owner]
    for name in names:
        if name == "*":
            owners = [one for each in owners for one in each]
        else:
            owners = [each[int(name)] if name.isdigit() else getattr(each, name) for each in owners]
    for each in owners:
        if last.isdigit():
            each[int(last)] = value
        else:
            setattr(each, last, value)


def one_line(error: object) -> str:
    """The text of an error in one line."""
    return " ".join(str(error).split())


# -- as a program --------------------------------------------------------------------------------------------------------


def send(connection: Connection, message: Mapping[str, Any], arrays: Optional[Arrays] = None) -> None:
    """Send a JSON-ready message and arrays: a header with their names, types and shapes, then the bytes of each."""
    arrays = arrays or {}
    table = [[name, array.dtype.str, list(array.shape)] for name, array in arrays.items()]
    connection.send_bytes(json.dumps({"message": message, "arrays": table}).encode())
    for array in arrays.values():
        connection.send_bytes(np.ascontiguousarray(array).tobytes())


def receive(connection: Connection) -> tuple[dict[str, Any], Arrays]:
    """The inverse of `send`.

    Raises:
        EOFError: the other end closed the connection.
        OSError: the connection broke, or a part is larger than the limits.
        ValueError: the message was not sent by `send`, or an array's dtype is not allowed.
    """
    header = json.loads(connection.recv_bytes(MAX_HEADER_BYTES))
    arrays = {}
    for name, dtype, shape in header["arrays"]:
        if not SAFE_DTYPE.fullmatch(dtype):
            raise ValueError(f"array {name} has dtype {dtype}; expected booleans, integers or floats")
        arrays[name] = np.frombuffer(connection.recv_bytes(MAX_ARRAY_BYTES), dtype).reshape(shape)
    return header["message"], arrays


def main(file_number: int) -> None:
    """Answer requests on an inherited pipe until it closes."""
    os.dup2(2, 1)  # output that a simulator prints goes to the log
    connection = Connection(file_number)
    session: Any = None
    reply: tuple[dict[str, Any], Arrays]
    while True:
        try:
            request, arrays = receive(connection)
        except (EOFError, OSError):
            return
        try:
            if request["do"] == "open":
                session = session or Session(request["spec"])
            reply = session.answer(request, arrays.get("action"))
        except EnvSetupError as error:
            reply = ({"mistake": str(error)}, {})
        except Exception as error:
            traceback.print_exc()
            reply = {"error": f"{type(error).__name__}: {one_line(error)}"}, {}
        send(connection, *reply)


if __name__ == "__main__":
    main(int(sys.argv[1]))
