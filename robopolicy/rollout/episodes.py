"""Closed-loop episodes, many worlds at once: the one loop behind collect, eval and learning in closed loop.

Every seed runs to the end of its own episode. A world that finishes takes the next seed at once. Nothing stops at the
first n finished episodes, which would favour short ones.
"""

import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, Protocol, runtime_checkable

import numpy as np

from robopolicy.types import Demo


@runtime_checkable
class Actor(Protocol):
    """Decides the actions of all worlds at every control step."""

    def reset(self, done: np.ndarray, seeds: Sequence[int]) -> None:
        """Clear the memory of the worlds where `done` (N,) is True: an episode of `seeds` (N,) begins there."""
        ...

    def act(self, obs: Mapping[str, np.ndarray], instructions: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """The label and the action to execute, each (N, width); equal where no noise is added."""
        ...


@runtime_checkable
class EpisodeWorlds(Protocol):
    """N worlds with autoreset disabled: our simulator's, or copies of a third-party environment."""

    num_envs: int

    @property
    def control_dt(self) -> float:
        """Time of one control step [s]."""
        ...

    @property
    def episode_figures(self) -> Sequence[str]:
        """Keys of `info`, each (N,), whose values at an episode's end are reported."""
        ...

    def reset(
        self, *, seed: Sequence[int], options: Mapping[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Begin the episodes of `seed` (N,) in all worlds, or where `options["reset_mask"]` (N,) is True.

        `info` holds `instruction` and `success`, one entry per world.
        """
        ...

    def step(
        self, actions: np.ndarray
    ) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """As `gymnasium.vector.VectorEnv.step`; a world that ended is left as it is."""
        ...

    def states(self) -> np.ndarray | None:
        """Full simulator states (N, n) before the next action; None if the environment gives none."""
        ...

    def faults(self, world: int) -> tuple[str, ...]:
        """Why the present episode of `world` can't be trusted; empty for a sound one."""
        ...


@dataclass(frozen=True)
class Episode:
    """One finished episode."""

    seed: int
    instruction: str
    success: bool
    steps: int
    info: Mapping[str, int | float] = field(default_factory=dict)
    """Figures at the episode's end, such as `solved` for a chain."""
    demos: tuple[Demo, ...] = ()
    """The recorded episode, if the rollout records: one demo for each instruction in turn."""
    faults: tuple[str, ...] = ()
    """What broke in the simulation; an episode with any fault has failed, whatever the policy did."""


@dataclass
class Timing:
    """Wall time spent in the two halves of a rollout [s], and the steps made."""

    inference_s: float = 0.0
    physics_s: float = 0.0
    env_steps: int = 0

    @classmethod
    def together(cls, parts: Sequence["Timing"]) -> "Timing":
        """Of processes that ran side by side: the longest times, and the steps of all."""
        return cls(
            max(part.inference_s for part in parts),
            max(part.physics_s for part in parts),
            sum(part.env_steps for part in parts),
        )


def run_episodes(
    env: EpisodeWorlds,
    actor: Actor,
    seeds: Sequence[int],
    *,
    record: bool = False,
    timing: Timing | None = None,
) -> Iterator[Episode]:
    """Run one episode per seed, `env.num_envs` at a time, and yield each as it ends.

    Args:
        env: Worlds with autoreset disabled; no more of them than seeds.
        actor: Decides the actions.
        seeds: One episode each; an episode depends on its seed alone.
        record: Keep each episode's observations, states and actions as a `Demo`.
        timing: Where to add up the time of inference and physics.
    """
    timing = timing if timing is not None else Timing()
    waiting = deque(int(seed) for seed in seeds)
    worlds = env.num_envs
    if worlds > len(waiting):
        raise ValueError(f"{worlds} worlds for {len(waiting)} episodes; make no more worlds than there are seeds")
    current = np.array([waiting.popleft() for _ in range(worlds)])
    obs, info = env.reset(seed=current.tolist())
    actor.reset(np.ones(worlds, dtype=bool), current.tolist())
    recorders = [Record() for _ in range(worlds)]
    running = np.ones(worlds, dtype=bool)
    steps = np.zeros(worlds, dtype=int)
    while running.any():
        instructions = list(info["instruction"])
        states = env.states() if record else None
        began = time.perf_counter()
        label, action = actor.act(obs, instructions)
        acted = time.perf_counter()
        next_obs, reward, terminated, truncated, next_info = env.step(action)
        timing.physics_s += time.perf_counter() - acted
        timing.inference_s += acted - began
        timing.env_steps += int(running.sum())
        steps += running
        ended = (terminated | truncated) & running
        if record:
            for world in np.flatnonzero(running):
                recorders[world].add(obs, states, label, action, reward, ended, instructions, int(world))
        for world in np.flatnonzero(ended):
            seed, instruction = int(current[world]), instructions[world]
            success = bool(next_info["success"][world])
            demos = recorders[world].to_demos(seed) if record else ()
            figures = {key: float(next_info[key][world]) for key in env.episode_figures}
            faults = env.faults(int(world))
            yield Episode(seed, instruction, success and not faults, int(steps[world]), figures, demos, faults)
        obs, info = next_obs, next_info
        refill = _refill(ended, current, waiting, running)
        if refill.any():
            obs, info = env.reset(seed=current.tolist(), options={"reset_mask": refill})
            actor.reset(refill, current.tolist())
            steps[refill] = 0
            for world in np.flatnonzero(refill):
                recorders[world] = Record()


def _refill(ended: np.ndarray, current: np.ndarray, waiting: deque[int], running: np.ndarray) -> np.ndarray:
    """Give each ended world the next waiting seed, or stop it if no seed waits; True where a new episode begins."""
    refill = np.zeros_like(ended)
    for world in np.flatnonzero(ended):
        if waiting:
            current[world] = waiting.popleft()
            refill[world] = True
        else:
            running[world] = False
    return refill


class Record:
    """The steps of one world since its episode began."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self.instructions: list[str] = []

    def add(
        self,
        obs: Mapping[str, np.ndarray],
        states: np.ndarray | None,
        label: np.ndarray,
        action: np.ndarray,
        reward: np.ndarray,
        ended: np.ndarray,
        instructions: Sequence[str],
        world: int,
    ) -> None:
        """One step of one of many worlds."""
        row: dict[str, Any] = {f"obs/{key}": np.array(value[world]) for key, value in obs.items()}
        row |= {} if states is None else {"states": np.array(states[world])}
        row |= {"actions": np.array(label[world])}
        row |= {"executed_actions": np.array(action[world]), "rewards": np.float32(reward[world])}
        row |= {"dones": np.bool_(ended[world])}
        self.add_row(row, instructions[world])

    def add_row(self, row: dict[str, Any], instruction: str) -> None:
        """One step, by the names of a demo's arrays, those of observations after `obs/`."""
        self.rows.append(row)
        self.instructions.append(instruction)

    def to_demos(self, seed: int) -> tuple[Demo, ...]:
        """One demo for each instruction in turn."""
        spans = [list(span) for _, span in groupby(range(len(self.rows)), key=lambda row: self.instructions[row])]
        return tuple(self._demo(span[0], span[-1] + 1, seed) for span in spans)

    def _demo(self, start: int, stop: int, seed: int) -> Demo:
        rows = self.rows[start:stop]
        arrays: dict[str, Any] = {key: np.stack([row[key] for row in rows]) for key in rows[0]}
        obs = {key.removeprefix("obs/"): arrays.pop(key) for key in list(arrays) if key.startswith("obs/")}
        return Demo(name="demo_0", obs=obs, instruction=self.instructions[start], seed=seed, **arrays)
