"""Closed-loop episodes in many worlds at once: the loop that `collect`, `eval`, `dagger` and `improve` share.

Every seed's episode runs to its end; a world whose episode has ended begins the next seed's episode at once. A rollout does
not stop after the first n finished episodes, since short episodes would be over-represented among them.
"""

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, Protocol, runtime_checkable

import numpy as np

from robopolicy.types import Demo


@runtime_checkable
class Actor(Protocol):
    """Decides the actions of all worlds at every control step."""

    def reset(self, done: np.ndarray, seeds: Sequence[int]) -> None:
        """Clear the memory of the worlds where `done` (N,) is True: new episodes begin there, with seeds from `seeds` (N,)."""
        ...

    def act(self, obs: Mapping[str, np.ndarray], instructions: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """The label and the action to execute, each (N, width); equal where no noise is added."""
        ...


@runtime_checkable
class EpisodeWorlds(Protocol):
    """N worlds with autoreset disabled: the simulator's, or copies of a third-party environment."""

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
        """As `gymnasium.vector.VectorEnv.step`; between the end of an episode and the reset, a world's rows are meaningless."""
        ...

    def states(self) -> np.ndarray | None:
        """Full simulator states (N, n) before the next action; None if the environment does not provide them."""
        ...

    def faults(self, info: Mapping[str, Any], world: int) -> tuple[str, ...]:
        """Faults of the simulator in the current episode of `world`, given the `info` of its last step; empty if none."""
        ...


@dataclass(frozen=True)
class Episode:
    """One finished episode."""

    seed: int
    instruction: str
    success: bool
    steps: int
    info: Mapping[str, int | float] = field(default_factory=dict)
    """Metrics at the end of the episode, such as `solved` for a chain of instructions."""
    demos: tuple[Demo, ...] = ()
    """The recorded episode, one demo for each instruction in order; empty if the rollout does not record."""
    faults: tuple[str, ...] = ()
    """Faults of the simulator; an episode with a fault has failed."""


@dataclass
class Timing:
    """Wall time of inference and physics in a rollout [s], and its number of steps."""

    inference_s: float = 0.0
    physics_s: float = 0.0
    env_steps: int = 0

    @classmethod
    def together(cls, parts: Sequence["Timing"]) -> "Timing":
        """The timing of processes that ran in parallel: the longest of their times, and the sum of their steps."""
        return cls(
            max(part.inference_s for part in parts),
            max(part.physics_s for part in parts),
            sum(part.env_steps for part in parts),
        )


@dataclass(frozen=True)
class Step:
    """One control step of all N worlds of a rollout."""

    obs: Mapping[str, np.ndarray]
    """Observations that the actor received, per key (N, ...)."""
    states: np.ndarray | None
    """Full simulator states (N, n) before the action, if requested."""
    instructions: Sequence[str]
    """(N,) instructions."""
    label: np.ndarray
    """(N, width) the actor's label: the expert's action without noise, which demos record."""
    action: np.ndarray
    """(N, width) the executed action."""
    reward: np.ndarray
    """(N,) rewards."""
    terminated: np.ndarray
    """(N,) True where the episode terminated."""
    truncated: np.ndarray
    """(N,) True where the time limit cut the episode off, and it did not also terminate."""
    running: np.ndarray
    """(N,) False where no seed was left for the world: its rows are meaningless."""
    next_obs: Mapping[str, np.ndarray]
    """The observation after the action; for an episode that ended, its last one."""
    info: Mapping[str, Any]
    """As returned by `step`, after the action."""
    seeds: np.ndarray
    """(N,) the seed of each world's episode."""
    steps: np.ndarray
    """(N,) steps of each world's episode, this one included."""

    @property
    def ended(self) -> np.ndarray:
        """(N,) True where the episode ended with this step."""
        return self.terminated | self.truncated


def run_steps(
    env: EpisodeWorlds,
    actor: Actor,
    seeds: Iterable[int],
    *,
    states: bool = False,
    timing: Timing | None = None,
) -> Iterator[Step]:
    """Every control step of all worlds, until no seed is left. This is the only closed loop on the host.

    A world whose episode ended begins the next one when the following step is requested, so that the caller can still
    inspect the ended episode in `env`.

    Args:
        env: worlds with autoreset disabled.
        actor: decides the actions.
        seeds: one per episode, at least as many as worlds; may be infinite.
        states: also record the simulator's states.
        timing: adds up the time of inference and physics.
    """
    timing = timing if timing is not None else Timing()
    waiting, worlds = iter(seeds), env.num_envs
    current = np.array([int(next(waiting)) for _ in range(worlds)])
    obs, info = env.reset(seed=current.tolist())
    actor.reset(np.ones(worlds, dtype=bool), current.tolist())
    running, steps = np.ones(worlds, dtype=bool), np.zeros(worlds, dtype=int)
    while running.any():
        instructions = list(info["instruction"])
        before = env.states() if states else None
        began = time.perf_counter()
        label, action = actor.act(obs, instructions)
        acted = time.perf_counter()
        next_obs, reward, terminated, truncated, info = env.step(action)
        timing.physics_s += time.perf_counter() - acted
        timing.inference_s += acted - began
        timing.env_steps += int(running.sum())
        steps += running
        terminated, truncated = terminated & running, truncated & running & ~terminated
        yield Step(
            obs,
            before,
            instructions,
            label,
            action,
            reward,
            terminated,
            truncated,
            running.copy(),
            next_obs,
            info,
            current.copy(),
            steps.copy(),
        )
        obs = next_obs
        refill = _refill(terminated | truncated, current, waiting, running)
        if refill.any():
            obs, info = env.reset(seed=current.tolist(), options={"reset_mask": refill})
            actor.reset(refill, current.tolist())
            steps[refill] = 0


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
        env: worlds with autoreset disabled; no more of them than seeds.
        actor: decides the actions.
        seeds: one episode each; an episode depends on its seed alone.
        record: keep each episode's observations, states and actions as a `Demo`.
        timing: adds up the time of inference and physics.
    """
    return episodes_of(env, run_steps(env, actor, seeds, states=record, timing=timing), len(seeds), record)


def episodes_of(env: EpisodeWorlds, steps: Iterable[Step], count: int, record: bool = False) -> Iterator[Episode]:
    """The episodes that end in a rollout's steps, with their demos if `record`; `count` is the number of seeds."""
    if env.num_envs > count:
        raise ValueError(f"{env.num_envs} worlds for {count} episodes; make no more worlds than there are seeds")
    records = [Record() for _ in range(env.num_envs)]
    for step in steps:
        if record:
            for world in np.flatnonzero(step.running):
                records[world].add(step, int(world))
        for world in map(int, np.flatnonzero(step.ended)):
            demos = records[world].to_demos(int(step.seeds[world]))
            records[world] = Record()
            yield finished_episode(env, step, world, demos)


def finished_episode(env: EpisodeWorlds, step: Step, world: int, demos: tuple[Demo, ...] = ()) -> Episode:
    """The episode that ended in `world` with this step."""
    faults = env.faults(step.info, world)
    return Episode(
        seed=int(step.seeds[world]),
        instruction=step.instructions[world],
        success=bool(step.info["success"][world]) and not faults,
        steps=int(step.steps[world]),
        info={key: float(step.info[key][world]) for key in env.episode_figures},
        demos=demos,
        faults=faults,
    )


def _refill(ended: np.ndarray, current: np.ndarray, waiting: Iterator[int], running: np.ndarray) -> np.ndarray:
    """Assign the next seed to each ended world, or stop it if none is left; returns True where a new episode begins."""
    refill = np.zeros_like(ended)
    for world in np.flatnonzero(ended):
        seed = next(waiting, None)
        if seed is None:
            running[world] = False
        else:
            current[world], refill[world] = int(seed), True
    return refill


class Record:
    """The steps of one world since its episode began."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self.instructions: list[str] = []

    def add(self, step: Step, world: int) -> None:
        """Append one world's part of a step."""
        row: dict[str, Any] = {f"obs/{key}": np.array(value[world]) for key, value in step.obs.items()}
        row |= {} if step.states is None else {"states": np.array(step.states[world])}
        row |= {"actions": np.array(step.label[world]), "executed_actions": np.array(step.action[world])}
        row |= {"rewards": np.float32(step.reward[world]), "dones": np.bool_(step.ended[world])}
        self.rows.append(row)
        self.instructions.append(step.instructions[world])

    def to_demos(self, seed: int) -> tuple[Demo, ...]:
        """One demo for each run of consecutive steps with the same instruction, in order."""
        spans = [list(span) for _, span in groupby(range(len(self.rows)), key=lambda row: self.instructions[row])]
        return tuple(self._demo(span[0], span[-1] + 1, seed) for span in spans)

    def _demo(self, start: int, stop: int, seed: int) -> Demo:
        rows = self.rows[start:stop]
        arrays: dict[str, Any] = {key: np.stack([row[key] for row in rows]) for key in rows[0]}
        obs = {key.removeprefix("obs/"): arrays.pop(key) for key in list(arrays) if key.startswith("obs/")}
        return Demo(name="demo_0", obs=obs, instruction=self.instructions[start], seed=seed, **arrays)
