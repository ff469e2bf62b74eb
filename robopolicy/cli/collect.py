"""`robopolicy collect`: the scripted expert's episodes, as a demo file."""

import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from jsonargparse import Namespace
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from robopolicy.cli.parsing import parse, verb_parser
from robopolicy.config import ConfigError
from robopolicy.types import ActionSpec

if TYPE_CHECKING:
    from robopolicy.demos.hdf5 import DemoWriter

SIM_ACTIONS = ActionSpec(
    arm=6,
    gripper=1,
    gripper_values=((-1.0, 1.0),),
    kind="delta",
    space="ee",
    units=("0.05 m",) * 3 + ("0.5 rad",) * 3,
    rate_hz=20.0,
)
"""What the simulator's action columns are; gripper -1 open, +1 closed."""


def collect(arguments: Sequence[str]) -> int:
    """Collect demonstrations; gives the exit code."""
    from robopolicy.sim.collection import ActionNoise

    parser = verb_parser("collect", "Collect demonstrations of a task with the scripted expert and write them as HDF5.")
    parser.add_argument("--task", type=str, required=True, help="task of the simulator, such as lift")
    parser.add_argument("--episodes", type=int, default=200, help="successful demonstrations to write")
    parser.add_argument("--seed", type=int, default=0, help="seed of the first episode; the others follow it")
    parser.add_argument("--out", type=str, required=True, help="demo file to write")
    parser.add_argument("--cameras", type=str, nargs="*", default=[], help="cameras to record: front, wrist")
    parser.add_argument("--image-size", type=int, default=64, help="width and height of the pictures [pixels]")
    parser.add_argument(
        "--noise", type=bool, default=True, help="disturb what is executed; the label stays clean (DART)"
    )
    parser.add_class_arguments(ActionNoise, "disturbance")
    parser.add_argument("--num-envs", type=int, default=64, help="worlds simulated at once")
    parser.add_argument("--resume", action="store_true", help="go on with a file that an earlier collect left")
    options = parse(parser, arguments)
    out = Path(options.out)
    if options.episodes < 1:
        raise ConfigError(f"--episodes is {options.episodes}; expected 1 or more")
    if out.exists() and not options.resume:
        raise ConfigError(f"{out} exists; choose another --out, or --resume to go on with it")

    from robopolicy.sim.collection import collect as expert_episodes
    from robopolicy.sim.env import RobotVectorEnv

    began = time.perf_counter()
    noise = options.disturbance if options.noise else ActionNoise.off()
    tried = failed = steps = 0

    def make_env(worlds: int) -> RobotVectorEnv:
        return RobotVectorEnv(options.task, worlds, cameras=tuple(options.cameras), image_size=options.image_size)

    env = make_env(min(options.num_envs, options.episodes))  # before the file, which a wrong task must not leave behind
    with _writer(options) as writer, _bar() as bar:
        progress = bar.add_task(f"collect {options.task}", total=options.episodes, completed=len({*writer.seeds}))
        next_seed = options.seed if not writer.seeds else max(*writer.seeds, options.seed - 1) + 1
        while (missing := options.episodes - len({*writer.seeds})) > 0:
            if env.num_envs > missing:
                env.close()
                env = make_env(missing)
            for episode in expert_episodes(env, range(next_seed, next_seed + missing), noise):
                tried += 1
                if not episode.success:
                    failed += 1
                    continue
                for demo in episode.demos:
                    writer.write(demo)
                steps += episode.steps
                bar.advance(progress)
            next_seed += missing
            if failed == tried:
                raise ConfigError(f"none of {tried} expert episodes of {options.task} succeeded; try --noise false")
    env.close()
    print(
        f"collected {options.episodes} demos of {options.task}: {steps} steps written, {failed} of {tried} tries failed, "
        f"{time.perf_counter() - began:.1f} s"
    )
    print(f"demos     {out}")
    return 0


def _writer(options: Namespace) -> "DemoWriter":
    from robopolicy.demos.hdf5 import DemoWriter
    from robopolicy.sim.render import NAME

    env_args = {
        "env_name": f"robopolicy/{options.task}",
        "type": 2,
        "env_version": version("robopolicy"),
        "env_kwargs": {"task": options.task, "cameras": options.cameras, "image_size": options.image_size},
        "privileged": ["target_pos", "target_offset"],
    }
    facts = {"renderer": NAME} if options.cameras else {}
    return DemoWriter(options.out, env_args=env_args, action_spec=SIM_ACTIONS, attributes=facts, resume=options.resume)


def _bar() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    progress = Progress(*columns, transient=True)
    progress.disable = not progress.console.is_terminal
    return progress
