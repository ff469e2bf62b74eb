"""Online imitation (DAgger, Ross et al. 2011): roll out the policy, let an expert relabel, aggregate, train again.

Through its own small errors, a policy trained on demonstrations drifts into states that no demonstration covers. Here the
policy visits those states, and the expert labels each of them with the action that it would have taken.
"""

import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from robopolicy.components import Options, option, require
from robopolicy.demos.formats import open_demos
from robopolicy.demos.hdf5 import DemoFile, DemoWriter
from robopolicy.experiment import ExperimentConfig, load_policy
from robopolicy.files import write_file
from robopolicy.model.policy import ChunkPolicy
from robopolicy.rollout.actor import PolicyActor
from robopolicy.rollout.episodes import Actor, Episode, EpisodeWorlds, run_episodes
from robopolicy.training.run_dir import RESUME_FILE
from robopolicy.training.start import Start
from robopolicy.training.train import train
from robopolicy.types import Demo

LOG = logging.getLogger(__name__)

MIXING_STREAM = 2
"""Second entry of the seed that draws the turns; makes them independent of the scene and of the noise of demos."""
TURN_STEPS = 20
"""Mean length of a turn of the student or the expert."""
ROUNDS_FILE = "dagger.json"
"""Results of each round, in the folder of the run."""


class RelabelingActor:
    """Student and expert act in turns; the label is always the expert's.

    The turns last `TURN_STEPS` on average: long enough for the student to reach the states in which it fails, and for the
    expert to recover from them, so that no episode is stuck until its time limit.

    Args:
        student: the policy being trained, such as a `PolicyActor`.
        expert: its labels are recorded; it sees every frame, so it may have its own memory. In its turns, the
            executed action may differ from its label, for example by added noise.
        expert_share: probability that a turn is the expert's; turns are drawn with the episode's seed.
    """

    def __init__(self, student: Actor, expert: Actor, expert_share: float = 0.0) -> None:
        if not 0 <= expert_share <= 1:
            raise ValueError(f"expert_share is {expert_share}; expected a fraction of the turns, 0 .. 1")
        self.student, self.expert, self.expert_share = student, expert, expert_share
        self._rngs: list[np.random.Generator] = []
        self._begins = self._by_expert = np.zeros(0, dtype=bool)

    def reset(self, done: np.ndarray, seeds: Sequence[int]) -> None:
        """Clear both memories where `done` is True: an episode begins there, with the world's entry of `seeds` as seed."""
        self.student.reset(done, seeds)
        self.expert.reset(done, seeds)
        fresh = [np.random.default_rng([seed, MIXING_STREAM]) for seed in seeds]
        kept = self._rngs or fresh
        self._rngs = [new if begins else old for begins, new, old in zip(done, fresh, kept, strict=True)]
        self._begins = np.array(done)
        self._by_expert = self._by_expert if self._by_expert.size else np.zeros_like(self._begins)

    def act(self, obs: Mapping[str, np.ndarray], instructions: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """The expert's actions as labels, and the actions to execute.

        Raises:
            ConfigError: the expert's actions have a different shape from the student's.
        """
        label, executed = map(np.asarray, self.expert.act(obs, instructions))
        _, action = self.student.act(obs, instructions)
        require(
            label.shape == np.shape(action),
            f"the expert's actions have shape {label.shape}, the policy's {np.shape(action)}; give an expert of this task",
        )
        draws = np.array([rng.random(2) for rng in self._rngs])
        begins = self._begins | (draws[:, 0] < 1 / TURN_STEPS)
        self._by_expert = np.where(begins, draws[:, 1] < self.expert_share, self._by_expert)
        self._begins = np.zeros_like(begins)
        return label, np.where(self._by_expert[:, None], executed, action)


def relabeled_episodes(
    policy: ChunkPolicy,
    env: EpisodeWorlds,
    seeds: Sequence[int],
    expert: Actor,
    expert_share: float = 0.0,
) -> Iterator[Episode]:
    """Yields one recorded episode per seed, in the order in which they end; its demo holds the expert's labels.

    Args:
        policy: the policy being trained; executed with its own execution strategy, by the executor also used on a robot.
        env: the worlds; at most as many as seeds.
        seeds: one episode each.
        expert: labels every state.
        expert_share: probability that a turn is the expert's.
    """
    student = PolicyActor(policy, env.num_envs, env.control_dt)
    return run_episodes(env, RelabelingActor(student, expert, expert_share), seeds, record=True)


@dataclass(frozen=True)
class Rounds(Options):
    """The number of rounds of `dagger`, and what it trains on."""

    rounds: int = option(1, ">= 1")
    """Number of rounds; each is a rollout followed by training."""
    round_steps: int | None = option(None, ">= 1")
    """Optimizer steps of each training run after the first; None: as many as in the first."""
    keep_rounds: int | None = option(None, ">= 1")
    """Number of latest rounds whose relabeled demos are trained on, besides the initial demos; None: all."""
    weights: Literal["new", "last"] = "new"
    """new: each training run starts from random weights; last: from those of the previous round, which needs fewer steps."""


def dagger(
    config: ExperimentConfig,
    run_dir: str | Path,
    rounds: Rounds,
    roll_out: Callable[[ChunkPolicy, int, Sequence[int]], Iterable[Sequence[Demo]]],
    *,
    evaluate: Callable[[ChunkPolicy], float] | None = None,
    measure: Callable[[ChunkPolicy], Mapping[str, Any]] | None = None,
) -> Path:
    """Train on `config.data.files`, then after each rollout on these and the relabeled demos; returns the last run folder.

    `run_dir` holds a run folder `round_<i>` per round, `round_0` of the first training run, a demo file `round_<i>.hdf5` for
    each later round, and `dagger.json`. Called again with the same folder, it continues an interrupted run; of an interrupted
    rollout, only the unfinished episodes are lost.

    Args:
        config: the experiment.
        run_dir: folder of all rounds.
        rounds: number of rounds, and what they train on.
        roll_out: (policy, number of the round from 1 on, seeds already written) -> the demos of each episode as it ends, with
            the expert's labels as `actions`.
        evaluate: as for `train`.
        measure: policy -> metrics of a round to record in `dagger.json`, such as the success rate.

    Raises:
        ConfigError: the config has file weights, or no files.
    """
    require(
        not config.data.file_weights,
        "--data.file_weights can't be used with dagger, which adds a demo file in every round",
    )
    require(config.data.files, "no demo file for the first training run; name one or more with --data.files FILE ...")
    run_dir = Path(run_dir)
    folder = _train_round(config, run_dir / "round_0", evaluate, start=None)
    _note(run_dir, 0, folder, measure, {})
    later, files = config, []
    if rounds.round_steps is not None:
        later = replace(
            config, training=replace(config.training, max_steps=rounds.round_steps, passes=None, min_steps=None)
        )
    for number in range(1, rounds.rounds + 1):
        demos = run_dir / f"round_{number}.hdf5"
        if not demos.exists():
            _write_round(demos, config.data.files[0], load_policy(folder), roll_out, number)
        files = [*files, str(demos)][-(rounds.keep_rounds or number) :]
        data = replace(later.data, files=(*config.data.files, *files))
        start = folder if rounds.weights == "last" else None
        folder = _train_round(replace(later, data=data), run_dir / f"round_{number}", evaluate, start)
        _note(run_dir, number, folder, measure, _count(demos))
    return folder


def _train_round(
    config: ExperimentConfig, folder: Path, evaluate: Callable[[ChunkPolicy], float] | None, start: Path | None
) -> Path:
    resume = (folder / RESUME_FILE).exists()
    begin = None if resume or start is None else Start(str(start), statistics="refit")
    return train(config, folder, evaluate=evaluate, resume=resume, start=begin)


def _write_round(
    path: Path,
    like: str,
    policy: ChunkPolicy,
    roll_out: Callable[[ChunkPolicy, int, Sequence[int]], Iterable[Sequence[Demo]]],
    number: int,
) -> None:
    """Write a round's demos, each as its episode ends; the file appears when it is complete."""
    with open_demos(like) as first:
        facts = {key: first.attributes[key] for key in ("renderer",) if key in first.attributes}
        env_args = first.attributes.get("env_args")
    with DemoWriter(
        path, env_args=env_args, action_spec=policy.action_spec, attributes=facts, resume=True, by_seed=True
    ) as writer:
        written = sorted({*writer.seeds})
        for episode in roll_out(policy, number, written):
            writer.write_together(episode)
        LOG.info("round %d   %d relabeled demos", number, len(writer.names))


def _count(path: Path) -> dict[str, int]:
    with DemoFile(path) as file:
        return {
            "demos": len(file.names),
            "labeled_steps": sum(int(file.demo_attributes(name)["num_samples"]) for name in file.names),
        }


def _note(
    run_dir: Path,
    number: int,
    folder: Path,
    measure: Callable[[ChunkPolicy], Mapping[str, Any]] | None,
    facts: Mapping[str, Any],
) -> None:
    """Add a round to `dagger.json`, unless an earlier call has added it."""
    path = run_dir / ROUNDS_FILE
    rows = json.loads(path.read_text())["rounds"] if path.exists() else []
    if any(row["round"] == number for row in rows):
        return
    measured = measure(load_policy(folder)) if measure is not None else {}
    row = {"round": number, "folder": folder.name, **facts, **measured}
    write_file(path, json.dumps({"rounds": [*rows, row]}, indent=1) + "\n")
    if "success_rate" in measured:
        LOG.info("round %d   success %.1f %%", number, 100 * measured["success_rate"])
