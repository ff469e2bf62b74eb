"""Online imitation (DAgger, Ross et al. 2011): roll out the policy, let an expert relabel, aggregate, train again.

A policy trained on an expert's demonstrations is led astray by its own small mistakes, into states that no
demonstration shows. Here it visits those states itself, and the expert says what it would have done there.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path

import numpy as np

from robopolicy.control.execution import ExecutionConfig
from robopolicy.demos.formats import open_demos
from robopolicy.demos.hdf5 import DemoWriter
from robopolicy.experiment import ConfigError, ExperimentConfig, load_policy
from robopolicy.model.policy import ChunkPolicy
from robopolicy.rollout.actor import PolicyActor
from robopolicy.rollout.episodes import Actor, Episode, run_episodes
from robopolicy.sim.env import RobotVectorEnv
from robopolicy.training.train import train
from robopolicy.types import Demo

LOG = logging.getLogger(__name__)

MIXING_STREAM = 2
"""Second word of the mixing generator's seed; keeps it apart from the scene's and the demonstrations' noise."""


class RelabelingActor:
    """The student acts; the label is what the expert would have done in the same state.

    Args:
        student: acts, such as a `PolicyActor`.
        expert: gives the expert's actions (N, 7) for the present state of all worlds.
        expert_share: share of the steps in which the expert's action is executed, drawn from the episode's seed.
    """

    def __init__(self, student: Actor, expert: Callable[[], np.ndarray], expert_share: float = 0.0) -> None:
        if not 0 <= expert_share <= 1:
            raise ValueError(f"expert_share is {expert_share}; expected a share of the steps, 0 .. 1")
        self.student, self.expert, self.expert_share = student, expert, expert_share
        self._rngs: list[np.random.Generator] = []

    def reset(self, done: np.ndarray, seeds: Sequence[int]) -> None:
        """An episode of `seeds` begins in the worlds where `done`."""
        self.student.reset(done, seeds)
        fresh = [np.random.default_rng([seed, MIXING_STREAM]) for seed in seeds]
        kept = self._rngs or fresh
        self._rngs = [new if begins else old for begins, new, old in zip(done, fresh, kept, strict=True)]

    def act(self, obs: Mapping[str, np.ndarray], instructions: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """The expert's action as label, and the action to execute."""
        label = self.expert()
        _, action = self.student.act(obs, instructions)
        by_expert = np.array([rng.random() < self.expert_share for rng in self._rngs])
        return label, np.where(by_expert[:, None], label, action)


def relabeled_episodes(
    policy: ChunkPolicy,
    env: RobotVectorEnv,
    seeds: Sequence[int],
    expert: Callable[[RobotVectorEnv], np.ndarray],
    execution: ExecutionConfig | None = None,
    expert_share: float = 0.0,
) -> Iterator[Episode]:
    """One recorded episode of the policy per seed, as they end; its demo holds the expert's labels.

    Args:
        policy: acts, through the executor that also runs on a robot.
        env: worlds; no more of them than seeds.
        seeds: one episode each.
        expert: gives the expert's actions (N, 7) in the worlds' present state.
        execution: which action of which chunk is executed when.
        expert_share: share of the steps in which the expert's action is executed.
    """
    student = PolicyActor(policy, env.num_envs, env.control_dt, execution or ExecutionConfig())
    return run_episodes(env, RelabelingActor(student, lambda: expert(env), expert_share), seeds, record=True)


def dagger(
    config: ExperimentConfig,
    run_dir: str | Path,
    rounds: int,
    roll_out: Callable[[ChunkPolicy, int], Iterable[Demo]],
    evaluate: Callable[[ChunkPolicy], float] | None = None,
    round_steps: int | None = None,
) -> Path:
    """Train on `config.data.files`, then `rounds` times on all demos and the relabeled ones so far.

    `run_dir` gets a run folder `round_<i>` per round, 0 being the first training, and a demo file `round_<i>.hdf5` per
    later one. A round goes on from the weights of the one before. A call that was interrupted goes on where it stood.

    Args:
        config: the experiment.
        run_dir: holds the rounds.
        rounds: how often to roll out and train again.
        roll_out: (policy, round from 1 on) -> demos whose `actions` are the expert's labels.
        evaluate: as for `train`.
        round_steps: optimizer steps of rounds 1 and on; default as in the first.

    Returns:
        The last round's folder.

    Raises:
        ConfigError: `rounds` is below 1, or there are no demos to begin with.
    """
    if rounds < 1:
        raise ConfigError(f"{rounds} rounds of online imitation; expected 1 or more")
    run_dir = Path(run_dir)
    folder = _train_round(config, run_dir / "round_0", evaluate, start=None)
    later = config
    if round_steps is not None:
        later = replace(config, training=replace(config.training, max_steps=round_steps))
    for number in range(1, rounds + 1):
        demos = run_dir / f"round_{number}.hdf5"
        if not demos.exists():
            _write_round(demos, config.data.files[0], load_policy(folder), roll_out, number)
        later = replace(later, data=replace(later.data, files=(*later.data.files, str(demos))))
        folder = _train_round(later, run_dir / f"round_{number}", evaluate, start=folder)
    return folder


def _train_round(
    config: ExperimentConfig, folder: Path, evaluate: Callable[[ChunkPolicy], float] | None, start: Path | None
) -> Path:
    resume = (folder / "resume.ckpt").exists()
    return train(config, folder, evaluate=evaluate, resume=resume, start=None if resume else start)


def _write_round(
    path: Path,
    like: str,
    policy: ChunkPolicy,
    roll_out: Callable[[ChunkPolicy, int], Iterable[Demo]],
    number: int,
) -> None:
    """Write a round's demos; the file appears when all are in it. Those that an interrupted call left are kept."""
    with open_demos(like) as first:
        facts = {key: first.attributes[key] for key in ("renderer",) if key in first.attributes}
        env_args = first.attributes.get("env_args")
    with DemoWriter(
        path, env_args=env_args, action_spec=policy.action_spec, attributes=facts, resume=True, by_seed=True
    ) as writer:
        there = {*writer.seeds}
        for seed, demos in groupby(roll_out(policy, number), lambda demo: id(demo) if demo.seed is None else demo.seed):
            if seed not in there:
                writer.write_together(list(demos))
        LOG.info("round %d   %d relabeled episodes", number, len(writer.names))
