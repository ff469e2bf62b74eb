"""Demonstrations of scripted experts in environments of others, written as a robomimic file.

    python eval/maps/collect.py --env metaworld:push-v3 --env-map eval/maps/metaworld.yaml --episodes 20 --out push.hdf5

It runs in the simulator's own interpreter, which also needs h5py and pyyaml; of robopolicy only `rollout/env_runner.py`, which
imports nothing else of ours. The keys in the file are the policy's keys of the map, so that `robopolicy eval` with the same map
finds them again. An expert's action is written as the expert gives it, clipped as the map says (`action: {clip: space}`).
"""

import argparse
import json
import sys
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import h5py
import numpy as np
import yaml

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parent)]

from robopolicy.rollout.env_runner import EnvSetupError, Session, action_bounds  # noqa: E402  the path is set above

Obs = Mapping[str, np.ndarray]


class Simulator(Protocol):
    """One task of a simulator, with the names, units and rates in which its demos are written."""

    env_args: Mapping[str, Any]
    """What robomimic's files say of the environment."""
    max_episode_steps: int
    """Steps after which an episode has failed."""
    steps_after_success: int
    """Steps that a demo continues after the goal is reached, so that it also shows how to stay there."""

    def reset(self, seed: int) -> Obs:
        """The first observation of the episode that this seed determines, on any machine."""
        ...

    def step(self, action: np.ndarray) -> tuple[Obs, bool]:
        """The next observation, and whether the goal is reached in it."""
        ...

    def expert(self) -> np.ndarray:
        """The scripted demonstrator's action now, as it is executed and written."""
        ...


class MappedTask:
    """An environment and its map as a `Simulator`.

    Args:
        env: as for `robopolicy eval --env`.
        env_map: the YAML file; None: no map.
        kwargs: further arguments of the environment's maker.
        keys: observation keys to show, such as a demo file's; None: all.
    """

    steps_after_success = 10

    def __init__(
        self,
        env: str,
        env_map: str | Path | None,
        kwargs: Mapping[str, Any] | None = None,
        keys: Collection[str] | None = None,
    ) -> None:
        self._keys = keys
        self._map = yaml.safe_load(Path(env_map).read_text()) if env_map else {}
        make = dict(self._map.get("make") or {})
        make["kwargs"] = {**(make.get("kwargs") or {}), **(kwargs or {})}
        success = {**(self._map.get("success") or {}), "stop": False}
        folder = Path(env_map).resolve().parent if env_map else Path.cwd()
        spec = {**self._map, "env": env, "make": make, "success": success, "python_path": [str(folder)]}
        spec["render"] = any("render" in _names(source) for source in (self._map.get("observation") or {}).values())
        self._session = Session(spec)
        self._env, self._expert = env, None
        clip = (self._map.get("action") or {}).get("clip")
        self._bounds = action_bounds(self._session.env) if clip == "space" else clip
        self.max_episode_steps = self._session.max_episode_steps
        self.env_args = {"env_name": env, "type": 2, "env_kwargs": {}}

    def reset(self, seed: int) -> Obs:
        """See `Simulator`."""
        _, self._arrays = self._session.reset(seed)
        self._seed, self._begun = seed, False
        return self._seen()

    def step(self, action: np.ndarray) -> tuple[Obs, bool]:
        """See `Simulator`; the environment clips."""
        frame, self._arrays = self._session.step(np.asarray(action))
        return self._seen(), frame["success"]

    def expert(self) -> np.ndarray:
        """See `Simulator`."""
        self._expert = self._expert or make_expert(self._env, self._session.env)
        if not self._begun and hasattr(self._expert, "reset"):
            self._expert.reset(self._seed)
        self._begun = True
        action = np.asarray(self._expert(self._arrays))
        return action if self._bounds is None else action.clip(*self._bounds)

    def _seen(self) -> Obs:
        """The arrays under the policy's keys: those of the map, and the environment's own that no key of the map takes."""
        mapped = self._map.get("observation") or {}
        taken = {name for source in mapped.values() for name in _names(source)}
        sources = {path: path for path in self._arrays if path not in taken} | mapped
        shown = {key: source for key, source in sources.items() if self._keys is None or key in self._keys}
        return {
            key: _read(source, self._arrays)
            for key, source in shown.items()
            if {*_names(source)} <= self._arrays.keys()
        }


def _names(source: Any) -> list[str]:
    names = source["from"] if isinstance(source, dict) else source
    return [names] if isinstance(names, str) else list(names)


def _read(source: Any, arrays: Obs) -> np.ndarray:
    """One key of the map, as `robopolicy.rollout.env_map` reads it, images in their own size."""
    options = source if isinstance(source, dict) else {}
    parts = [arrays[name] for name in _names(source)]
    if parts[0].dtype == np.uint8:
        image = parts[0].transpose(1, 2, 0) if options.get("layout") == "chw" else parts[0]
        turned = {"vertical": image[::-1], "turn": image[::-1, ::-1]}
        return np.ascontiguousarray(turned.get(options.get("flip", "none"), image))
    row = np.concatenate([np.ravel(part) for part in parts])
    return row[slice(*options["columns"])] if "columns" in options else row


def make_expert(env: str, made: Any) -> Any:
    """The scripted expert of an environment: called with its arrays, it gives an action.

    Raises:
        EnvSetupError: there is none.
    """
    import experts

    module, _, name = env.partition(":")
    if module not in experts.EXPERTS:
        raise EnvSetupError(f"no scripted expert for {module}; there are some for {', '.join(experts.EXPERTS)}")
    return experts.EXPERTS[module](name, getattr(made, "unwrapped", made))


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", required=True, help="MODULE:ID, as for `robopolicy eval`")
    parser.add_argument("--env-map", type=Path, help="YAML file, as for `robopolicy eval`")
    parser.add_argument("--episodes", type=int, default=50, help="demos to keep")
    parser.add_argument("--seed", type=int, default=0, help="seed of the first episode; the others follow it")
    parser.add_argument(
        "--pause", type=int, default=0, help="steps that each demonstrator waits once, from step 10 to 39 on"
    )
    parser.add_argument("--out", type=Path, required=True, help="demo file to write")
    options = parser.parse_args()
    try:
        simulator = MappedTask(options.env, options.env_map)
    except EnvSetupError as error:
        parser.exit(2, f"{error}\n")
    print(collect(simulator, options.out, options.episodes, options.seed, options.pause))


def collect(simulator: Simulator, out: Path, episodes: int, seed: int, pause: int = 0) -> str:
    """Write `episodes` successful demos to a new robomimic file; seeds on which the expert fails are passed over."""
    tried, steps = 0, 0
    with h5py.File(out, "x") as file:
        data = file.create_group("data")
        data.attrs["env_args"] = json.dumps(simulator.env_args)
        for number, rows in enumerate(demonstrations(simulator, seed, episodes, pause)):
            demo = data.create_group(f"demo_{number}")
            demo.attrs["num_samples"] = len(rows["actions"])
            for name, values in rows.items():
                if name != "seed":
                    demo.create_dataset(name, data=values, compression="gzip" if values.dtype == np.uint8 else None)
            tried, steps = int(rows["seed"]) - seed + 1, steps + len(rows["actions"])
        data.attrs["total"] = steps
    return f"{episodes} demos, {steps} steps, from {tried} tries: {out}"


def demonstrations(simulator: Simulator, seed: int, count: int, pause: int = 0) -> Iterator[dict[str, np.ndarray]]:
    """`count` successful demos as named arrays, `seed` among them; those of the first seeds from `seed` on.

    Raises:
        RuntimeError: fewer than `count` of 10 x `count` episodes succeed.
    """
    found = 0
    for tried in range(10 * count):
        rows = demonstrate(simulator, seed + tried, pause)
        if rows is not None:
            yield rows
            found += 1
            if found == count:
                return
    raise RuntimeError(f"the expert reached the goal in {found} of {10 * count} episodes; expected {count} or more")


def demonstrate(simulator: Simulator, seed: int, pause: int = 0) -> dict[str, np.ndarray] | None:
    """One episode of the expert as named arrays; None if it fails. It waits `pause` steps, with the gripper as it is."""
    begin = np.random.default_rng(seed).integers(10, 40)
    obs, frames, actions = simulator.reset(seed), [], []
    reached = None
    for step in range(simulator.max_episode_steps):
        action = np.asarray(simulator.expert(), dtype=np.float64)
        if begin <= step < begin + pause:
            action = np.append(np.zeros(len(action) - 1), actions[begin - 1][-1])
        frames.append({key: np.array(value) for key, value in obs.items()})
        actions.append(action)
        obs, success = simulator.step(action)
        reached = step if success and reached is None else reached
        if reached is not None and step - reached >= simulator.steps_after_success:
            break
    if reached is None:
        return None
    stacked = {f"obs/{key}": np.stack([frame[key] for frame in frames]) for key in frames[0]}
    return {"actions": np.stack(actions), **stacked, "seed": np.array(seed)}


if __name__ == "__main__":
    main()
