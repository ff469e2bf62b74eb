"""`robopolicy train`: trains a policy on demos, with closed-loop evaluations during training if requested."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from jsonargparse import Namespace

from robopolicy.cli import say
from robopolicy.cli.outputs import check_folder
from robopolicy.cli.parsing import REQUIRED, parse_experiment, verb_parser
from robopolicy.cli.simulator import success_in_simulator
from robopolicy.components import ConfigError, require
from robopolicy.experiment.config import ExperimentConfig
from robopolicy.training.start import Start


def train(arguments: Sequence[str]) -> int:
    """Train a policy; returns the exit code."""
    parser = verb_parser(
        "train",
        "Train a policy on demonstrations. Every option of the config can be given.",
        ("--run-dir", str, REQUIRED, "folder for the policy, its logs and its resume file"),
        ("--seed", int | None, None, "short for --training.seed"),
        ("--max-steps", int | None, None, "short for --training.max_steps"),
        ("--eval-every", int | None, None, "short for --training.eval_every"),
        ("--resume", bool, False, "continue the run that --run-dir holds"),
        ("--start", str | None, None, "run folder of the weights to start from"),
        (
            "--statistics",
            Literal["keep", "refit"] | None,
            None,
            "with --start: keep its statistics, which its weights were trained with (default), or refit them to the new demos",
        ),
        (
            "--freeze",
            list[str],
            [],
            "with --start: parts whose weights are frozen: encoder, text, pooling, memory, action_head",
        ),
    )
    short = {name: f"training.{name}" for name in ("seed", "max_steps", "eval_every")}
    options, config = parse_experiment(parser, arguments, short)
    check_folder("--run-dir", options.run_dir)
    from robopolicy.training.train import train as run_training  # imports Lightning, which takes seconds

    folder = run_training(
        config, Path(options.run_dir), evaluate=_closed_loop(config), resume=options.resume, start=_start(options)
    )
    say(f"policy    {folder}")
    return 0


def _start(options: Namespace) -> Start | None:
    """The run to start from, as the options say; None without `--start`."""
    if options.start is None:
        for option in ("statistics", "freeze"):
            require(not options[option], f"--{option} without --start; give --start RUN")
        return None
    parts = [part for given in options.freeze for part in given.split(",") if part]
    return Start(options.start, options.statistics or "keep", tuple(parts))


def _closed_loop(config: ExperimentConfig) -> Callable[[Any], float] | None:
    """Policy -> success rate in the simulator; None if the config asks for no evaluation."""
    if config.training.eval_every is None:
        return None
    if config.task is None:
        raise ConfigError("--eval-every needs the simulator's task; give --task, such as --task lift")
    return success_in_simulator(config.task, config.training.eval_episodes, {}, config.execution)
