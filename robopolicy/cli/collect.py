"""`robopolicy collect`: records the scripted expert's episodes in a demo file."""

import logging
import time
from collections.abc import Iterable, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass
from importlib.metadata import version
from itertools import count, islice
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from robopolicy.cli import say
from robopolicy.cli.outputs import check_file
from robopolicy.cli.parsing import REQUIRED, at_least, parse, verb_parser
from robopolicy.cli.simulator import SIMULATOR, check_simulator, simulator_facts, simulator_options
from robopolicy.components import ConfigError, require
from robopolicy.demos.guarded import parts_folder
from robopolicy.demos.hdf5 import DemoFile, DemoWriter
from robopolicy.demos.parts import file_or_first_part
from robopolicy.rollout.episodes import Episode
from robopolicy.sim.env import RobotVectorEnv
from robopolicy.sim.evaluation import Shard, open_shard
from robopolicy.sim.expert import ActionNoise
from robopolicy.sim.expert import collect as expert_episodes
from robopolicy.sim.render import NAME
from robopolicy.sim.worlds import PRIVILEGED

LOG = logging.getLogger(__name__)
ROUND = 4
"""Episodes per world in each round, if several processes collect; after a round they send their demos to the first process."""
HOPELESS = 50
"""Number of episodes, all of them failures, after which collecting stops with an error."""


def collect(arguments: Sequence[str]) -> int:
    """Collect demonstrations; returns the exit code."""
    parser = verb_parser(
        "collect",
        "Collect demonstrations of a task with the scripted expert and write them as HDF5.",
        ("--task", str, REQUIRED, "task of the simulator, such as lift"),
        ("--episodes", int, 200, "successful episodes to collect"),
        ("--seed", int, 0, "seed of the first episode; later ones have consecutive seeds"),
        ("--out", str, REQUIRED, "demo file to write"),
        ("--cameras", list[str], [], "cameras to record, such as front or wrist"),
        (
            "--style",
            str | None,
            None,
            "solution that the expert demonstrates where a task has several, such as mixed, left or right for pillar",
        ),
        ("--image-size", int, 64, "width and height of the images [pixels]"),
        ("--noise", bool, True, "add noise to the executed actions; the labels stay without it (DART)"),
        ("disturbance", ActionNoise, None, ""),
        *SIMULATOR,
        ("--resume", bool, False, "add to the file in --out, or continue an interrupted run"),
    )
    options = parse(parser, arguments)
    check_simulator(options)
    at_least(options, 1, "image_size")
    if options.style is not None:
        options.task_options = options.task_options | {"style": options.style}
    if not options.noise:
        options.disturbance = ActionNoise.off()
    _check_out(Path(options.out), options)
    try:
        with open_shard() as shard:
            return _collect(options, shard)
    except KeyboardInterrupt:
        kept = parts_folder(options.out)
        more = f"; the finished demos are kept in {kept}, continue with --resume" if kept.exists() else ""
        raise KeyboardInterrupt(f"interrupted{more}") from None


def _collect(options: Namespace, shard: Shard) -> int:
    """Run rounds of episodes, divided among the processes, until enough have succeeded; the first process writes and prints."""
    began, tally = time.perf_counter(), _Tally()
    # The worlds are created before the file: if the task is wrong, no file must be left behind.
    with (
        closing(_Worlds(options, shard)) as worlds,
        _writer(options, worlds.env) if shard.first else nullcontext() as writer,
        _bar(shard.first) as bar,
    ):
        done = len({*writer.seeds}) if writer else 0
        progress = bar.add_task(f"collect {options.task}", total=options.episodes, completed=done)
        while seeds := shard.broadcast(_next_seeds(options, writer, tally, shard) if writer else None):
            for episode in _gathered(worlds.episodes(shard.part(seeds)), shard):
                tally.count(episode)
                if tally.failed == tally.tried >= HOPELESS:
                    raise ConfigError(
                        f"none of {HOPELESS} expert episodes of {options.task} succeeded; try --noise false"
                    )
                if writer and episode.success:
                    writer.write_together(episode.demos)
                    bar.advance(progress)
    if shard.first:
        before = f" in addition to {done} collected earlier" if done else ""
        say(
            f"collected {tally.tried - tally.failed} episodes of {options.task}{before}: {tally.demos} demos, "
            f"{tally.steps} steps; {tally.failed} of {tally.tried} tries failed; limits changed "
            f"{100 * tally.limited / max(tally.steps, 1):.1f} % of the steps; {time.perf_counter() - began:.1f} s"
        )
        say(f"demos     {options.out}")
    return 0


def _gathered(episodes: Iterable[Episode], shard: Shard) -> Iterable[Episode]:
    """All processes' episodes, sorted by seed, in the first process, and none in the others; with one process, as they end."""
    if shard.count == 1:
        return episodes
    return sorted((each for part in shard.gather(list(episodes)) for each in part), key=lambda each: each.seed)


class _Worlds:
    """This process's worlds for the expert; replaced by fewer when a round has fewer episodes than there are worlds."""

    def __init__(self, options: Namespace, shard: Shard) -> None:
        self._options = options
        self._simulator = simulator_options(options, shard.device(options.device))
        self.env = self._made(min(options.num_envs, -(-options.episodes // shard.count)))

    def episodes(self, seeds: Sequence[int]) -> Iterable[Episode]:
        """The expert's episode for each of these seeds."""
        if not seeds:
            return []
        if self.env.num_envs > len(seeds):
            self.close()
            self.env = self._made(len(seeds))
        return expert_episodes(self.env, seeds, self._options.disturbance)

    def close(self) -> None:
        self.env.close()

    def _made(self, worlds: int) -> RobotVectorEnv:
        options = self._options
        return RobotVectorEnv(
            options.task,
            worlds,
            cameras=tuple(options.cameras),
            image_size=options.image_size,
            **self._simulator,
        )


@dataclass
class _Tally:
    """Counts of the episodes so far."""

    tried: int = 0
    failed: int = 0
    demos: int = 0
    steps: int = 0
    limited: int = 0
    """Steps in which the robot's limits changed the target."""
    next_seed: int | None = None

    def count(self, episode: Episode) -> None:
        self.tried += 1
        if episode.success:
            self.demos += len(episode.demos)
            self.steps += episode.steps
            self.limited += int(episode.info["limited"])
        else:
            self.failed += 1
        if episode.faults:
            LOG.warning(
                "seed %d counts as a failure because of a simulator fault (%s)", episode.seed, ", ".join(episode.faults)
            )


def _next_seeds(options: Namespace, writer: DemoWriter, tally: _Tally, shard: Shard) -> list[int]:
    """Seeds of the next round, none of them in the file: one for each missing episode; empty when the file is complete."""
    there = {*writer.seeds}
    missing = options.episodes - len(there)
    if shard.count > 1:  # short rounds, since gathered demos are written only at the end of a round
        missing = min(missing, ROUND * options.num_envs * shard.count)
    untried = (
        seed for seed in count(options.seed if tally.next_seed is None else tally.next_seed) if seed not in there
    )
    seeds = list(islice(untried, max(0, missing)))
    if seeds:
        tally.next_seed = seeds[-1] + 1
    return seeds


def _env_args(options: Namespace) -> dict[str, Any]:
    """`env_args` of the demos, as robomimic stores them."""
    return {
        "env_name": f"robopolicy/{options.task}",
        "type": 2,
        "env_version": version("robopolicy"),
        "env_kwargs": {"task": options.task, "cameras": options.cameras, "image_size": options.image_size}
        | ({"task_options": options.task_options} if options.task_options else {}),
        "simulator": simulator_facts(options),
        "disturbance": vars(options.disturbance),
        "privileged": list(PRIVILEGED),
    }


def _check_out(out: Path, options: Namespace) -> None:
    """Refuse a file that exists, or, with `--resume`, one whose demos were collected with other options."""
    check_file("--out", out)
    if (found := file_or_first_part(out)) is None:
        return
    require(options.resume, f"{found} exists; choose another --out, or --resume to continue it")
    with DemoFile(found) as demos:
        about = demos.attributes["env_args"]
    expected = _env_args(options)
    for name in ("env_name", "env_kwargs", "disturbance"):
        if about.get(name, expected[name]) != expected[name]:
            raise ConfigError(
                f"{found}: its demos have {name} {about[name]}, which is not {expected[name]}; "
                "--resume with the options it was collected with, or choose another --out"
            )


def _writer(options: Namespace, env: RobotVectorEnv) -> DemoWriter:
    facts = {"renderer": NAME} if options.cameras else {}
    return DemoWriter(
        options.out,
        env_args=_env_args(options),
        action_spec=env.actions,
        attributes=facts,
        resume=options.resume,
        by_seed=True,
    )


def _bar(shown: bool) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    progress = Progress(*columns, transient=True)
    progress.disable = not (shown and progress.console.is_terminal)
    return progress
