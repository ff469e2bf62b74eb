"""What the verbs share of argument parsing: dashed flags, `--config`, dotted overrides, one line for a mistake."""

from argparse import ArgumentError
from collections.abc import Sequence
from itertools import islice
from typing import Literal

from jsonargparse import ArgumentParser, Namespace

from robopolicy.config import ConfigError, collect_lists


def verb_parser(verb: str, description: str) -> ArgumentParser:
    """A parser for one verb, with `--config FILE.yaml` whose values come before those of the command line."""
    parser = ArgumentParser(prog=f"robopolicy {verb}", description=description, exit_on_error=False)
    parser.add_argument("--config", action="config", help="YAML file with values for any of these options")
    return parser


def parse(parser: ArgumentParser, arguments: Sequence[str]) -> Namespace:
    """The parsed options, dataclasses made; what the command line says goes before what `--config` says, in any order.

    Raises:
        ConfigError: an unknown option, a missing one, or a value of the wrong type.
    """
    try:
        return parser.instantiate(parser.parse_args(_files_first(collect_lists(arguments))))
    except (ArgumentError, TypeError) as error:
        raise ConfigError(f"{' '.join(str(error).split())}; see {parser.prog} --help") from error


def add_precision(parser: ArgumentParser) -> None:
    """Add `--precision`."""
    parser.add_argument(
        "--precision",
        type=Literal["float32", "bf16", "int8"],
        default="float32",
        help="arithmetic of a run folder's policy on the CPU; an exported one has its own",
    )


def experiment_overrides(**values: object) -> list[str]:
    """Dotted overrides for those values that the command line gave."""
    return [word for name, value in values.items() if value is not None for word in (f"--{name}", str(value))]


def _files_first(arguments: Sequence[str]) -> list[str]:
    """`--config FILE` before all else, since the parser lets whatever comes later win."""
    files, rest = [], []
    words = iter(arguments)
    for word in words:
        file = list(islice(words, 1)) if word == "--config" else []
        chosen = files if file or word.startswith("--config=") else rest
        chosen += [word, *file]
    return [*files, *rest]
