"""What the runners of third-party simulators share: scripted demos into a robomimic file, and rollouts against a policy server.

It runs in the simulator's own environment, which needs numpy, h5py, msgpack and websockets beside the simulator; of robopolicy
only `robopolicy.client`, which imports nothing else of ours.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import h5py
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))

from robopolicy.client import ACTIONS_PER_CALL_KEY, PolicyClient

Obs = Mapping[str, np.ndarray]


class Simulator(Protocol):
    """One task of a simulator, with the names, units and rates in which its demos are written."""

    env_args: Mapping[str, Any]
    """What robomimic's files say of the environment."""
    max_episode_steps: int
    """Steps after which a try has failed."""
    steps_after_success: int
    """Steps that a demo goes on after the task's goal is reached, so that it also shows how to stay there."""

    def reset(self, seed: int) -> Obs:
        """The first observation of the episode that this seed names, on any machine."""
        ...

    def step(self, action: np.ndarray) -> tuple[Obs, bool]:
        """The next observation, and whether the goal is reached in it."""
        ...

    def expert(self) -> np.ndarray:
        """What the scripted demonstrator does now, as it says it: possibly beyond the simulator's bounds."""
        ...


def main(make: Callable[[argparse.Namespace], Simulator], description: str | None) -> None:
    """The command line of one simulator: `collect` and `rollout`."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("verb", choices=("collect", "rollout"), help="write scripted demos, or try a served policy")
    parser.add_argument("--task", required=True, help="the simulator's name of the task, or a demo file that says it")
    parser.add_argument("--episodes", type=int, default=50, help="demos to keep, or episodes to try")
    parser.add_argument("--seed", type=int, default=0, help="seed of the first episode; later ones count on")
    parser.add_argument("--out", type=Path, help="collect: the demo file to write")
    parser.add_argument("--port", type=int, default=8000, help="rollout: the policy server's port")
    parser.add_argument("--replan-every", type=int, default=1, help="rollout: actions executed of each chunk")
    parser.add_argument("--json", type=Path, help="rollout: write the result here")
    options = parser.parse_args()
    simulator = make(options)
    if options.verb == "collect":
        if options.out is None:
            parser.error("collect needs --out FILE")
        print(collect(simulator, options.out, options.episodes, options.seed))
        return
    with PolicyClient(port=options.port) as client:
        outcome = rollout(simulator, client, range(options.seed, options.seed + options.episodes), options.replan_every)
    print(f"success   {outcome['successes']} / {outcome['episodes']}")
    if options.json is not None:
        options.json.write_text(json.dumps({"task": options.task, **outcome}, indent=1) + "\n")


def collect(simulator: Simulator, out: Path, episodes: int, seed: int) -> str:
    """Write `episodes` successful scripted demos to a new robomimic file; seeds on which the expert fails are passed over."""
    tried, steps = 0, 0
    with h5py.File(out, "x") as file:
        data = file.create_group("data")
        data.attrs["env_args"] = json.dumps(simulator.env_args)
        for number, rows in enumerate(demonstrations(simulator, seed, episodes)):
            demo = data.create_group(f"demo_{number}")
            demo.attrs["num_samples"] = len(rows["actions"])
            for name, values in rows.items():
                demo.create_dataset(name, data=values, compression="gzip" if values.dtype == np.uint8 else None)
            tried, steps = int(rows["seed"]) - seed + 1, steps + len(rows["actions"])
            del demo["seed"]
        data.attrs["total"] = steps
    return f"{episodes} demos, {steps} steps, from {tried} tries: {out}"


def demonstrations(simulator: Simulator, seed: int, count: int) -> Iterator[dict[str, np.ndarray]]:
    """The next `count` successful demos as named arrays, `seed` among them; those of the first seeds from `seed` on.

    Raises:
        RuntimeError: the expert fails ten times as often as it succeeds.
    """
    found = 0
    for tried in range(10 * count):
        rows = demonstrate(simulator, seed + tried)
        if rows is not None:
            yield rows
            found += 1
            if found == count:
                return
    raise RuntimeError(f"the expert reached the goal in {found} of {10 * count} episodes; expected {count} or more")


def demonstrate(simulator: Simulator, seed: int) -> dict[str, np.ndarray] | None:
    """One episode of the expert as named arrays; None where it fails."""
    obs, frames, actions = simulator.reset(seed), [], []
    reached = None
    for step in range(simulator.max_episode_steps):
        action = np.asarray(simulator.expert(), dtype=np.float64)
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


def rollout(simulator: Simulator, client: PolicyClient, seeds: range, replan_every: int) -> dict[str, Any]:
    """Success of a served policy on each seed; the first `replan_every` actions of each chunk are executed.

    The server's policy remembers the frames that it is shown: with `replan_every` above 1 these are every such frame.
    """
    succeeded, lengths = [], []
    for seed in seeds:
        client.reset()
        success, steps = attempt(simulator, client, seed, replan_every)
        succeeded.append(success)
        lengths.append(steps)
        print(f"seed {seed}  {'reached' if success else 'failed'} after {steps} steps", flush=True)
    return {
        "episodes": len(succeeded),
        "successes": sum(succeeded),
        "success_rate": sum(succeeded) / max(len(succeeded), 1),
        "seeds": [seeds.start, seeds.stop],
        "replan_every": replan_every,
        "steps": lengths,
    }


def attempt(simulator: Simulator, client: PolicyClient, seed: int, replan_every: int) -> tuple[bool, int]:
    """One episode: whether the goal was reached, and after how many steps."""
    obs, steps = simulator.reset(seed), 0
    while steps < simulator.max_episode_steps:
        actions = client.infer({**obs, ACTIONS_PER_CALL_KEY: replan_every})["actions"]
        for action in actions[:replan_every]:
            obs, success = simulator.step(action)
            steps += 1
            if success:
                return True, steps
    return False, steps
