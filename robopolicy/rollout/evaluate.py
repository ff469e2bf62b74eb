"""A policy's success rate in any gymnasium environment."""

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from robopolicy.control.execution import ExecutionOptions
from robopolicy.rollout.actor import PolicyActor
from robopolicy.rollout.env_map import EnvMap
from robopolicy.rollout.env_map_parts import EnvMapError
from robopolicy.rollout.env_worlds import EnvWorlds, open_worlds
from robopolicy.rollout.episodes import Episode, Timing, run_episodes
from robopolicy.rollout.statistics import Evaluation, summarize
from robopolicy.types import Policy


def evaluate(
    policy: Policy,
    env_factory: str | Callable[[], Any],
    seeds: Sequence[int],
    *,
    env_map: EnvMap | Mapping[str, Any] | str | Path | None = None,
    env_python: str | Path | None = None,
    num_envs: int | None = None,
    execution: ExecutionOptions | None = None,
) -> Evaluation:
    """Run `policy` once per seed in copies of an environment and count successes.

    Every episode runs to its end. An episode whose simulator crashes, hangs or returns values that are not finite counts as
    failed, and is listed in `Evaluation.faults`.

    Args:
        policy: what `robopolicy.load_policy` returns, or an exported policy.
        env_factory: function that makes one environment; or `MODULE:ID`, `ID`, `MODULE:FACTORY` as for `eval --env`.
        seeds: one episode each; passed to the environment's `reset`.
        env_map: how the environment's names, units and signals map to the policy's: an `EnvMap`, a dictionary or a YAML file.
        env_python: interpreter with the simulator; each copy then runs in its own process, and `env_factory` must be a string.
        num_envs: number of copies; default: 8 in this process, or one per CPU core in processes of their own.
        execution: how chunks become actions; default: the options stored with the policy.

    Raises:
        EnvSetupError: the environment can't be made.
        EnvMapError: the map is wrong, or the environment's observation or action does not fit the policy.
    """
    if not seeds:
        raise ValueError("no seeds; give one per episode, such as range(10000, 10050)")
    if env_python is not None and not isinstance(env_factory, str):
        raise ValueError(
            "env_python needs the environment as text, such as 'MODULE:ID'; a callable stays in this process"
        )
    env_map = EnvMap.read(env_map)
    check_instruction(policy, env_map)
    worlds = open_worlds(env_factory, policy, seeds, env_map=env_map, python=env_python, num_envs=num_envs)
    try:
        return evaluate_in_worlds(policy, worlds, seeds, execution)
    finally:
        worlds.close()


def evaluate_in_worlds(
    policy: Policy,
    worlds: EnvWorlds,
    seeds: Sequence[int],
    execution: ExecutionOptions | None = None,
    *,
    provenance: Mapping[str, Any] | None = None,
    record: bool = False,
    sink: list[Episode] | None = None,
) -> Evaluation:
    """As `evaluate`, in worlds that are already open.

    Args:
        policy: as for `evaluate`.
        worlds: no more copies than seeds.
        seeds: one episode each.
        execution: as for `evaluate`.
        provenance: kept in the result.
        record: keep a demo of every episode, for videos.
        sink: list to which the episodes are appended as they end.
    """
    timing, episodes = Timing(), [] if sink is None else sink
    reset_on_instruction = worlds.reset_on_instruction
    actor = PolicyActor(
        policy, worlds.num_envs, worlds.control_dt, execution, reset_on_instruction=reset_on_instruction
    )
    began = time.perf_counter()
    episodes += run_episodes(worlds, actor, seeds, record=record, timing=timing)
    wall_s, in_a_row = time.perf_counter() - began, worlds.instructions_in_a_row
    return summarize(worlds.task, episodes, worlds.control_dt, timing, wall_s, provenance or {}, in_a_row)


def check_instruction(policy: Policy, env_map: EnvMap) -> None:
    """Refuse a policy that reads an instruction if the environment's map gives none.

    Raises:
        EnvMapError: the map names no instruction; the message suggests an entry for it.
    """
    if policy.spec.instruction and env_map.instruction is None:
        raise EnvMapError(
            "the policy reads an instruction, and the environment gives none; the --env-map could say instruction: TEXT, or "
            "name its source: instruction: {info: KEY}, {method: NAME}, {attribute: NAME} or {observation: KEY}"
        )
