"""Copies of a third-party environment as the worlds of a rollout: the same loop and statistics as for our own tasks."""

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from robopolicy.rollout.copies import Copy, CopyLostError, LocalCopy, ProcessCopy, Reply
from robopolicy.rollout.env_map import EnvMap, task_name
from robopolicy.rollout.env_map_parts import EnvMapError, read_source
from robopolicy.rollout.env_runner import RENDER, EnvSetupError, Session
from robopolicy.types import Policy

LOG = logging.getLogger(__name__)

OPEN_TIMEOUT_S = 300.0
"""Time limit for creating an environment [s], including any compiling and loading; one that takes longer counts as hung."""
LOCAL_COPIES = 8
"""Default number of copies in this process; the policy computes their actions as one batch."""


class EnvWorlds:
    """N copies of an environment that run episodes side by side; an `EpisodeWorlds`.

    If an environment crashes, hangs or returns values that are not finite, its episode has failed. The fault is reported, and
    the next episode starts in a new copy.

    Args:
        copies: the copies of the environment; see `open_worlds`.
        env_map: how the environment's names and units map to the policy's.
        policy: a `Policy`; its `spec` describes observations and actions.
        task: name for results.
        seed: seed of an episode that is started only to read the shapes of observations and actions.
        film: also return the image of the environment's `render()`, as observation key `render`.

    Raises:
        EnvSetupError: the environment can't be made.
        EnvMapError: its observation or action does not fit the policy.
    """

    def __init__(
        self,
        copies: Sequence[Copy],
        env_map: EnvMap,
        policy: Policy,
        task: str,
        seed: int,
        *,
        film: bool = False,
    ) -> None:
        self.num_envs, self.task = len(copies), task
        self.instructions_in_a_row = env_map.instructions_in_a_row
        self.reset_on_instruction = env_map.reset_on_instruction
        self._copies, self._map, self._expected = copies, env_map, dict(policy.spec.observation)
        self._step_timeout_s = env_map.step_timeout_s
        self._open = [False] * len(copies)
        self._running = np.zeros(len(copies), dtype=bool)
        self._faults: list[tuple[str, ...]] = [()] * len(copies)
        first, arrays = self._look(seed)
        renders = any(RENDER in source.names for source in env_map.observation.values())
        has = {path: given for path, given in first["observation"].items() if path != RENDER or renders}
        self._sources = env_map.sources(self._expected, has)
        shape = first["action"]["shape"]
        env_map.check_action(policy.spec.action.width, shape, first["action"]["space"])
        self._bounds = None if shape is None else (arrays["action/low"], arrays["action/high"])
        paths = [path for source in self._sources.values() for path in source.names]
        self._film = film and RENDER in first["observation"]
        self._reads = sorted({*paths, *([RENDER] if self._film else [])})
        self.max_episode_steps: int = first["max_episode_steps"]
        self.control_dt: float = env_map.control_dt or first["control_dt"] or 0.05
        self.episode_figures = (*first["figures"], "clipped_actions")
        self._obs = {
            key: np.zeros((len(copies), *spec.shape), np.uint8 if spec.is_image else np.float32)
            for key, spec in self._expected.items()
        }
        if self._film:
            shape, dtype = first["observation"][RENDER]
            self._obs[RENDER] = np.zeros((len(copies), *shape), dtype)
        self._info: dict[str, Any] = {key: np.zeros(len(copies)) for key in self.episode_figures}
        self._info |= {"success": np.zeros(len(copies), dtype=bool), "instruction": [""] * len(copies)}
        self._steps, self._clipped = np.zeros(len(copies), dtype=int), np.zeros(len(copies), dtype=int)

    def reset(
        self, *, seed: Sequence[int], options: Mapping[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Begin an episode for each seed, or only in the copies where `options["reset_mask"]` (N,) is True."""
        mask = np.ones(self.num_envs, dtype=bool) if options is None else np.asarray(options["reset_mask"])
        places = np.flatnonzero(mask).tolist()
        for place in places:
            do = "reset" if self._open[place] else "open"
            self._copies[place].post({"do": do, "seed": int(seed[place]), "reads": self._reads})
        for place in places:
            self._steps[place] = self._clipped[place] = 0
            self._running[place], self._faults[place] = True, ()
            try:
                reply = self._copies[place].collect(self._step_timeout_s if self._open[place] else OPEN_TIMEOUT_S)
                self._open[place] = True
                self._take(place, reply)
            except (CopyLostError, EnvSetupError) as error:
                self._lose(place, f"reset: {error}")
        return self._now()

    def step(
        self, actions: np.ndarray
    ) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """One control step of the copies whose episode is running; `actions` (N, width) have the demos' units and columns."""
        mapped, clipped = self._map.action(actions, self._bounds)
        reward, terminated = np.zeros(self.num_envs, np.float32), np.zeros(self.num_envs, dtype=bool)
        truncated = np.zeros(self.num_envs, dtype=bool)
        active = [int(place) for place in np.flatnonzero(self._running) if not self._faults[place]]
        for place in active:
            self._copies[place].post({"do": "step"}, mapped[place])
        for place in active:
            self._steps[place] += 1
            self._clipped[place] += bool(clipped[place])
            try:
                frame = self._take(place, self._copies[place].collect(self._step_timeout_s))
            except CopyLostError as error:
                self._lose(place, str(error))
                continue
            reward[place], truncated[place] = frame["reward"], frame["truncated"]
            terminated[place] = frame["terminated"]
        terminated |= np.array([bool(faults) for faults in self._faults]) & self._running
        self._running &= ~(terminated | truncated)
        obs, info = self._now()
        return obs, reward, terminated, truncated, info

    def states(self) -> None:
        """None: third-party environments do not provide their state."""

    def faults(self, info: Mapping[str, Any], world: int) -> tuple[str, ...]:
        """Faults in the current episode of `world`."""
        return self._faults[world]

    def close(self) -> None:
        """Close all copies."""
        for copy in self._copies:
            copy.close()

    def _look(self, seed: int) -> Reply:
        """The first copy's description, from an episode that is started and then discarded."""
        self._copies[0].post({"do": "open", "seed": seed})
        try:
            reply = self._copies[0].collect(OPEN_TIMEOUT_S)
        except CopyLostError as error:
            raise EnvSetupError(f"{self.task} can't be started: {error}") from error
        self._open[0] = True
        return reply

    def _take(self, place: int, reply: Reply) -> dict[str, Any]:
        """Write a reply into the arrays of all worlds; returns its frame."""
        frame, arrays = reply
        for key, source in self._sources.items():
            row = read_source(source, arrays, self._expected[key])
            if row.dtype != np.uint8 and not np.isfinite(row).all():
                raise CopyLostError(f"observation '{key}' is not finite")
            self._obs[key][place] = row
        if self._film:
            self._obs[RENDER][place] = arrays[RENDER]
        self._info["success"][place] = frame["success"]
        self._info["instruction"][place] = frame["instruction"] or ""
        for name, value in frame["figures"].items():
            self._info[name][place] = value
        self._info["clipped_actions"][place] = self._clipped[place] / max(self._steps[place], 1)
        return frame

    def _lose(self, place: int, reason: str) -> None:
        """Fail the episode of a copy and close the copy."""
        LOG.warning("an episode fails: %s", reason)
        self._faults[place] = (reason,)
        self._info["success"][place] = False
        self._open[place] = False
        self._copies[place].close()

    def _now(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Copies of the current observations and infos of all worlds."""
        info = {key: list(value) if isinstance(value, list) else value.copy() for key, value in self._info.items()}
        return {key: value.copy() for key, value in self._obs.items()}, info


def open_worlds(
    env: str | Callable[[], Any],
    policy: Policy,
    seeds: Sequence[int],
    *,
    env_map: EnvMap | None = None,
    python: str | Path | None = None,
    num_envs: int | None = None,
    film: bool = False,
) -> EnvWorlds:
    """Copies of an environment for a policy.

    Args:
        env: `MODULE:ID`, `ID` or `MODULE:FACTORY`, or a callable that makes an environment.
        policy: a `Policy`; its `spec` describes observations and actions.
        seeds: seeds of the episodes; there are never more copies than seeds.
        env_map: how names and units map to the policy's.
        python: interpreter of the copies' processes; None: in this process.
        num_envs: number of copies; None: one per CPU core in processes of their own, or 8 in this process.
        film: also return the image of the environment's `render()`, if the policy reads no camera.
    """
    env_map = env_map or EnvMap()
    cameras = any(spec.is_image for spec in policy.spec.observation.values())
    spec = env_map.runner_spec(env if isinstance(env, str) else "", render=film and not cameras)
    default = LOCAL_COPIES if python is None else os.cpu_count() or 2
    count = min(num_envs or default, len(seeds))
    if python is None:
        made = (lambda: Session(spec)) if isinstance(env, str) else (lambda: Session(spec, env()))
        copies: list[Copy] = [LocalCopy(made) for _ in range(count)]
    else:
        copies = [ProcessCopy(python, spec) for _ in range(count)]
    name = task_name(env) if isinstance(env, str) else getattr(env, "__name__", type(env).__name__)
    try:
        return EnvWorlds(copies, env_map, policy, name, seeds[0], film=film and not cameras)
    except (EnvSetupError, EnvMapError):
        for copy in copies:
            copy.close()
        raise
